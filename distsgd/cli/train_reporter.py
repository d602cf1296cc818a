"""The progress of `distsgd train` and `resume`: live on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.cli.output import say, show, terminal, text_column, visible
from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress as Steps
from distsgd.training.callbacks.lines import HEADING, row_line, title_line
from distsgd.training.results import EpochRow, Reporter

if TYPE_CHECKING:
    from rich.console import Console

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
    """A table of epochs above a progress bar with step, loss, speed and time left."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TimeRemainingColumn
        from rich.spinner import Spinner

        self._console = console
        self._bar = Progress(
            text_column("epoch {task.fields[epoch]}"),
            text_column("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            text_column("loss {task.fields[loss]}"),
            text_column("{task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._spinner = Spinner("dots")
        self._starting = Live(self._spinner, console=console, transient=True)

    def stage(self, name: str) -> None:
        self._spinner.update(text=_STAGES[name])
        self._starting.start()
        self._starting.refresh()

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self._console.print(visible(title_line(config)), soft_wrap=True)
        self._console.print(HEADING, style="bold")
        self._task = self._bar.add_task("", total=total_steps, epoch=1, loss="-", speed="-")
        if not config.workers:
            self._show_bar()

    def _show_bar(self) -> None:
        """Replace the spinner by the bar: steps follow."""
        self._starting.stop()
        self._bar.start()

    def progress(self, progress: Steps) -> None:
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
        self._bar.stop()


def make_reporter(json: bool) -> Reporter:
    """Live on a terminal, plain when piped; with --json on stderr."""
    console = terminal(err=json)
    return _PlainReporter(json) if console is None else _LiveReporter(console)
