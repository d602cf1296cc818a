"""What studies show while they run: a table redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distsgd.cli.output import say, stacked, terminal, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["StudyDisplay", "aligned"]


class StudyDisplay:
    """Lines above a line that moves, on a terminal; elsewhere nothing is drawn.

    Args:
        lines: gives the lines as they are now, for a height.
        err: draw on stderr.

    Attributes:
        is_live: whether there is a terminal.
    """

    def __init__(self, lines: Callable[[int], Sequence[str]], err: bool) -> None:
        self._console, self._lines = terminal(err=err), lines
        self.is_live = self._console is not None
        if self._console is None:
            return
        from rich.live import Live
        from rich.spinner import Spinner

        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._render, console=self._console, transient=True,
            refresh_per_second=6,
        )  # fmt: skip

    def start(self) -> None:
        """Draw from now on."""
        if self._console is not None:
            self._live.start(refresh=True)

    def doing(self, text: str) -> None:
        """What happens now, in the last line."""
        if self._console is not None:
            self._spinner.update(text=visible(text))

    def say(self, text: str) -> None:
        """A line that stays, on stderr or above the table."""
        if self._console is None or not self._live.is_started:
            say(text)
        else:
            self._console.print(visible(text), soft_wrap=True)

    def stop(self) -> None:
        """Draw nothing more, and leave nothing of it."""
        if self._console is not None:
            self._live.stop()

    def _render(self) -> RenderableType:
        assert self._console is not None
        height = max(3, self._console.height - 3)
        return stacked(map(visible, self._lines(height)), self._spinner)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines; the first column is text, the others numbers."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headings, *rows)
    ]
