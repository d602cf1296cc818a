"""Formulas as pictures: TeX's mathematics, without TeX and without a script in the page."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from html import escape

from distsgd.lecture.drawing import svg_element

__all__ = ["formula_svg"]


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
