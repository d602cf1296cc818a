"""The figure of a comparison: how the distance between two W grows after they have parted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsgd.errors import UsageError
from distsgd.figures.charts import LIGHT
from distsgd.figures.drawn import as_text, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distsgd.forensics.difference import Difference

__all__ = ["draw_distances"]

_LINEAR = 1.5
"""Where the last update is not this many times the first, the axis is linear."""


def draw_distances(found: Difference) -> Figure:
    """Draw the distances of a comparison, within `distsgd.figures.drawn.look`.

    The x axis is the number of updates since the first difference, so that both the first few and
    the last are seen.

    Raises:
        UsageError: there is no distance to draw.
    """
    points = [one for one in found.distances if one.relative > 0]
    if not points:
        raise UsageError(
            "there is no distance to draw: no two W differ", "Leave --figure out"
        )  # fmt: skip
    begin = found.update if found.update is not None else (found.after or 0) + 1
    since = [one.update - begin + 1 for one in points]
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.plot(
        since, [one.relative for one in points], color=LIGHT.lines[0], marker="o", markersize=3
    )  # fmt: skip
    if since[-1] > _LINEAR * since[0]:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel=f"updates, from update {begin} on", ylabel="norm of the difference / norm of W"
    )  # fmt: skip
    axes.grid(axis="both")
    axes.set_title(as_text(f"W parts in update {begin}"))
    return figure
