"""Drawings of the lecture: formulas, and computations as graphs.

Formulas are TeX's mathematics as pictures, without TeX and without a script in the page. Graphs
show values forward in green and gradients backward in red.
"""

from __future__ import annotations

import hashlib
import io
from functools import cache
from html import escape
from typing import TYPE_CHECKING

from distsgd.figures.drawn import new_figure, svg_element
from distsgd.lecture.plain.chain_rule import ChainRule, WorkedExample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_chain_rule", "formula_svg"]


def draw_chain_rule(result: ChainRule) -> Figure:
    """The graph of each example."""
    rows = -(-len(result.examples) // 2)
    figure = new_figure(9, 3.4 * rows)
    for axes, example in zip(figure.subplots(rows, 2).flat, result.examples, strict=False):
        _draw(axes, example)
    return figure


def _draw(axes: Axes, example: WorkedExample) -> None:
    places = _places(example)
    for start, end in example.edges:
        axes.annotate(
            "", places[end], places[start],
            arrowprops={"arrowstyle": "->", "color": "0.6", "shrinkA": 14, "shrinkB": 16},
        )  # fmt: skip
    for one in example.quantities:
        x, y = places[one.name]
        axes.text(x, y, one.name, ha="center", va="center",
                  bbox={"boxstyle": "circle,pad=0.25", "fc": "white", "ec": "0.4"})  # fmt: skip
        left = x == 0  # the inputs, which may be many: beside them, not above and below
        for text, colour, side in ((one.value, "C2", 1), (one.gradient, "C3", -1)):
            axes.annotate(
                f"{text:.3g}", (x, y), (-14, 5 * side) if left else (0, 13 * side),
                textcoords="offset points", color=colour, fontsize=9,
                ha="right" if left else "center",
                va="center" if left else "bottom" if side > 0 else "top",
            )  # fmt: skip
    deepest = max(x for x, _ in places.values())
    axes.set(xlim=(-0.6, deepest + 0.4), ylim=(-0.72, 0.72))
    axes.set_title(f"{example.name}: {example.formula}", fontsize=9)
    axes.axis("off")


def _places(example: WorkedExample) -> dict[str, tuple[float, float]]:
    """Each quantity one column behind the last that it is computed from."""
    depth = {one.name: 0 for one in example.quantities}
    for _ in example.quantities:
        for start, end in example.edges:
            depth[end] = max(depth[end], depth[start] + 1)
    places = {}
    for column in set(depth.values()):
        names = [name for name, result in depth.items() if result == column]
        for number, name in enumerate(names):
            places[name] = (float(column), 0.5 - (number + 0.5) / len(names))
    return places


@cache
def formula_svg(tex: str) -> str:
    """A formula as an SVG element that reads as its source to those who do not see it.

    Args:
        tex: mathematics as matplotlib knows it, without dollar signs.

    Raises:
        ValueError: it cannot be read.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": tex, "svg.fonttype": "path", "mathtext.fontset": "cm"}):
        math_to_image(f"${tex}$", content, prop=FontProperties(size=14), format="svg")
    name = "f" + hashlib.sha256(tex.encode()).hexdigest()[:8]
    svg = svg_element(content.getvalue(), name)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(tex)}"', 1)
