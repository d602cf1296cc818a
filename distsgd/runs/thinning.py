"""Series of bounded length: of many points every 2nd, 4th, 8th, ... is kept, and the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["ThinnedSeries", "thinned"]

Given = TypeVar("Given")
Point = TypeVar("Point")


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most this many points, at least 2, evenly apart; the first and the last are among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


class ThinnedSeries(Generic[Given, Point]):
    """Points in order, of which some are kept, whatever their number.

    A point is parsed only if it is kept, so that most of a long file need not be.

    Args:
        parse: makes a point of what is offered; None leaves it out.
        place: of a point, such as its step. A point at the place of earlier ones, or before them,
            takes their place: it was repeated, as after a kill.
        most: points that are kept; up to twice as many in between.
    """

    def __init__(
        self,
        parse: Callable[[Given], Point | None],
        place: Callable[[Point], float],
        most: int,
    ) -> None:
        self._parse, self._place, self._most = parse, place, most
        self._points: list[Point] = []
        self._stride = 1
        self._count = 0
        self._last: Given | None = None

    def offer(self, given: Given) -> None:
        """The next point."""
        if self._count % self._stride == 0:
            self._last = None
            point = self._parse(given)
            if point is None:
                return
            self._add(point)
        else:
            self._last = given
        self._count += 1

    def _add(self, point: Point) -> None:
        place = self._place(point)
        points = self._points
        while points and self._place(points[-1]) >= place:
            points.pop()
        points.append(point)
        if len(points) > 2 * self._most:
            del points[1::2]
            self._stride *= 2
            self._count = 0

    def points(self) -> list[Point]:
        """Those that are kept, at most ``most``, and the last."""
        found = list(self._points)
        last = None if self._last is None else self._parse(self._last)
        if last is not None:
            while found and self._place(found[-1]) >= self._place(last):
                found.pop()
            found.append(last)
        return thinned(found, self._most)
