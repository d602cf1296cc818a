"""Distributed minibatch SGD on Ray, exact and replayable.

>>> import distsgd
>>> result = distsgd.train(dataset="sample", workers=0, epochs=2)
>>> distsgd.evaluate(result.run_dir).accuracy == result.test_accuracy
True

`train`, `resume` and `scale` train; `evaluate` and `predict` use what was trained. `TrainConfig`
holds the settings, `TrainResult`, `EpochRow`, `Evaluation` and `Prediction` what comes out, and a
`Reporter` follows a training. All errors are of `distsgd.errors`. Names that are not in ``__all__``
are private and may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distsgd.version import __version__

if TYPE_CHECKING:
    from distsgd import errors
    from distsgd.training import (
        Callback,
        DistsgdError,
        EpochRow,
        Evaluation,
        Prediction,
        Progress,
        Prometheus,
        Reporter,
        TensorBoard,
        TrainConfig,
        TrainingInterrupted,
        TrainResult,
        UsageError,
        evaluate,
        predict,
        resume,
        scale,
        train,
    )

__all__ = [
    "Callback",
    "DistsgdError",
    "EpochRow",
    "Evaluation",
    "Prediction",
    "Progress",
    "Prometheus",
    "Reporter",
    "TensorBoard",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "UsageError",
    "__version__",
    "errors",
    "evaluate",
    "predict",
    "resume",
    "scale",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used, so that importing distsgd is instant."""
    if name in __all__:
        from importlib import import_module

        if name == "errors":
            return import_module("distsgd.errors")
        return getattr(import_module("distsgd.training"), name)
    raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
