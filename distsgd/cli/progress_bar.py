"""Progress of one long piece of work."""

from __future__ import annotations

import sys
from types import TracebackType

from distsgd.cli.output import say

__all__ = ["ProgressBar"]


class ProgressBar:
    """A progress bar on stderr; on no terminal, nothing.

    Args:
        rows: whether rows are counted, and not bytes.
    """

    def __init__(self, rows: bool = False) -> None:
        self._rows = rows

    def __enter__(self) -> ProgressBar:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if self._rows else DownloadColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None)
        return self

    def update(self, what: str, done: int, total: int) -> None:
        """How much is done of how much (0: unknown)."""
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def say(self, text: str) -> None:
        """A new stage."""
        self._bar.update(self._task, description=text, completed=0, total=None)
        if not sys.stderr.isatty():
            say(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()
