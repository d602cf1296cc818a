"""A progress bar for one long operation."""

from __future__ import annotations

from types import TracebackType

from distsgd.cli.output import say, terminal, text_column, visible

__all__ = ["ProgressBar"]


class ProgressBar:
    """A progress bar on stderr; shows nothing where stderr is no terminal.

    Args:
        rows: count rows instead of bytes.
    """

    def __init__(self, rows: bool = False) -> None:
        self._rows = rows

    def __enter__(self) -> ProgressBar:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TimeElapsedColumn,
        )

        console = terminal(err=True)
        self._live = console is not None
        columns = (
            text_column("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if self._rows else DownloadColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not self._live, transient=True)
        self._bar.start()
        self._task = self._bar.add_task("starting", total=None)
        return self

    def update(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` is done (0: unknown)."""
        self._bar.update(self._task, description=visible(what), completed=done, total=total or None)

    def say(self, text: str) -> None:
        """Start a new stage of unknown length; elsewhere than on a terminal, print its name."""
        self._bar.update(self._task, description=visible(text), completed=0, total=None)
        if not self._live:
            say(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()
