"""A figure of runs for Python programs and notebooks: shown, saved, or drawn on by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.data.atomic import replace_file
from distsgd.data.locations import expanded
from distsgd.errors import UsageError, storage_error
from distsgd.figures.charts import DARK, LIGHT, Figure
from distsgd.figures.drawn import FORMATS, SIZES, draw, look, rendered
from distsgd.figures.of_runs import AXES, FIGURES, build
from distsgd.runs.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["Plot", "plot"]


class Plot:
    """A figure; a notebook shows it.

    Args:
        figure: what is shown, as data.
        size: "page", "slide", or "column" (of a paper).
        dark: light on dark.

    Attributes:
        figure: as given; ``figure.to_json()`` has its numbers.
    """

    def __init__(self, figure: Figure, size: str, dark: bool) -> None:
        self.figure, self._size, self._dark = figure, size, dark

    def __repr__(self) -> str:
        return f"<figure {self.figure.name}: {self.figure.title}>"

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return rendered(self.figure, "svg", self._size, self._dark).decode()

    def drawing(self) -> Drawing:
        """The figure as one of matplotlib, to change and save."""
        with look(DARK if self._dark else LIGHT, SIZES[self._size][2]):
            return draw(self.figure, self._size, self._dark)

    def save(self, path: str | Path) -> None:
        """Write it to a file.

        Args:
            path: ends in .png, .svg or .pdf.

        Raises:
            UsageError: it ends otherwise.
            StorageError: it cannot be written.
        """
        target = expanded(path)
        form = target.suffix.lower().lstrip(".")
        if form not in FORMATS:
            raise UsageError(f"{path} cannot be drawn", "Give a file in .png, .svg or .pdf")
        content = rendered(self.figure, form, self._size, self._dark)
        try:
            replace_file(target, content, shared=True)
        except OSError as error:
            raise storage_error(error, target) from None


def plot(
    name: str,
    runs: Sequence[History],
    x: str = "epoch",
    size: str = "page",
    dark: bool = False,
    version: int | None = None,
) -> Plot:
    """A figure of one run or several.

    Args:
        name: one of `FIGURES`.
        runs: what is shown; runs that differ in the seed alone become one curve with a band.
        x: the x axis: "epoch", "update" or "seconds".
        size: "page", "slide", or "column".
        dark: light on dark.
        version: of the checkpoint, for templates; None for the newest.

    Raises:
        UsageError: an argument cannot be used, or the runs have nothing to draw.
    """
    allowed: list[tuple[str, str, Iterable[str]]] = [
        ("figure", name, FIGURES), ("x", x, AXES), ("size", size, SIZES),
    ]  # fmt: skip
    for argument, value, known in allowed:
        if value not in known:
            raise UsageError(f"{argument} cannot be {value}", f"Give one of {', '.join(known)}")
    return Plot(build(name, runs, x, version), size, dark)
