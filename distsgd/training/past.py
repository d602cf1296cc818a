"""The model of a run after any of its updates: of a checkpoint, or else recomputed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from distsgd.config.settings import TrainConfig
from distsgd.errors import UsageError
from distsgd.proof.moments import MOMENTS, is_moment, update_of
from distsgd.proof.timeline import Timeline
from distsgd.runs import Model, RunFolder, checkpoint_versions
from distsgd.runs.chosen import BEST, LAST, chosen_model
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.spelling import spelling

__all__ = ["Past", "PastModel", "model_after"]


@dataclass(frozen=True, eq=False)
class PastModel:
    """A run after an update.

    Attributes:
        model: as a checkpoint holds it.
        settings: then; those before a fork are its parent's.
        epoch: examples applied, over those of an epoch.
    """

    model: Model
    settings: TrainConfig
    epoch: float


class Past:
    """The states of a run after its updates.

    The first call of `at` puts the training examples in memory, as a training would; the later
    ones find them there, and what has been recomputed.

    Args:
        folder: the run, which may be training.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @cached_property
    def _opened(self) -> OpenedRun:
        return open_run(self._folder.path)

    @cached_property
    def _timeline(self) -> Timeline:
        return Timeline(self._opened)

    @cached_property
    def _recomputing(self) -> Timeline:
        run = self._opened
        if run.job(run.origin).cache != "uint8":
            return self._timeline
        return Timeline(replace(run, dataset=run.dataset.in_memory()))

    @property
    def updates(self) -> int:
        """The last update in the journal.

        Raises:
            RunError: the run is damaged, or its dataset is gone.
        """
        return self._timeline.last

    def at(self, update: int | str) -> PastModel:
        """The run after an update, recomputed from the state before it that is kept.

        Args:
            update: see `distsgd.proof.moments.MOMENTS`.

        Raises:
            UsageError: the run has no such update.
            RunError: it cannot be recomputed.
        """
        version = update_of(self._opened, update, self._timeline)
        moment = self._recomputing.at(version)
        position = moment.snapshot.position
        assert position is not None
        examples = self._opened.job(moment.config).plan.examples
        return PastModel(moment.model, moment.config, position.examples_seen / examples)

    def after(self, update: int | str) -> tuple[Model, TrainConfig]:
        """The model after an update, of a checkpoint if there is one, and the settings then.

        Args, errors: see `at`.
        """
        text = str(update)
        number = int(text) if text.isdecimal() and len(text) < 19 else None
        if number in checkpoint_versions(self._folder.checkpoints):
            return chosen_model(self._folder, text), self._folder.settings()
        found = self.at(update)
        return found.model, found.settings

    def model(self, which: str | int = LAST) -> Model:
        """The model that a user names.

        Args:
            which: "last" (the newest checkpoint), "best" (that of the epoch with the largest
                validation accuracy), or an update, as for `after`.

        Raises:
            UsageError, RunError: as `at`; or there is no such checkpoint, or a damaged one.
        """
        if which in (LAST, BEST):
            return chosen_model(self._folder, which)
        if isinstance(which, bool) or not is_moment(str(which).strip()):
            raise UsageError(
                f"{spelling().setting('checkpoint')} cannot be {which}", f"Give best, {MOMENTS}"
            )
        return self.after(which)[0]


def model_after(folder: RunFolder, which: str | int = LAST) -> Model:
    """The model of a run that a user names; see `Past.model`."""
    return Past(folder).model(which)
