"""Figures: made in memory, drawn without a screen, written whole."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.data.atomic import replace_file
from distsgd.errors import storage_error
from distsgd.simulation.plots import check_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_text", "check_plot", "new_figure", "save_figure", "svg_element", "svg_of"]


def as_text(name: str) -> str:
    """A name from data or a path, as a figure shows it: dollar signs begin no formula."""
    seen = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)
    return "".join(seen).replace("$", r"\$")


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """An empty figure without a window.

    Args:
        width: inches; text has 10 points, so 7 can be read on a narrow screen too.
        height: inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file ending in .png or .svg, whole or not at all.

    Raises:
        UsageError: see `check_plot`.
        StorageError: the file cannot be written.
    """
    check_plot(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    try:
        replace_file(path, content.getvalue(), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None


def svg_of(figure: Figure, name: str) -> str:
    """A figure as an SVG element for an HTML page; the same bytes for the same figure.

    Args:
        name: makes the identifiers inside unlike those of the page's other figures.
    """
    import matplotlib as mpl

    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return svg_element(content.getvalue(), name)


def svg_element(text: str, name: str) -> str:
    """What an SVG file shows, to be put into a page beside others.

    Args:
        text: the file, as matplotlib writes it.
        name: put before each identifier, so that they differ from those of the others.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
