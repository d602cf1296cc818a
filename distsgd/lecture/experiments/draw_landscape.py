"""A landscape as a curve, or as a contour map beside a surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distsgd.lecture.drawing import as_text, new_figure
from distsgd.lecture.experiments.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_landscape", "draw_lines", "draw_planes"]


def draw_landscape(found: Landscape) -> Figure:
    """A line as a curve; a plane as contours and a surface."""
    return draw_lines([found]) if len(found.b) == 1 else draw_planes([found], surface=True)


def draw_lines(found: list[Landscape]) -> Figure:
    """Curves beside each other."""
    figure = new_figure(max(5.0, 3.6 * len(found)), 3.4)
    for axes, one in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        axes.plot(one.a, one.losses[0])
        for point in one.path:
            axes.axvline(point.a, color="C3", linewidth=0.6)
        axes.set(xlabel=f"a, along {as_text(one.along[0])}", ylabel="loss", title=_title(one))
        axes.grid(alpha=0.3)
    return figure


def draw_planes(found: list[Landscape], surface: bool = False) -> Figure:
    """Contour maps, with a run's path; with ``surface`` the landscape itself beside each."""
    wide = 2 if surface else 1
    figure = new_figure(3.7 * len(found) * wide, 3.6)
    for number, one in enumerate(found):
        flat = figure.add_subplot(1, wide * len(found), wide * number + 1)
        _contours(flat, one)
        if surface:
            a, b = np.meshgrid(one.a, one.b)
            axes = figure.add_subplot(1, wide * len(found), wide * number + 2, projection="3d")
            axes.plot_surface(
                a, b, np.array(one.losses), cmap="viridis", rcount=60, ccount=60, rasterized=True
            )
            axes.set(xlabel="a", ylabel="b", title="loss")
    return figure


def _contours(axes: Axes, one: Landscape) -> None:
    losses = np.array(one.losses)
    low, high = losses.min(), losses.max()
    if low > 0 and high >= 50 * low:
        levels = np.geomspace(low, high, 22)
    else:
        levels = np.linspace(low, high if high > low else low + 1, 22)
    mapped = axes.contourf(one.a, one.b, losses, levels=np.unique(levels), cmap="viridis")
    axes.figure.colorbar(mapped, ax=axes, format="%.3g")
    if one.path:
        places = np.array([(point.a, point.b) for point in one.path])
        axes.plot(*places.T, "o-", color="white", markersize=3, linewidth=1)
        axes.plot(*places[-1], "*", color="red", markersize=10)
    axes.set(xlabel=f"a, along {as_text(one.along[0])}", ylabel=f"b, along {as_text(one.along[1])}",
             title=_title(one))  # fmt: skip


def _title(one: Landscape) -> str:
    return f"{one.loss}, {one.examples:,} example{'s' if one.examples > 1 else ''}"
