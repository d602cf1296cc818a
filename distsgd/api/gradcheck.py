"""The gradient check on real images: both losses, with and without the penalty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from distsgd.core.gradient_check import check_gradient
from distsgd.core.losses import LOSSES
from distsgd.data.dataset import Dataset
from distsgd.data.locations import find_dataset
from distsgd.errors import UsageError
from distsgd.run.config import TrainConfig

__all__ = ["LIMIT", "GradcheckRow", "gradcheck"]

LIMIT = 1e-6
"""Largest relative error that passes."""

_WEIGHTS = {"small": (1e-4, 1e-3), "random": (1e-2, 1e-3), "extreme": (30.0, 5e-3)}
"""Name -> standard deviation of W, and step of the differences. The extreme W gives scores of
several thousand, where rounding asks for a longer step."""


@dataclass(frozen=True, kw_only=True)
class GradcheckRow:
    """One case of the check.

    Attributes:
        loss: "softmax" or "svm".
        regularization: lambda.
        weights: "small", "random" or "extreme".
        largest_relative_error: over the parameters that were compared.
        compared: how many were compared.
        skipped: how many were left out, a kink of the SVM loss being too near.
    """

    loss: str
    regularization: float
    weights: str
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
    dataset: str = "sample",
    examples: int = 100,
    parameters: int = 500,
    seed: int = 0,
) -> Iterator[GradcheckRow]:
    """Compare analytic gradients with central differences in float64.

    Args:
        loss: "softmax" or "svm"; None for both.
        dataset: where the images come from.
        examples: how many of its first training images.
        parameters: how many entries of W, chosen at random; all of them if it has fewer.
        seed: seed of W and of the choice.

    Raises:
        UsageError: an argument cannot be used.
    """
    if loss is not None and loss not in LOSSES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(LOSSES)}")
    opened = Dataset(find_dataset(dataset))
    for name, value, most in (
        ("examples", examples, len(opened.train)), ("parameters", parameters, 10**9),
    ):  # fmt: skip
        if not 1 <= value <= most:
            raise UsageError(f"--{name} cannot be {value}", f"Give a number from 1 to {most}")
    indices = np.arange(examples)
    pixels = np.empty((examples, opened.manifest.features), dtype=np.uint8)
    opened.train.gather(indices, pixels)
    labels = opened.train.labels[indices]
    shape = (len(opened.manifest.classes), opened.manifest.features + 1)
    preprocessing = opened.preprocessing(TrainConfig().pixel_scale)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(shape[0] * shape[1])[:parameters]
    for name in [loss] if loss else LOSSES:
        for regularization in (0.0, 0.1):
            for weights, (scale, h) in _WEIGHTS.items():
                with threadpool_limits(1):
                    found = check_gradient(
                        rng.standard_normal(shape) * scale, name, preprocessing, pixels, labels,
                        regularization=regularization, parameters=chosen, h=h,
                    )  # fmt: skip
                yield GradcheckRow(
                    loss=name, regularization=regularization, weights=weights, **vars(found)
                )
