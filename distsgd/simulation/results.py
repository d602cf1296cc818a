"""What a simulation, and a comparison of policies, come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Comparison", "CurvePoint", "PolicyRow", "SimulationResult"]


@dataclass(frozen=True)
class CurvePoint:
    """A measurement on the way.

    Attributes:
        seconds: virtual seconds since the start.
        update: updates applied.
        train_loss: mean loss plus penalty over a fixed part of the training set.
        test_accuracy: over a fixed part of the test set.
    """

    seconds: float
    update: int
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """One simulated training. No wall clock is in it: the same settings give the same result.

    Attributes:
        status: "finished", "target" (stopped when the targets were reached), "diverged" or
            "interrupted".
        policy: the consistency policy, such as "ssp:3".
        settings: the settings of the training.
        fleet: the simulated fleet.
        seconds: virtual seconds that the training took.
        updates: updates applied.
        examples_seen: examples in them.
        curve: measurements on the way, the first before any update.
        target_loss: training loss that was aimed at, if any.
        time_to_loss: virtual seconds at the first measurement that reached it, or None.
        target_accuracy: test accuracy that was aimed at, if any.
        time_to_accuracy: virtual seconds at the first measurement that reached it, or None.
        waiting_share: share of all workers' time spent waiting for the server to grant work.
        waiting_shares: the same for each worker.
        staleness: of a gradient, in updates -> how many had it.
        mean_staleness: their mean.
        dropped: pushes that were not used.
        requeued: pieces that were put off to a later update.
        bytes_per_update: bytes of gradients sent to the server.
        train_loss: at the end, on the part of the training set that the curve is of.
        test_accuracy: at the end, on the whole test set.
        weights_sha256: SHA-256 of W at the end.
    """

    status: str
    policy: str
    settings: dict[str, Any]
    fleet: dict[str, Any]
    seconds: float
    updates: int
    examples_seen: int
    curve: list[CurvePoint]
    target_loss: float | None = None
    time_to_loss: float | None = None
    target_accuracy: float | None = None
    time_to_accuracy: float | None = None
    waiting_share: float
    waiting_shares: list[float]
    staleness: dict[str, int]
    mean_staleness: float
    dropped: int
    requeued: int
    bytes_per_update: float
    train_loss: float
    test_accuracy: float
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One policy over some seeds; means are over the seeds.

    Attributes:
        policy: such as "ssp:3".
        times_to_loss: for each seed, virtual seconds to the target loss, None if not reached.
        time_to_loss: their mean; None unless every seed reached it.
        times_to_accuracy: the same for the target accuracy.
        time_to_accuracy: their mean; None unless every seed reached it.
        seconds: mean virtual seconds of the training.
        train_loss: mean at the end.
        test_accuracy: mean at the end.
        waiting_share: mean share of the workers' time spent waiting.
        mean_staleness: of a gradient, in updates.
        updates: mean number of updates.
        dropped: mean number of pushes that were not used.
        requeued: mean number of pieces put off.
        diverged: how many seeds diverged.
    """

    policy: str
    times_to_loss: list[float | None]
    time_to_loss: float | None
    times_to_accuracy: list[float | None]
    time_to_accuracy: float | None
    seconds: float
    train_loss: float
    test_accuracy: float
    waiting_share: float
    mean_staleness: float
    updates: float
    dropped: float
    requeued: float
    diverged: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Policies side by side.

    Attributes:
        seeds: the seeds, the same for each policy.
        target_loss: training loss that was aimed at, if any.
        target_accuracy: test accuracy that was aimed at, if any.
        rows: one for each policy, in the order given.
        runs: every training, policy by policy, seed by seed.
    """

    seeds: list[int]
    target_loss: float | None
    target_accuracy: float | None
    rows: list[PolicyRow]
    runs: list[SimulationResult] = field(repr=False)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def summary(policy: str, runs: Sequence[SimulationResult]) -> PolicyRow:
    """One row of a comparison.

    Args:
        policy: its name.
        runs: one for each seed.
    """

    def mean(name: str) -> float:
        return float(sum(getattr(run, name) for run in runs) / len(runs))

    to_loss = [run.time_to_loss for run in runs]
    to_accuracy = [run.time_to_accuracy for run in runs]
    return PolicyRow(
        policy=policy,
        times_to_loss=to_loss,
        time_to_loss=_mean(to_loss),
        times_to_accuracy=to_accuracy,
        time_to_accuracy=_mean(to_accuracy),
        seconds=mean("seconds"),
        train_loss=mean("train_loss"),
        test_accuracy=mean("test_accuracy"),
        waiting_share=mean("waiting_share"),
        mean_staleness=mean("mean_staleness"),
        updates=mean("updates"),
        dropped=mean("dropped"),
        requeued=mean("requeued"),
        diverged=sum(run.status == "diverged" for run in runs),
    )
