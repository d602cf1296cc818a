"""Figures drawn by matplotlib, which is loaded when one is drawn; no screen is needed.

All figures of distsgd have one look: those of runs, of the lecture, of simulations. It is set for
the time of drawing alone (`look`), so that a user's own figures keep theirs. Files are the same
bytes for the same figure and matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.data.atomic import replace_file
from distsgd.errors import UsageError, storage_error
from distsgd.figures import charts
from distsgd.figures.charts import DARK, EVENT_COLOURS, LIGHT, Chart, Matrix, Palette, Tiles
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS", "SIZES", "as_text", "check_plot", "draw", "look", "new_figure", "rendered",
    "save_figure", "svg_element", "svg_of",
]  # fmt: skip

FORMATS = ("png", "svg", "pdf")
_ENDINGS = (".png", ".svg")

SIZES = {"page": (7.0, 4.2, 10.0), "slide": (12.8, 7.2, 18.0), "column": (3.4, 2.5, 7.5)}
"""Size -> width and height in inches, and points of the text: a page of a report, a slide of 16:9,
a column of a paper. In a column there is no title: the paper has its own."""

_DOTS = {"page": 150, "slide": 150, "column": 300}
_FEW_POINTS, _FEWEST_POINTS = 30, 2
"""Up to so many points, a curve has dots, and one of single values behind others."""

_MOST_LABELLED, _MOST_IN_AXES, _MOST_CAPTIONS = 20, 4, 10
_LEGEND_WIDTH = 90
"""Letters of all columns of a legend of four."""

_PALE = 0.45
"""Opacity of the part of a curve that is its parent's."""

_NO_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


@contextmanager
def look(palette: Palette = LIGHT, points: float = 10.0) -> Iterator[None]:
    """While entered, matplotlib draws in the look of distsgd.

    Args:
        palette: the colours.
        points: size of the text.
    """
    import matplotlib as mpl
    from cycler import cycler

    style: Any = {
        "axes.axisbelow": True, "axes.edgecolor": palette.ink, "axes.facecolor": palette.background,
        "axes.grid": False, "axes.labelcolor": palette.ink, "axes.linewidth": 0.08 * points,
        "axes.prop_cycle": cycler(color=palette.lines), "axes.spines.right": False,
        "axes.spines.top": False, "axes.titlecolor": palette.ink, "axes.titlesize": points * 1.1,
        "figure.facecolor": palette.background, "font.family": "DejaVu Sans", "font.size": points,
        "grid.color": palette.faint, "grid.linewidth": 0.07 * points, "image.cmap": "viridis",
        "legend.frameon": False, "legend.fontsize": points, "lines.linewidth": 0.16 * points,
        "lines.markersize": 0.4 * points, "pdf.fonttype": 42, "savefig.bbox": None,
        "savefig.facecolor": palette.background, "svg.fonttype": "path",
        "text.color": palette.ink, "text.usetex": False, "xtick.color": palette.ink,
        "xtick.labelsize": points, "ytick.color": palette.ink,
        "ytick.labelsize": points,
    }  # fmt: skip
    with mpl.rc_context(style):
        yield


def as_text(name: str) -> str:
    """A name from data or a path, as a figure shows it: dollar signs begin no formula."""
    seen = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)
    return "".join(seen).replace("$", r"\$")


def check_plot(path: Path) -> None:
    """Check that a figure can be written to a file, before anything is computed for it.

    Raises:
        UsageError: the name has another ending, or its folder does not exist.
        ModuleNotFoundError: matplotlib is missing.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(
            f"{spelled('plot')} cannot be {path}", "Give a file that ends in .png or .svg"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"{spelled('plot')}: there is no folder {path.absolute().parent}", "Make it first"
        )
    import matplotlib.figure  # noqa: F401


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """An empty figure without a window.

    Args:
        width: inches; text has 10 points, so that 7 are readable on a narrow screen too.
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
    content = _saved(figure, path.suffix.lower()[1:], 150, path.name)
    try:
        replace_file(path, content, shared=True)
    except OSError as error:
        raise storage_error(error, path) from None


def _saved(figure: Figure, form: str, dots: int, salt: str) -> bytes:
    """A figure as the content of a file, without dates."""
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(content, format=form, dpi=dots, metadata=_NO_DATES[form])
    return content.getvalue()


def svg_of(figure: Figure, name: str) -> str:
    """A figure as an SVG element for an HTML page; the same bytes for the same figure.

    Args:
        name: makes the identifiers inside unlike those of the page's other figures.
    """
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "path"}):
        return svg_element(_saved(figure, "svg", 72, name).decode(), name)


