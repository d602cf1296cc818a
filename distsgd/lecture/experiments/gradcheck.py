"""The gradient check on real images: each model, both losses, with and without the penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Ints, padded_columns
from distsgd.core.model import LINEAR, LOSSES, Architecture, hidden_units, make_architecture
from distsgd.core.model.gradient_check import CASES, check_gradient, random_weights
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.lecture.material import check_loss
from distsgd.spelling import spelled, spelling
from distsgd.training.limits import check_memory

__all__ = ["LIMIT", "GradcheckRow", "gradcheck"]

LIMIT = 1e-6
"""Largest relative error that passes."""


@dataclass(frozen=True, kw_only=True)
class GradcheckRow:
    """One case of the check.

    Attributes:
        loss: "softmax" or "svm".
        regularization: lambda.
        weights: "small", "random" or "extreme".
        model: "linear" or "mlp:HIDDEN".
        largest_relative_error: over the parameters that were compared.
        compared: parameters that were compared.
        skipped: parameters that were skipped because a kink is too near.
    """

    loss: str
    regularization: float
    weights: str
    model: str
    largest_relative_error: float
    compared: int
    skipped: int

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit and anything was compared."""
        return self.compared > 0 and self.largest_relative_error <= LIMIT


def gradcheck(
    loss: str | None = None,
    *,
    model: str = LINEAR,
    dataset: str = "sample",
    examples: int = 100,
    parameters: int = 500,
    seed: int = 0,
) -> Iterator[GradcheckRow]:
    """Compare analytic gradients with central differences in float64.

    Args:
        loss: "softmax" or "svm"; None for both.
        model: "linear" or "mlp:HIDDEN".
        dataset: name, folder or URI of the images.
        examples: number of training images, from the first.
        parameters: entries of W to check, chosen at random, equally many of each layer; all of
            them if there are fewer.
        seed: of W and of the choice.

    Raises:
        UsageError: an argument cannot be used.
    """
    if loss is not None:
        check_loss(loss)
    pixel_scale = TrainConfig(model=model).pixel_scale  # refuses an unknown model
    opened = open_dataset(dataset)
    for name, value, most in (
        ("examples", examples, len(opened.train)), ("parameters", parameters, 10**9),
    ):  # fmt: skip
        if not 1 <= value <= most:
            raise UsageError(
                f"{spelled(name)} cannot be {value}", f"Give a number from 1 to {most}"
            )
    if seed < 0:
        raise UsageError(f"{spelled('seed')} cannot be {seed}", "Give a whole number, 0 or more")
    kind = make_architecture(model, opened.manifest.features, len(opened.manifest.classes))
    _check_room(kind, examples)
    indices = np.arange(examples)
    pixels = np.empty((examples, opened.manifest.features), dtype=opened.train.dtype)
    opened.train.gather(indices, pixels)
    images = (opened.preprocessing(pixel_scale), pixels, opened.train.labels[indices])
    rng = np.random.default_rng(seed)
    chosen = _chosen(kind, parameters, rng)
    for name in [loss] if loss else LOSSES:
        for regularization in (0.0, 0.1):
            for case in CASES:
                weights, h = random_weights(kind, case, rng)
                with one_blas_thread():
                    checked = check_gradient(
                        kind, weights, name, *images,
                        regularization=regularization, parameters=chosen, h=h,
                    )  # fmt: skip
                yield GradcheckRow(
                    loss=name, regularization=regularization, weights=case, model=model,
                    **vars(checked),
                )  # fmt: skip


def _check_room(model: Architecture, examples: int) -> None:
    """Raise UsageError if memory cannot hold the examples and the model in float64."""
    rows = 8 * 2 * examples * padded_columns(model.features)
    given = partial(spelling().given, "examples")
    check_memory(given(examples), rows, examples, given)
    weights = 8 * 6 * model.parameters  # with the gradient, random numbers and copies
    given = partial(spelling().given, "model")
    hidden = hidden_units(model.name) or 1
    check_memory(given(model.name), weights, hidden, lambda fits: given(f"mlp:{fits}"))


def _chosen(model: Architecture, parameters: int, rng: np.random.Generator) -> Ints:
    """Flat positions in parameters of a checkpoint, equally many of each layer."""
    sizes = [layer.kept[0] * layer.kept[1] for layer in model.layers]
    share = -(-parameters // len(sizes))
    return np.concatenate([
        sum(sizes[:layer]) + rng.permutation(size)[:share] for layer, size in enumerate(sizes)
    ])  # fmt: skip
