"""The progress of a sweep: a table that grows on a terminal, a line for each training elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.cli.output import count, percent, say, show
from distsgd.cli.study_display import StudyDisplay, aligned
from distsgd.engine.events import Progress
from distsgd.training.results import EpochRow
from distsgd.tuning.sweep import SweepFollower

if TYPE_CHECKING:
    from distsgd.tuning.sweep_plan import Point, SweepPlan
    from distsgd.tuning.sweep_results import SweepRun

__all__ = ["TerminalFollower"]

_STAGES = {
    "dataset": "opening the dataset", "ray": "starting Ray", "workers": "starting the workers",
}  # fmt: skip


class TerminalFollower(SweepFollower):
    """Shows a sweep.

    Args:
        err: on stderr, as stdout has JSON.
    """

    def __init__(self, err: bool) -> None:
        self._print = say if err else show
        self._display = StudyDisplay(self._lines, err)
        self._rows: list[tuple[str, ...]] = []
        self._name, self._all = "", 0
        self._last: EpochRow | None = None

    def started(self, plan: SweepPlan, folder: Path, done: int) -> None:
        """Say what there is to do."""
        self._all = len(plan.points)
        names = len({point.name for point in plan.points})
        seeds = len(plan.seeds)
        text = f"{names} combinations x {seeds} seeds: {self._all} trainings, in {folder}"
        self._display.say(text + f"; {done} have ended before" * bool(done))
        if done < self._all:
            self._display.start()

    def began(self, point: Point, resumes: bool) -> None:
        """Name the training in the last line."""
        self._name = f"{point.number}/{self._all}  {point.name}, seed {point.config.seed}"
        self._last = None
        self._display.doing(self._name + ": resuming" * resumes)

    def stage(self, name: str) -> None:
        """Show the stage."""
        self._display.doing(f"{self._name}: {_STAGES.get(name, name)}")

    def progress(self, point: Point, progress: Progress) -> None:
        """Show how far the training is."""
        accuracy = "" if self._last is None else f", test {percent(self._last.test_accuracy)}"
        self._display.doing(
            f"{self._name}: epoch {progress.epoch + 1}/{point.config.epochs}, loss "
            f"{progress.loss:.4f}{accuracy}, {count(progress.examples_per_second)} images/s"
        )

    def epoch(self, point: Point, row: EpochRow) -> None:
        """Keep the newest accuracy."""
        self._last = row

    def ended(self, point: Point, run: SweepRun) -> None:
        """A row of the table, or a line."""
        accuracy, loss = run.test_accuracy, run.train_loss
        row = (
            run.name, str(run.seed), "-" if accuracy is None else percent(accuracy),
            "-" if loss is None else f"{loss:.4f}",
            "-" if run.seconds is None else f"{run.seconds:.2f}", run.status,
        )  # fmt: skip
        self._rows.append(row)
        if not self._display.is_live:
            self._print(
                f"{point.number}/{self._all}  {run.name}, seed {run.seed}: {run.status}"
                + (f", test accuracy {row[2]}, training loss {row[3]}, {row[4]} s"
                   if accuracy is not None else "")
            )  # fmt: skip

    def notice(self, text: str) -> None:
        """A line that stays."""
        self._display.say(text)

    def closed(self) -> None:
        """Remove the table: the command prints that of the means."""
        self._display.stop()

    def _lines(self, height: int) -> list[str]:
        headings = ("", "seed", "test accuracy", "training loss", "seconds", "")
        return aligned(headings, self._rows[-height:]) if self._rows else []
