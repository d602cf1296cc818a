"""The progress of `distsgd train` and `resume`: live on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from distsgd.cli.curve import SmallCurve
from distsgd.cli.log_lines import as_json
from distsgd.cli.output import log, say, show, stacked, terminal, text_column, visible
from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress as Steps
from distsgd.errors import DistsgdError
from distsgd.training.callbacks.lines import HEADING, row_line, title_line
from distsgd.training.results import EpochRow, Reporter

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from distsgd.runs.history import HistoryReader

__all__ = ["make_reporter"]


class _PlainReporter(Reporter):
    """One plain line for each epoch."""

    def __init__(self, to_stderr: bool) -> None:
        self._print = say if to_stderr else show

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self._print(title_line(config), HEADING)

    def epoch(self, row: EpochRow) -> None:
        self._print(row_line(row))

    def notice(self, text: str) -> None:
        say(text)


_STAGES = {
    "dataset": "opening the dataset", "ray": "starting Ray", "workers": "starting the workers",
}  # fmt: skip


class _LiveReporter(Reporter):
    """A table of epochs above the loss as a curve, the workers, and a bar with the time left."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TimeRemainingColumn
        from rich.spinner import Spinner

        self._console = console
        narrow = console.width < _NARROW
        self._bar = Progress(
            *[] if narrow else [text_column("epoch {task.fields[epoch]}")],
            text_column("step {task.completed:.0f}/{task.total:.0f}"),
            *[] if narrow else [BarColumn(bar_width=24)],
            text_column("loss {task.fields[loss]}"),
            text_column("{task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._curve = SmallCurve()
        self._workers: _Workers | None = None
        self._spinner = Spinner("dots")
        self._starting = Live(self._spinner, console=console, transient=True)
        self._running = Live(
            get_renderable=self._render, console=console, transient=True, refresh_per_second=8
        )

    def stage(self, name: str) -> None:
        self._spinner.update(text=_STAGES[name])
        self._starting.start()
        self._starting.refresh()

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self._console.print(visible(title_line(config)), soft_wrap=True)
        self._console.print(HEADING, style="bold")
        self._task = self._bar.add_task("", total=total_steps, epoch=1, loss="-", speed="-")
        if config.workers:
            self._workers = _Workers(run_dir)
        else:
            self._show_bar()

    def _show_bar(self) -> None:
        """Replace the spinner by the bar: steps follow."""
        self._starting.stop()
        self._running.start(refresh=True)

    def _render(self) -> RenderableType:
        """What stands below the epochs now; called by the thread that refreshes."""
        width = self._console.width
        lines: list[str] = []
        if width >= _LEAST_WIDTH:
            lines += self._curve.lines(min(width - 1, _WIDEST), self._console.encoding)
            lines += [] if self._workers is None else self._workers.lines(width)
        return stacked(lines, self._bar)

    def progress(self, progress: Steps) -> None:
        self._curve.add(progress.loss)
        self._show_bar()
        self._bar.update(
            self._task,
            completed=progress.step,
            epoch=progress.epoch + 1,
            loss=f"{progress.loss:.4f}",
            speed=f"{progress.examples_per_second:,.0f}",
        )

    def epoch(self, row: EpochRow) -> None:
        self._show_bar()
        self._console.print(row_line(row))

    def notice(self, text: str) -> None:
        self._console.print(visible(text), style="yellow", soft_wrap=True)

    def ended(self) -> None:
        self._starting.stop()
        self._running.stop()


class _LogReporter(Reporter):
    """Every event as a line of the log; steps at most once a second."""

    def __init__(self) -> None:
        self._run = ""
        self._next = 0.0

    def stage(self, name: str) -> None:
        log("stage", stage=name, message=_STAGES[name])

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self._run = str(run_dir)
        log("started", run=self._run, total_steps=total_steps, settings=asdict(config))

    def progress(self, progress: Steps) -> None:
        if monotonic() >= self._next:
            self._next = monotonic() + _LOOK_SECONDS
            log("progress", run=self._run, **asdict(progress))

    def epoch(self, row: EpochRow) -> None:
        log("epoch", run=self._run, **asdict(row))

    def notice(self, text: str) -> None:
        log("notice", "warning", run=self._run, message=text)

    def ended(self) -> None:
        log("ended", run=self._run)


_LEAST_WIDTH, _NARROW, _WIDEST = 60, 84, 80
"""Columns from which on there is a curve, and from which on the bar has all of its parts."""


class _Workers:
    """What each worker does, by the run folder, read once a second.

    Args:
        run_dir: the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._reader: HistoryReader | None = None
        self._next = 0.0
        self._parts: list[str] = []

    def lines(self, width: int) -> list[str]:
        """As many workers as fit into two lines, and how many more there are."""
        if monotonic() >= self._next:
            self._next = monotonic() + _LOOK_SECONDS
            with suppress(DistsgdError):  # the folder has gone, or was not written yet
                self._parts = self._look()
        text, shown = "", 0
        for part in self._parts:
            if len(text) + len(part) > 2 * width - 30:
                break
            text, shown = f"{text}{part}   ", shown + 1
        left = len(self._parts) - shown
        text = text.rstrip() + (f"   and {left} more" if left else "")
        return [visible(f"workers  {text}")] if text else []

    def _look(self) -> list[str]:
        from distsgd.runs.history import HistoryReader

        self._reader = self._reader or HistoryReader(self._run_dir, _POINTS)
        parts = []
        for name, columns in self._reader.look().fleet.items():
            spent = {doing: sum(columns[doing][-2:]) for doing in ("computing", "waiting")}
            whole = sum(spent.values()) + sum(columns["pushing"][-2:])
            share = f", computing {100 * spent['computing'] / whole:.0f} %" if whole > 0 else ""
            parts.append(f"{name}: {columns['state']}{share}")
        return parts


_LOOK_SECONDS, _POINTS = 1.0, 32


def make_reporter(json: bool) -> Reporter:
    """Live on a terminal, plain when piped; with --json on stderr. The log, if that is JSON."""
    if as_json():
        return _LogReporter()
    console = terminal(err=json)
    return _PlainReporter(json) if console is None else _LiveReporter(console)
