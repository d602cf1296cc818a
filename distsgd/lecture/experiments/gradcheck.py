"""The gradient check on real images: each model, both losses, with and without the penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Ints, padded_columns
from distsgd.core.model import LINEAR, LOSSES, Architecture, hidden_units, make_architecture
from distsgd.core.model.gradient_check import CASES, check_gradient, random_weights
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
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
        compared: how many were compared.
        skipped: how many were left out, a kink being too near.
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
        dataset: where the images come from.
        examples: how many of its first training images.
        parameters: how many entries of W, chosen at random; all of them if it has fewer. With two
            layers, half of them from each.
        seed: seed of W and of the choice.

    Raises:
        UsageError: an argument cannot be used.
    """
    if loss is not None and loss not in LOSSES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(LOSSES)}")
    pixel_scale = TrainConfig(model=model).pixel_scale  # refuses a model that there is not
    opened = open_dataset(dataset)
    for name, value, most in (
        ("examples", examples, len(opened.train)), ("parameters", parameters, 10**9),
    ):  # fmt: skip
        if not 1 <= value <= most:
            raise UsageError(f"--{name} cannot be {value}", f"Give a number from 1 to {most}")
    if seed < 0:
        raise UsageError(f"--seed cannot be {seed}", "Give a whole number, 0 or more")
    kind = make_architecture(model, opened.manifest.features, len(opened.manifest.classes))
    _check_room(kind, examples)
    indices = np.arange(examples)
    pixels = np.empty((examples, opened.manifest.features), dtype=np.uint8)
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
    """Raises UsageError if memory does not hold the examples and the model, in float64."""
    rows = 8 * 2 * examples * padded_columns(model.features)
    check_memory(f"--examples {examples}", rows, examples, lambda fits: f"--examples {fits}")
    weights = 8 * 6 * model.parameters  # with its gradient, and what draws and rounds them
    check_memory(
        f"--model {model.name}",
        weights,
        hidden_units(model.name) or 1,
        lambda fits: f"--model mlp:{fits}",
    )


def _chosen(model: Architecture, parameters: int, rng: np.random.Generator) -> Ints:
    """Positions of entries of the parameters as they are kept, as many of each layer."""
    sizes = [layer.kept[0] * layer.kept[1] for layer in model.layers]
    share = -(-parameters // len(sizes))
    return np.concatenate([
        sum(sizes[:layer]) + rng.permutation(size)[:share] for layer, size in enumerate(sizes)
    ])  # fmt: skip
