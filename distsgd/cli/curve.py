"""A curve of a few lines of text: of Braille dots, or where the encoding lacks them, of ASCII."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["SmallCurve", "text_curve"]

_BLANK = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a Braille character: for each of its two columns, the dots from the top down."""

_ASCII = "'-."
"""The upper, middle and lower third of a line."""

_LABEL = 9
_MOST = 512


class SmallCurve:
    """Values that are kept in bounded number, evenly thinned, as a curve of text."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._stride, self._skipped = 1, 0

    def add(self, value: float) -> None:
        """Append a value; one that is not finite is left out."""
        self._skipped += 1
        if self._skipped < self._stride or not math.isfinite(value):
            return
        self._skipped = 0
        self._values.append(value)
        if len(self._values) >= _MOST:
            self._values = self._values[1::2]
            self._stride *= 2

    def lines(self, width: int, encoding: str | None) -> list[str]:
        """The curve, with its largest and smallest value at the left.

        Args:
            width: columns that it may take.
            encoding: of the stream.

        Returns:
            three lines; none for fewer than two values.
        """
        return text_curve(self._values, width, encoding)


def text_curve(
    values: Sequence[float], width: int, encoding: str | None, rows: int = 3
) -> list[str]:
    """Finite values at equal distances as lines of text.

    Args:
        values: the values.
        width: columns that it may take.
        encoding: of the stream.
        rows: lines.
    """
    columns = width - _LABEL - 2
    if len(values) < 2 or columns < 4:
        return []
    braille = _encodes(encoding)
    across, down = (2, 4) if braille else (1, 3)
    heights = _resampled(values, columns * across)
    low, high = min(heights), max(heights)
    last = rows * down - 1
    dots = [round((high - value) / ((high - low) or 1.0) * last) for value in heights]
    blank = _BLANK if braille else ord(" ")
    cells = [[blank] * columns for _ in range(rows)]
    before = dots[0]
    for place, dot in enumerate(dots):
        if not braille:
            row, inside = divmod(dot, down)
            cells[row][place] = ord(_ASCII[inside])
            continue
        # A steep curve stays connected: from beside the dot before to this one.
        near = dot if abs(before - dot) < 2 else before + (1 if dot > before else -1)
        for one in range(min(near, dot), max(near, dot) + 1):
            row, inside = divmod(one, down)
            cells[row][place // across] |= _DOTS[place % across][inside]
        before = dot
    labels = [f"{high:.4g}", *[""] * (rows - 2), f"{low:.4g}"]
    return [
        f"{label:>{_LABEL}}  {''.join(map(chr, row)).rstrip()}"
        for label, row in zip(labels, cells, strict=True)
    ]


def _resampled(values: Sequence[float], count: int) -> list[float]:
    """A value for each column: means where there are more, lines between them where fewer."""
    if len(values) >= count:
        bounds = [i * len(values) // count for i in range(count + 1)]
        return [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    found = []
    for i in range(count):
        place = i * (len(values) - 1) / (count - 1)
        low = min(int(place), len(values) - 2)
        found.append(values[low] + (place - low) * (values[low + 1] - values[low]))
    return found


def _encodes(encoding: str | None) -> bool:
    try:
        chr(_BLANK + 0xFF).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
