"""What a search has found: its trials, ranked, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsgd.tuning.axes import name_of

__all__ = ["EpochRecord", "FinalResult", "TrialResult", "TuneResult", "ranked", "trial_results"]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """An epoch of a trial.

    Attributes:
        trial: its number.
        epoch: from 1.
        step: updates applied.
        learning_rate: of the last update.
        train_loss: mean over the epoch's minibatches, with the penalty.
        train_accuracy: likewise.
        validation_loss: of W at the end of the epoch, on the rows held out, with the penalty.
        validation_accuracy: likewise.
        seconds: of the epoch, divided by the trials that were trained together.
        diverged: whether the loss is no longer finite.
    """

    trial: int
    epoch: int
    step: int
    learning_rate: float
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial, after its last epoch.

    Attributes:
        number: from 1.
        settings: searched setting -> value.
        status: "finished", "dropped" (by halving), "diverged", or "unfinished".
        rank: 1 for the best.
        epochs: that have ended.
        validation_accuracy: after the last of them; None before the first. Likewise the others.
        validation_loss: with the penalty.
        train_accuracy: over the epoch.
        train_loss: likewise, with the penalty.
        seconds: of all its epochs.
    """

    number: int
    settings: dict[str, Any]
    status: str
    rank: int
    epochs: int
    validation_accuracy: float | None
    validation_loss: float | None
    train_accuracy: float | None
    train_loss: float | None
    seconds: float

    @property
    def name(self) -> str:
        """Its values in short."""
        return name_of(self.settings)


@dataclass(frozen=True, kw_only=True)
class FinalResult:
    """The best settings, trained on all training rows and measured on the test set.

    Attributes:
        run_dir: the run.
        test_accuracy: of its W.
        test_loss: likewise.
        train_accuracy: likewise.
        train_loss: likewise.
        weights_sha256: digest of W.
    """

    run_dir: str
    test_accuracy: float
    test_loss: float
    train_accuracy: float
    train_loss: float
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A search.

    Attributes:
        study_dir: its folder.
        status: "finished" or "interrupted".
        method: "random", "grid" or "halving".
        searched: names of the settings that were searched.
        validation: share of the training rows that were held out, and chosen by.
        trials: best first.
        best: the best trial; None if none has been trained to the end.
        best_file: its settings, for `distsgd train --config`; "" without one.
        final: what it gives on the test set; None unless asked for.
        epochs: of all trials together, in the whole search.
        repeated: of them, those that had been trained before this call.
        wall_seconds: of this call.
    """

    study_dir: str
    status: str
    method: str
    searched: tuple[str, ...]
    validation: float
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    best_file: str
    final: FinalResult | None
    epochs: int
    repeated: int
    wall_seconds: float


def ranked(newest: Mapping[int, EpochRecord], numbers: Iterable[int]) -> list[int]:
    """Numbers of trials, best first: by epochs, then validation accuracy, then validation loss.

    Args:
        newest: number -> the last epoch of a trial.
        numbers: of the trials.
    """

    def place(number: int) -> tuple[float, ...]:
        found = newest.get(number)
        if found is None:
            return (2.0, 0.0, 0.0, 0.0, number)
        accuracy, loss = found.validation_accuracy, found.validation_loss
        if found.diverged or accuracy is None:
            return (1.0, -found.epoch, 0.0, 0.0, number)
        known = math.inf if loss is None or not math.isfinite(loss) else loss
        return (0.0, -found.epoch, -accuracy, known, number)

    return sorted(numbers, key=place)


def trial_results(
    values: Sequence[Mapping[str, Any]],
    epochs: Sequence[EpochRecord],
    dropped: Iterable[int],
    whole: int,
) -> tuple[TrialResult, ...]:
    """Every trial, best first.

    Args:
        values: of each trial, in the order of their numbers.
        epochs: of all of them.
        dropped: numbers of those that halving has dropped.
        whole: epochs of a whole training.
    """
    newest = {one.trial: one for one in epochs}
    seconds: dict[int, float] = {}
    for one in epochs:
        seconds[one.trial] = seconds.get(one.trial, 0.0) + one.seconds
    gone = set(dropped)
    found = []
    for rank, number in enumerate(ranked(newest, range(1, len(values) + 1)), 1):
        last = newest.get(number)
        if last is None:
            status = "unfinished"
        elif last.diverged:
            status = "diverged"
        elif number in gone:
            status = "dropped"
        else:
            status = "finished" if last.epoch >= whole else "unfinished"
        found.append(
            TrialResult(
                number=number, settings=dict(values[number - 1]), status=status, rank=rank,
                epochs=last.epoch if last else 0,
                validation_accuracy=last.validation_accuracy if last else None,
                validation_loss=last.validation_loss if last else None,
                train_accuracy=last.train_accuracy if last else None,
                train_loss=last.train_loss if last else None, seconds=seconds.get(number, 0.0),
            )
        )  # fmt: skip
    return tuple(found)
