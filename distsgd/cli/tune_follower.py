"""The progress of a search: trials ranked, live on a terminal; a line for each epoch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.cli.output import percent, say, show
from distsgd.cli.study_display import StudyDisplay, aligned
from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.training.results import EpochRow
from distsgd.tuning.tune import TuneFollower
from distsgd.tuning.tune_results import EpochRecord, TrialResult, ranked, trial_results

if TYPE_CHECKING:
    from distsgd.tuning.tune_plan import Rung, TunePlan

__all__ = ["TerminalTuneFollower", "trial_cells", "trial_headings"]

_STAGES = {
    "dataset": "opening the dataset", "ray": "starting Ray", "workers": "starting the workers",
}  # fmt: skip


class TerminalTuneFollower(TuneFollower):
    """Shows a search.

    Args:
        err: on stderr, as stdout has JSON.

    Attributes:
        records: all epochs of trials so far.
    """

    def __init__(self, err: bool) -> None:
        self._print = say if err else show
        self._display = StudyDisplay(self._lines, err)
        self.records: list[EpochRecord] = []
        self._dropped: list[int] = []
        self._plan: TunePlan | None = None
        self._best: int | None = None
        self._final = False

    def began(self, plan: TunePlan, folder: Path, epochs: int) -> None:
        """Say what there is to do."""
        self._plan = plan
        rungs = ", ".join(f"{rung.keep} after {rung.until}" for rung in plan.rungs[:-1])
        searched = "; ".join(f"{one.name} {one.text}" for one in plan.axes)
        self._display.say(
            f"{plan.method} search, {len(plan.trials)} trials of {plan.config.epochs} epochs: "
            f"{searched}, in {folder}"
        )
        if rungs:
            self._display.say(f"trials that go on, by epochs: {rungs}")
        if epochs:
            self._display.say(f"{epochs} epochs were trained before")
        self._display.start()

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Move the table, or a line about the best of them."""
        assert self._plan is not None
        self.records += records
        newest = {one.trial: one for one in self.records}
        last = max(records, key=lambda one: one.epoch)
        best = newest[ranked(newest, newest)[0]]
        accuracy = best.validation_accuracy
        shown = "-" if accuracy is None else percent(accuracy)
        name = self._plan.trials[best.trial - 1].name
        done = len({one.trial for one in records})
        text = (
            f"epoch {last.epoch} of {done} trials; best so far: {shown}, trial "
            f"{best.trial} ({name}) after epoch {best.epoch}"
        )
        self._display.doing(text)
        if not self._display.is_live:
            self._print(text)

    def dropped(self, rung: Rung, numbers: Sequence[int]) -> None:
        """Say how many are left."""
        self._dropped += numbers
        self._display.say(f"after epoch {rung.until} {rung.keep} trials go on")

    def final(self, number: int) -> None:
        """Say that the best is trained."""
        self._final = True
        self._display.say(f"training trial {number} on all training rows")

    def stage(self, name: str) -> None:
        """Show the stage."""
        self._display.doing(_STAGES.get(name, name))

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """The final training begins."""
        self._display.doing("final training")

    def progress(self, progress: Progress) -> None:
        """How far the final training is."""
        self._display.doing(
            f"final training: epoch {progress.epoch + 1}, step {progress.step}, loss "
            f"{progress.loss:.4f}"
        )

    def epoch(self, row: EpochRow) -> None:
        """An epoch of the final training."""

    def notice(self, text: str) -> None:
        """A line that stays."""
        self._display.say(text)

    def closed(self) -> None:
        """Remove the table: the command prints the last one."""
        self._display.stop()

    def _lines(self, height: int) -> list[str]:
        if self._plan is None or not self.records:
            return []
        values = [trial.values for trial in self._plan.trials]
        trials = trial_results(values, self.records, self._dropped, self._plan.config.epochs)
        names = [one.name for one in self._plan.axes]
        rows = [trial_cells(one, names) for one in trials[: height - 1]]
        return aligned(trial_headings(names), rows)


def trial_headings(names: Sequence[str]) -> list[str]:
    """Those of a table of trials, of which these settings are searched."""
    return ["trial", *names, "validation", "training loss", "epochs", ""]


def trial_cells(one: TrialResult, names: Sequence[str]) -> list[str]:
    """A trial as a row of that table."""
    accuracy, loss = one.validation_accuracy, one.train_loss
    values = [one.settings.get(name, "-") for name in names]
    return [
        str(one.number),
        *(f"{value:g}" if isinstance(value, float) else str(value) for value in values),
        "-" if accuracy is None else percent(accuracy), "-" if loss is None else f"{loss:.4f}",
        str(one.epochs), one.status,
    ]  # fmt: skip
