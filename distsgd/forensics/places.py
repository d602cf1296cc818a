"""Where an entry of W is, in words, and how far apart two values of one entry are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.model import Architecture
from distsgd.runs import Model

__all__ = [
    "FEW_ULPS", "Entries", "Naming", "bit_name", "bits_of", "compared", "naming_of", "same_weights",
]  # fmt: skip


FEW_ULPS = 16
"""Up to so many units in the last place a difference is one of rounding."""


@dataclass(frozen=True)
class Naming:
    """What the entries of W are called.

    Attributes:
        architecture: the model.
        classes: names of the classes.
        shape: of an example, (channels, rows, columns).
        columns: names of the features; empty for pixels.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()

    def feature(self, number: int) -> str:
        """A pixel as "pixel x 5, y 12, channel 2", or the name of a column."""
        if self.columns:
            return f"column {self.columns[number]}"
        channels, rows, width = (*(1,) * (3 - len(self.shape)), *self.shape)[-3:]
        channel, place = divmod(number, rows * width)
        row, column = divmod(place, width)
        where = f"pixel x {column}, y {row}" if rows > 1 else f"pixel {column}"
        return f"{where}, channel {channel}" if channels > 1 else where

    def entry(self, index: int) -> str:
        """An entry of flat padded W, such as "class cat, pixel x 5, y 12, channel 2"."""
        layers = self.architecture.layers
        for number, layer in enumerate(layers):
            size = layer.outputs * layer.columns
            if index < size:
                row, column = divmod(index, layer.columns)
                last = number == len(layers) - 1
                unit = f"class {self.classes[row]}" if last else f"hidden unit {row}"
                if column == layer.inputs:
                    return f"{unit}, bias"
                if column > layer.inputs:
                    return f"{unit}, padding"
                if number:
                    return f"{unit}, hidden unit {column}"
                return f"{unit}, {self.feature(column)}"
            index -= size
        raise IndexError(index)


def naming_of(model: Model) -> Naming:
    """The same from a checkpoint."""
    columns: Sequence[str] = () if model.columns is None else model.columns.feature_names
    return Naming(model.architecture, model.classes, model.shape, tuple(columns))


def bits_of(values: Floats) -> NDArray[np.unsignedinteger]:
    """The bits of floats as whole numbers, a view of the same shape."""
    return values.view(np.uint32 if values.dtype == np.float32 else np.uint64)


def bit_name(bit: int, dtype: np.dtype) -> str:
    """A bit of a float by its number, and the part of the float that it belongs to."""
    mantissa, sign = (23, 31) if dtype == np.float32 else (52, 63)
    part = "the sign" if bit == sign else "the mantissa" if bit < mantissa else "the exponent"
    return f"bit {bit} ({part})"


@dataclass(frozen=True, kw_only=True)
class Entries:
    """How two W differ.

    Attributes:
        differing: entries that differ.
        of: entries of W.
        largest: the largest difference.
        place: where that is.
        values: both values there.
        ulps: the difference there in units in the last place.
        most_ulps: the largest number of units in the last place by which any entry differs.
        relative: norm of the difference over the norm of the first W.
    """

    differing: int
    of: int
    largest: float
    place: str
    values: tuple[float, float]
    ulps: int
    most_ulps: int
    relative: float

    def of_rounding(self, dtype: str) -> bool:
        """Whether it is no more than what rounding alone makes."""
        return self.most_ulps <= FEW_ULPS or self.relative <= 4 * float(np.finfo(dtype).eps)


def compared(first: Floats, second: Floats, naming: Naming) -> Entries:
    """How two W differ, each flat and padded."""
    architecture = naming.architecture
    inside = architecture.pad(np.ones(architecture.kept_shape, first.dtype)) != 0
    first, second = np.where(inside, first, 0), np.where(inside, second, 0)
    unlike = np.flatnonzero(bits_of(first) != bits_of(second))
    gap = np.abs(first.astype(np.float64) - second.astype(np.float64))
    gap[np.isnan(gap)] = np.inf
    norm = float(np.linalg.norm(first.astype(np.float64)))
    steps = _ulps(first, second)
    if not len(unlike):
        return Entries(
            differing=0, of=int(inside.sum()), largest=0.0, place="", values=(0.0, 0.0), ulps=0,
            most_ulps=0, relative=0.0,
        )  # fmt: skip
    worst = int(unlike[gap[unlike].argmax()])
    return Entries(
        differing=len(unlike),
        of=int(inside.sum()),
        largest=float(gap[worst]),
        place=naming.entry(worst),
        values=(float(first[worst]), float(second[worst])),
        ulps=int(steps[worst]),
        most_ulps=int(steps.max()),
        relative=float(np.linalg.norm(gap)) / norm if norm else float("inf"),
    )


def same_weights(first: Floats, second: Floats, architecture: Architecture) -> bool:
    """Whether two flat padded W have the same bits; encoded gradients leave some in the padding."""
    return architecture.unpad(first).tobytes() == architecture.unpad(second).tobytes()


def _ulps(first: Floats, second: Floats) -> NDArray[np.float64]:
    """The number of floats between two of each entry, plus 1 unless they are equal."""
    kind = np.int32 if first.dtype == np.float32 else np.int64
    one, other = first.view(kind).astype(np.int64), second.view(kind).astype(np.int64)
    least = np.int64(np.iinfo(kind).min)
    apart = np.abs(one - other).astype(np.float64)  # of the same sign
    around = (one & ~least).astype(np.float64) + (other & ~least).astype(np.float64)
    found: NDArray[np.float64] = np.where((one < 0) == (other < 0), apart, around)
    return found
