"""Figures as data: what is shown, without how. The page and `distsgd.figures.drawn` draw them.

Colours are numbers into a palette, so that one thing has one colour in all figures: the palette
has a light and a dark form, and its colours can be told apart by those who do not see all (Okabe
and Ito, 2008).
"""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.runs.history import plain

__all__ = [
    "DARK", "EVENT_COLOURS", "LIGHT", "PALETTE_SIZE", "Chart", "Figure", "Line", "Mark", "Matrix",
    "Palette", "Row", "Tile", "Tiles", "Timeline",
]  # fmt: skip

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Palette:
    """The colours of one look, as #rrggbb.

    Attributes:
        background: of the figure.
        ink: of text and axes.
        faint: of the grid.
        lines: of lines and bars, by number.
        low: of an empty cell of a matrix.
        high: of a full one.
    """

    background: str
    ink: str
    faint: str
    lines: tuple[str, ...]
    low: str
    high: str


LIGHT = Palette(
    "#ffffff", "#1f2328", "#d7dbe0",
    ("#0072b2", "#d55e00", "#009e73", "#a8548a", "#b27d00", "#3c9fd6", "#6b6b6b", "#7a3b00"),
    "#ffffff", "#08519c",
)  # fmt: skip
DARK = Palette(
    "#14171c", "#e4e7eb", "#373d46",
    ("#56b4e9", "#ff8c42", "#2fc99b", "#e08cc0", "#e6b422", "#9bd3f5", "#a8adb5", "#c98a4b"),
    "#14171c", "#6fb7ee",
)  # fmt: skip
PALETTE_SIZE = len(LIGHT.lines)

EVENT_COLOURS = {
    "death": 1, "replaced": 2, "scaled": 0, "stranger": 3, "resumed": 2, "saved": 6, "notice": 6,
    "stopped": 1, "fork": 6,
}  # fmt: skip
"""Kind of an event -> number of the colour of its mark."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a chart, or its bars.

    Attributes:
        name: what it is.
        x: places, ascending.
        y: heights; None where there is none.
        low: lower end of its band at each place; none without a band.
        high: upper end.
        colour: number in the palette.
        style: "solid", "dashed", or "faint" for single values behind others.
        run: name of the run or group that it belongs to; "" if there is one alone.
        fork: place where its own part begins, if it is of a fork; what is before is its parent's.
        before: how that part is shown: "pale", or "hidden" if another line shows it.
    """

    name: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    colour: int = 0
    style: str = "solid"
    run: str = ""
    fork: float | None = None
    before: str = "pale"

    @property
    def place(self) -> int:
        """The index of the first point of its own part: the one at the fork, or the last before."""
        if self.fork is None:
            return 0
        return max(0, sum(1 for x in self.x if x is not None and x <= self.fork) - 1)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at a place of the x axis.

    Attributes:
        x: where.
        kind: one of `EVENT_KINDS`, or "fork".
        text: what.
    """

    x: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves or bars over an axis.

    Attributes:
        name: of the figure, such as "loss".
        title: what is drawn.
        x_label: of the x axis, with its unit.
        y_label: likewise.
        lines: what is drawn.
        marks: events.
        form: "lines"; "bars", one group for each category; "stacked", bars of one category on top
            of each other.
        categories: names on the x axis, for bars: the place i is the i-th.
        log_x: whether the x axis is logarithmic.
        log_y: likewise.
        from_zero: whether the y axis begins at 0.
        note: a remark below, such as what a band is.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    form: str = "lines"
    categories: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields, and "kind": "chart"; quick, as a live page asks for it all the time."""
        marks = [plain(vars(mark)) for mark in self.marks]
        lines = [{**vars(line), **_columns(line)} for line in self.lines]
        return {"kind": "chart", **vars(self), "lines": lines, "marks": marks,
                "categories": list(self.categories)}  # fmt: skip


def _columns(line: Line) -> dict[str, list[float | None]]:
    """The columns of a line; None for numbers that are not finite, whose difference is not 0."""
    return {
        name: [v if v is None or v - v == 0 else None for v in getattr(line, name)]
        for name in ("x", "y", "low", "high")
    }


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A table of counts whose cells are coloured by their share of their row.

    Attributes:
        name: of the figure.
        title: what is drawn.
        x_label: what the columns are.
        y_label: what the rows are.
        columns: names.
        rows: names.
        counts: a list for each row.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def shares(self) -> list[list[float]]:
        """Each cell's part of its row."""
        return [[n / (sum(row) or 1) for n in row] for row in self.counts]

    def to_json(self) -> dict[str, Any]:
        """The fields, "shares", and "kind": "matrix"."""
        return {"kind": "matrix", **plain(asdict(self)), "shares": self.shares}


@dataclass(frozen=True, eq=False)
class Tile:
    """A small picture with a caption.

    Attributes:
        caption: below it.
        pixels: shape (height, width, channels), uint8, of 1 or 3 channels.
    """

    caption: str
    pixels: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """Caption, height, width, and the picture as a data URI of a PNG."""
        from PIL import Image

        grey = self.pixels.shape[2] == 1
        content = io.BytesIO()
        Image.fromarray(self.pixels[:, :, 0] if grey else self.pixels).save(content, "PNG")
        height, width = self.pixels.shape[:2]
        uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
        return {"caption": self.caption, "height": height, "width": width, "png": uri}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Pictures beside each other.

    Attributes:
        name: of the figure.
        title: what is drawn.
        tiles: the pictures.
        note: a remark below.
    """

    name: str
    title: str
    tiles: tuple[Tile, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields, and "kind": "tiles"."""
        tiles = [tile.to_json() for tile in self.tiles]
        return {"kind": "tiles", "name": self.name, "title": self.title, "tiles": tiles,
                "note": self.note}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One worker of a timeline.

    Attributes:
        name: of the worker.
        state: what it does now, or did last.
        starts: when each stretch began.
        ends: when it ended.
        shares: what was done -> part of each stretch; what is left is nothing.
    """

    name: str
    state: str
    starts: Numbers
    ends: Numbers
    shares: dict[str, Numbers]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What each worker spent its time on, a row for each.

    Attributes:
        name: of the figure.
        title: what is drawn.
        x_label: of the time axis.
        rows: the workers.
        doings: what a worker can spend its time on -> number of its colour.
        marks: events.
    """

    name: str
    title: str
    x_label: str
    rows: tuple[Row, ...]
    doings: dict[str, int]
    marks: tuple[Mark, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields, and "kind": "timeline"."""
        rows = [plain(vars(row)) for row in self.rows]
        marks = [plain(vars(mark)) for mark in self.marks]
        return {"kind": "timeline", **vars(self), "rows": rows, "marks": marks}


Figure = Chart | Matrix | Tiles | Timeline
