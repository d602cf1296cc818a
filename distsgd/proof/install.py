"""Whether this machine gives the weights of exact arithmetic that every machine gives.

The SHA-256 values below are of W after two epochs. They were the same with six kernels of OpenBLAS,
with the reference BLAS, BLIS and ATLAS, and on x86-64 and aarch64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.sources import config_from
from distsgd.core.model import EXACT
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.events import Ended
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Snapshot
from distsgd.errors import UsageError
from distsgd.runs import weights_sha256
from distsgd.spelling import spelling

__all__ = ["KNOWN", "Known", "Trained", "verify_install"]

_EPOCHS = 2


@dataclass(frozen=True)
class Known:
    """A training whose weights are known.

    Attributes:
        name: in words.
        settings: those that are not the defaults.
        weights_sha256: of W at its end.
    """

    name: str
    settings: dict[str, Any]
    weights_sha256: str


_SOFTMAX, _SVM = {"loss": "softmax"}, {"loss": "svm"}
_HIDDEN = {"loss": "softmax", "model": "mlp:20"}
_ADAM = {"loss": "svm", "model": "mlp:8", "optimizer": "adam", "schedule": "step",
         "step_epochs": 1.0, "learning_rate": 0.001}  # fmt: skip

KNOWN = {
    "sample": (
        Known(
            "softmax", _SOFTMAX, "9ec799288471ae5e2abe66763a2ce5c1a86b6ef946103a87fda1ecabe8886444"
        ),
        Known("svm", _SVM, "82934545ff0c2ed63b172d2d2cb287388c014af2e9d38866bd0454bd8541cd52"),
        Known(
            "softmax, mlp:20",
            _HIDDEN,
            "d03d87d61b1b3a62b1cad760c1ac706effecb6e2bfcccaa2c5088d47896ce00b",
        ),
        Known(
            "svm, mlp:8, adam",
            _ADAM,
            "c55d5cad886e4a1aaecfea99083433a80eeda830c4550a6dc7f71114cbe02bc9",
        ),
    ),
    "cifar10": (
        Known(
            "softmax", _SOFTMAX, "9502387dba882d414e2f6385a62feaac7af38628224d3083db0013ae6785c1d5"
        ),
        Known("svm", _SVM, "f0e1ea26cf816c70c62c2445d26cc9d4372d3c1552fdefe01770bd276b0cb578"),
        Known(
            "softmax, mlp:20",
            _HIDDEN,
            "e3b49df0f0386da59aeae99b6a134e85c8b4ae1fd8ad672dbc35df7a8f96b3ef",
        ),
    ),
}
"""Trainings by their datasets."""


@dataclass(frozen=True)
class Trained:
    """What this machine has made of a known training.

    Attributes:
        name: of the training.
        expected: the SHA-256 that every machine gives.
        found: that of this one.
    """

    name: str
    expected: str
    found: str

    @property
    def same(self) -> bool:
        """Whether they agree."""
        return self.found == self.expected


def verify_install(dataset: str = "sample") -> list[Trained]:
    """Train with exact arithmetic in this process, and compare the weights.

    Args:
        dataset: "sample", which takes a second, or "cifar10".

    Raises:
        UsageError: for other datasets nothing is known.
        DatasetError: CIFAR-10 has not been fetched, or is damaged.
    """
    if dataset not in KNOWN:
        raise UsageError(
            f"{spelling().given('dataset', dataset)}: its weights are known to nobody",
            f"Give one of {', '.join(KNOWN)}",
        )
    return [
        Trained(known.name, known.weights_sha256, _train(dataset, known.settings))
        for known in KNOWN[dataset]
    ]


def _train(dataset: str, settings: dict[str, Any]) -> str:
    """The SHA-256 of W."""
    config = config_from(
        {"dataset": dataset, "arithmetic": EXACT, "epochs": _EPOCHS, "workers": 0, **settings}
    )
    with one_blas_thread():
        opened = open_dataset(dataset)
        opened.verify()
        job = make_job(config, opened)
        start = Snapshot(0, first_weights(config, job), {})
        for event in train_inline(job, start, lambda: False):
            if isinstance(event, Ended):
                return weights_sha256(job.architecture.unpad(event.snapshot.weights))
    raise AssertionError("a training has an end")
