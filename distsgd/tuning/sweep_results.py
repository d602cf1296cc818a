"""What a sweep has found: a row for each training, and one for each combination of settings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FINISHED", "Spread", "SweepResult", "SweepRow", "SweepRun", "summarised"]

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One training of a sweep.

    Attributes:
        number: from 1.
        name: of its combination.
        settings: varied setting -> value.
        seed: of the training.
        status: "finished", "diverged" or "failed".
        problem: why it has no result; "" if it has one.
        run_dir: its run folder; "" if it has none.
        epochs: that have ended.
        train_loss: of the final W, None without a result; likewise the next three.
        train_accuracy: of the final W.
        test_loss: of the final W.
        test_accuracy: of the final W.
        seconds: spent on steps.
        examples_per_second: in these steps.
        wall_seconds: of the whole training.
        weights_sha256: digest of the final W.
    """

    number: int
    name: str
    settings: dict[str, Any]
    seed: int
    status: str
    problem: str = ""
    run_dir: str = ""
    epochs: int = 0
    train_loss: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    examples_per_second: float | None = None
    wall_seconds: float | None = None
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over the seeds of a combination.

    Attributes:
        mean: of the trainings that have finished.
        deviation: the sample standard deviation; None for fewer than two.
        least: smallest.
        most: largest.
    """

    mean: float
    deviation: float | None
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """A combination of settings.

    Attributes:
        name: such as "ssp:3".
        settings: varied setting -> value.
        runs: trainings that have ended.
        finished: of them.
        diverged: of them.
        failed: of them.
        test_accuracy: over those that have finished; None if none has. Likewise the others.
        test_loss: likewise.
        train_accuracy: likewise.
        train_loss: likewise.
        seconds: spent on steps.
        examples_per_second: in these steps.
    """

    name: str
    settings: dict[str, Any]
    runs: int
    finished: int
    diverged: int
    failed: int
    test_accuracy: Spread | None
    test_loss: Spread | None
    train_accuracy: Spread | None
    train_loss: Spread | None
    seconds: Spread | None
    examples_per_second: Spread | None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep.

    Attributes:
        study_dir: its folder.
        status: "finished" or "interrupted".
        varied: names of the settings that vary.
        seeds: of each combination.
        rows: the combinations, in the order in which they were asked for.
        runs: the trainings that have ended.
        planned: trainings of the whole sweep.
        repeated: trainings whose results were there before this call.
        wall_seconds: of this call.
    """

    study_dir: str
    status: str
    varied: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[SweepRow, ...]
    runs: tuple[SweepRun, ...]
    planned: int
    repeated: int
    wall_seconds: float


def summarised(runs: Sequence[SweepRun]) -> tuple[SweepRow, ...]:
    """A row for each combination, in the order of their first trainings."""
    members: dict[str, list[SweepRun]] = {}
    for run in runs:
        members.setdefault(run.name, []).append(run)
    return tuple(_row(found) for found in members.values())


def _row(runs: Sequence[SweepRun]) -> SweepRow:
    done = [run for run in runs if run.status == FINISHED]

    def spread(name: str) -> Spread | None:
        values = [float(getattr(run, name)) for run in done if getattr(run, name) is not None]
        if not values:
            return None
        deviation = statistics.stdev(values) if values[1:] else None
        return Spread(
            mean=statistics.fmean(values), deviation=deviation, least=min(values), most=max(values)
        )

    return SweepRow(
        name=runs[0].name, settings=runs[0].settings, runs=len(runs), finished=len(done),
        diverged=sum(run.status == DIVERGED for run in runs),
        failed=sum(run.status == FAILED for run in runs),
        test_accuracy=spread("test_accuracy"), test_loss=spread("test_loss"),
        train_accuracy=spread("train_accuracy"), train_loss=spread("train_loss"),
        seconds=spread("seconds"), examples_per_second=spread("examples_per_second"),
    )  # fmt: skip