def svg_element(text: str, name: str) -> str:
    """What an SVG file shows, to be put into a page beside others.

    Args:
        text: the file, as matplotlib writes it.
        name: put before each identifier, so that they differ from those of the others.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)


def rendered(figure: charts.Figure, form: str, size: str = "page", dark: bool = False) -> bytes:
    """A figure of runs as the content of a file.

    Args:
        figure: what is shown.
        form: one of `FORMATS`.
        size: one of `SIZES`.
        dark: light on dark.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    with look(DARK if dark else LIGHT, SIZES[size][2]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in another script
        return _saved(draw(figure, size, dark), form, _DOTS[size], figure.name)


def draw(figure: charts.Figure, size: str = "page", dark: bool = False) -> Figure:
    """A figure of runs by matplotlib, to be called and saved within `look`."""
    width, height, points = SIZES[size]
    palette = DARK if dark else LIGHT
    if isinstance(figure, Tiles):
        drawn = _tiles(figure, palette, width, points)
    else:
        if isinstance(figure, Matrix):
            height = max(height, min(width, 2.2 + 0.034 * points * len(figure.rows)))
        elif isinstance(figure, charts.Timeline):
            height = max(height * 0.6, min(2 * height, 0.09 * points * (len(figure.rows) + 2)))
        drawn = new_figure(width, height)
        axes = drawn.add_subplot()
        if isinstance(figure, Chart):
            _chart(axes, figure, palette, size)
        elif isinstance(figure, Matrix):
            _matrix(axes, figure, palette)
        else:
            _timeline(axes, figure, palette, size)
    if size != "column":
        drawn.suptitle(as_text(figure.title), fontsize=1.1 * points)
    note = getattr(figure, "note", "")
    if note and size != "column":
        drawn.axes[0].set_title(as_text(note), fontsize=0.75 * points)
    return drawn


def _chart(axes: Axes, chart: Chart, palette: Palette, size: str) -> None:
    {"lines": _lines, "bars": _bars, "stacked": _stacked}[chart.form](axes, chart, palette)
    axes.set(xlabel=as_text(chart.x_label), ylabel=as_text(chart.y_label))
    axes.grid(axis="both" if chart.form == "lines" else "y")
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    elif chart.from_zero:
        axes.set_ylim(bottom=0)
    if chart.form == "lines":
        axes.margins(x=0.02)
    _marks(axes, chart.marks, palette)
    _legend(axes, size, inside=chart.form == "lines")


def _legend(axes: Axes, size: str, *, inside: bool) -> None:
    """Within the axes if it is short and curves leave it room, else below them."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) < 2:
        return
    if inside and len(names) <= _MOST_IN_AXES:
        axes.legend()
        return
    most = 2 if size == "column" else 4
    columns = max(1, min(most, _LEGEND_WIDTH * most // (4 * max(map(len, names)))))
    _below(axes.figure, handles, names, columns, size)


def _below(figure: Any, handles: Any, names: Sequence[str], columns: int, size: str) -> None:
    """A legend below the axes, for which a figure that is no slide grows."""
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    if size != "slide":
        rows = -(-len(names) // columns)
        height = figure.get_figheight() + rows * 1.5 * SIZES[size][2] / 72
        figure.set_figheight(height)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _lines(axes: Axes, chart: Chart, palette: Palette) -> None:
    for line in chart.lines:
        colour = palette.lines[line.colour % len(palette.lines)]
        faint = line.style == "faint"
        style: dict[str, Any] = {
            "color": colour, "linestyle": "--" if line.style == "dashed" else "-",
            "linewidth": 0.6 if faint else None, "zorder": 1.5 if faint else 2,
            "marker": "o" if len(line.x) <= (_FEWEST_POINTS if faint else _FEW_POINTS) else None,
        }  # fmt: skip
        opacity, begin = 0.6 if faint else 1.0, line.place
        x, y = _numbers(line.x), _numbers(line.y)
        if begin and line.before == "pale":
            axes.plot(x[: begin + 1], y[: begin + 1], alpha=_PALE * opacity, **style)
        axes.plot(x[begin:], y[begin:], label=as_text(line.name), alpha=opacity, **style)
        if line.low:
            first = begin if line.before == "hidden" else 0
            low, high = _numbers(line.low)[first:], _numbers(line.high)[first:]
            axes.fill_between(x[first:], low, high, color=colour, alpha=0.2, linewidth=0)
        if line.fork is not None and not faint and begin < len(x):
            axes.plot(x[begin], y[begin], marker="D", color=colour, zorder=3, linestyle="none")


def _bars(axes: Axes, chart: Chart, palette: Palette) -> None:
    width = 0.8 / max(1, len(chart.lines))
    for number, line in enumerate(chart.lines):
        places = [x + (number - (len(chart.lines) - 1) / 2) * width for x in _numbers(line.x)]
        heights = _numbers(line.y)
        colour = palette.lines[line.colour % len(palette.lines)]
        axes.bar(places, heights, 0.94 * width, label=as_text(line.name), color=colour)
        if line.low:
            low, high = _numbers(line.low), _numbers(line.high)
            ends = [[y - a for y, a in zip(heights, low, strict=True)],
                    [b - y for y, b in zip(heights, high, strict=True)]]  # fmt: skip
            axes.errorbar(places, heights, ends, fmt="none", ecolor=palette.ink, elinewidth=0.8)
    _categories(axes, chart)


def _stacked(axes: Axes, chart: Chart, palette: Palette) -> None:
    base = [0.0] * len(chart.categories)
    for line in chart.lines:
        heights = _numbers(line.y)
        colour = palette.lines[line.colour % len(palette.lines)]
        axes.bar(_numbers(line.x), heights, 0.7, base, label=as_text(line.name), color=colour)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    _categories(axes, chart)


def _categories(axes: Axes, chart: Chart) -> None:
    names = [as_text(name) for name in chart.categories]
    step = max(1, -(-len(names) // _MOST_LABELLED))
    long = sum(map(len, names)) > 40
    axes.set_xticks(
        range(0, len(names), step), names[::step], rotation=40 if long else 0,
        ha="right" if long else "center", rotation_mode="anchor" if long else "default",
    )  # fmt: skip


def _marks(axes: Axes, marks: Sequence[charts.Mark], palette: Palette) -> None:
    """Events as vertical lines, one name for each kind."""
    named = set()
    for mark in marks:
        colour = palette.lines[EVENT_COLOURS.get(mark.kind, 6)]
        label = None if mark.kind in named else mark.kind
        named.add(mark.kind)
        axes.axvline(mark.x, color=colour, linestyle=":", linewidth=1.1, label=label, zorder=1)


def _matrix(axes: Axes, matrix: Matrix, palette: Palette) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shares", [palette.low, palette.high])
    shares = matrix.shares
    image = axes.imshow(shares, cmap=shades, vmin=0, vmax=max(map(max, shares)), aspect="equal")
    columns, rows = (list(map(as_text, names)) for names in (matrix.columns, matrix.rows))
    step = max(1, -(-len(rows) // _MOST_LABELLED))
    axes.set_xticks(range(0, len(columns), step), columns[::step], rotation=40, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    axes.set(xlabel=matrix.x_label, ylabel=matrix.y_label)
    axes.spines[:].set_visible(False)
    if len(rows) > _MOST_LABELLED:
        return
    middle = max(map(max, shares)) / 2
    for row, counts in enumerate(matrix.counts):
        for column, count in enumerate(counts):
            full = shares[row][column] > middle
            axes.text(column, row, f"{count}", ha="center", va="center",
                      fontsize=0.8 * float(axes.xaxis.label.get_fontsize()),
                      color=palette.background if full else palette.ink)  # fmt: skip
    axes.figure.colorbar(
        image, ax=axes, format=lambda share, _: f"{100 * share:.0f} %", label="part of the class",
        shrink=0.8,
    )  # fmt: skip


def _tiles(tiles: Tiles, palette: Palette, width: float, points: float) -> Figure:
    """All in one picture, as a hundred axes would take seconds."""
    number = len(tiles.tiles)
    columns = next((n for n in (5, 10, 15, 20) if number <= n * n), 20)
    columns = min(columns, number)
    rows, captions = -(-number // columns), columns <= _MOST_CAPTIONS
    high = max(tile.pixels.shape[0] for tile in tiles.tiles)
    wide = max(tile.pixels.shape[1] for tile in tiles.tiles)
    gap = max(1, round(0.06 * wide))
    # A caption is as high as its text, in pixels of the picture.
    line = 1.7 * points * min(1.0, 7 / columns) / 72
    above = round(line / (width / columns) * (wide + gap)) if captions else gap
    canvas = np.empty((rows * (high + above), columns * (wide + gap) - gap, 3), np.uint8)
    canvas[:] = [int(palette.background[i : i + 2], 16) for i in (1, 3, 5)]
    places = []
    for place, tile in enumerate(tiles.tiles):
        row, column = divmod(place, columns)
        top, left = row * (high + above) + above, column * (wide + gap)
        tall, broad = tile.pixels.shape[:2]
        canvas[top : top + tall, left : left + broad] = tile.pixels
        places.append((left + wide / 2, top - 0.15 * above))
    room = 3.2 * points / 72  # for title and note
    drawn = new_figure(width, width * canvas.shape[0] / canvas.shape[1] + room)
    axes = drawn.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.axis("off")
    if captions:
        for (x, y), tile in zip(places, tiles.tiles, strict=True):
            axes.text(x, y, as_text(tile.caption), ha="center", va="bottom",
                      fontsize=points * min(1.0, 7 / columns))  # fmt: skip
    return drawn


def _timeline(axes: Axes, timeline: charts.Timeline, palette: Palette, size: str) -> None:
    for place, row in enumerate(timeline.rows):
        edges = _numbers([*row.starts[:1], *row.ends])
        base = [place - 0.4] * len(row.ends)
        for doing, colour in timeline.doings.items():
            top = [a + 0.8 * b for a, b in zip(base, _numbers(row.shares[doing]), strict=True)]
            axes.stairs(top, edges, baseline=base, fill=True, color=palette.lines[colour],
                        label=None if place else doing)  # fmt: skip
            base = top
    names = [f"worker {as_text(row.name)}" for row in timeline.rows]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=timeline.x_label, ylim=(len(names) - 0.5, -0.5))
    axes.margins(x=0)
    _marks(axes, timeline.marks, palette)
    handles, labels = axes.get_legend_handles_labels()
    _below(axes.figure, handles, labels, 3 if size == "column" else 6, size)
