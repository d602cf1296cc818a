"""The update in which two histories part, recomputed for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.fingerprint import fingerprint
from distsgd.core.model import EXACT
from distsgd.engine.blas import blas_kernel
from distsgd.errors import DistsgdError
from distsgd.forensics.one_bit import Fault, OneBit
from distsgd.forensics.places import Entries, Naming, compared, naming_of, same_weights
from distsgd.forensics.recorded import RecordedRun, slots_of
from distsgd.forensics.update_parts import TakenApart
from distsgd.proof.replayer import Step

__all__ = ["NEAR", "Side", "UpdateDifference", "recomputed", "try_recomputed",
           "update_difference"]  # fmt: skip

NEAR = 16
"""Updates after the first difference that are recomputed, to see the distance grow."""

_SHOWN = 20


@dataclass(eq=False)
class Side:
    """One run at the update in which it parts from another, or from its own replay.

    Attributes:
        run: the run.
        update: the number of the update.
        parts: the update as it is recomputed here.
        departs: whether the run recorded another W than the recomputed one; None if it recorded
            nothing to compare it with.
        other_kernel: whether the run was computed by a kernel that rounds differently from the one
            here, so that a departure is no fault.
        faults: single changes that explain a departure.
        actual: W after the update as the run had it, flat and padded; None if it is unknown.
        replayed: update -> W recomputed without a fault, from this update on.
    """

    run: RecordedRun
    update: int
    parts: TakenApart
    departs: bool | None
    other_kernel: bool
    faults: tuple[Fault, ...] = ()
    actual: Floats | None = None
    replayed: dict[int, Floats] = field(default_factory=dict)


def recomputed(run: RecordedRun, update: int, steps: Iterator[Step] | None = None) -> Side:
    """Recompute an update of a run, compare it with what the run recorded, and explain it.

    Args:
        run: the run, whose dataset is there.
        update: its number.
        steps: its updates from that one on, if they are being recomputed already; None to
            recompute them.

    Raises:
        DistsgdError: it cannot be recomputed.
    """
    assert run.timeline is not None
    assert run.opened is not None
    last = run.updates.last
    following = next((version for version in run.versions if version >= update), last)
    if steps is None:
        steps = run.timeline.steps(update, min(last, max(update + NEAR, following)))
    step = next(steps)
    names = step.job.update_rule(step.after[:0]).state
    state = run.timeline.at(update - 1).snapshot.state if names else {}
    parts = TakenApart(run.opened, step, state)
    recorded, saved = run.updates.fingerprint(update), run.weights(update)
    departs: bool | None = None
    if recorded is not None:
        departs = recorded != fingerprint(parts.after)
    elif saved is not None:
        departs = not same_weights(saved, parts.after, parts.job.architecture)
    other = run.settings.arithmetic != EXACT and run.kernels != [blas_kernel()]
    side = Side(run, update, parts, departs, other and departs is not False)
    side.replayed[update] = parts.after
    wanted = following if departs else update + NEAR
    for later in steps:
        version = later.record.version
        if version > wanted:
            break
        if version <= update + NEAR or version == following:
            side.replayed[version] = later.after.copy()
    side.actual = saved if departs else parts.after
    if departs and not side.other_kernel:
        _explain(side, recorded, following)
    return side


def _explain(side: Side, recorded: int | None, following: int) -> None:
    """Look for a single change that explains what the run recorded."""
    parts, run = side.parts, side.run
    if side.actual is not None and recorded is None:
        recorded = fingerprint(side.actual)
    if recorded is None or not parts.holds:
        return
    later: NDArray[np.float64] | None = None
    saved = run.weights(following)
    if saved is not None and following in side.replayed:
        later = saved.astype(np.float64) - side.replayed[following].astype(np.float64)
    found = OneBit(parts, recorded, naming_of(run.model), later).search()
    side.faults = tuple(fault for fault, _ in found)
    if found and side.actual is None:
        side.actual = found[0][1]


@dataclass(frozen=True, kw_only=True)
class UpdateDifference:
    """What differs between two runs in one update.

    Attributes:
        update: its number.
        steps: of the plan, one of each run.
        epochs: counted from 1, one of each run.
        learning_rates: one of each run.
        contributions: of each run a list of {worker, step, slots, version}, in their order; slots
            are the first and one past the last.
        pieces: whether the pieces differ: other slots, or of other minibatches.
        reads: whether the pieces are the same, but versions of W that they read differ.
        order: whether both are the same, and were added in another order.
        examples: whether the examples of the minibatch differ.
        pixels: of those that are the same, numbers of those whose pixels or features differ.
        labels: likewise, whose labels differ.
        preprocessing: whether the mean image or the scale differs.
        entries: how W differs after it, or after a later one; None if W of one run is unknown.
        entries_after: the update that they are compared after.
    """

    update: int
    steps: tuple[int, ...]
    epochs: tuple[int, ...]
    learning_rates: tuple[float, ...]
    contributions: tuple[tuple[dict[str, Any], ...], ...]
    pieces: bool = False
    reads: bool = False
    order: bool = False
    examples: bool = False
    pixels: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    preprocessing: bool = False
    entries: Entries | None = None
    entries_after: int = 0

    @property
    def records(self) -> bool:
        """Whether the records differ in what decides the arithmetic."""
        return self.pieces or self.reads or self.order


def update_difference(sides: tuple[Side, ...], naming: Naming) -> UpdateDifference:
    """Compare the update of two runs; or, of one run, what it recorded with its recomputation."""
    every = [side.parts for side in sides]
    one, other = every[0], every[-1]
    contributions = [part.record.contributions for part in every]
    tasks = [slots_of(part.record) for part in every]
    pieces = [[slot[:2] for slot in group] for group in tasks]
    first, last = sides[0].actual, sides[-1].actual
    if len(sides) == 1:
        first, last = one.after, sides[0].actual
    return UpdateDifference(
        update=one.record.version,
        steps=tuple(part.record.step for part in every),
        epochs=tuple(part.job.plan.epoch_of(part.record.step) + 1 for part in every),
        learning_rates=tuple(float(part.job.schedule.at(part.record.step)) for part in every),
        contributions=tuple(
            tuple(
                {"worker": worker, "step": lease.step, "slots": [lease.first, lease.last],
                 "version": lease.version}
                for worker, lease in group
            )
            for group in contributions
        ),
        pieces=set(pieces[0]) != set(pieces[-1]),
        reads=set(pieces[0]) == set(pieces[-1]) and set(tasks[0]) != set(tasks[-1]),
        order=set(tasks[0]) == set(tasks[-1]) and tasks[0] != tasks[-1],
        entries_after=one.record.version,
        entries=None if first is None or last is None else compared(first, last, naming),
        **_rows_difference(one, other),
    )  # fmt: skip


def _rows_difference(one: TakenApart, other: TakenApart) -> dict[str, Any]:
    """Which examples of two minibatches differ, and in what."""
    examples = [
        np.concatenate([rows.examples for rows in part.rows]) if part.rows else np.empty(0)
        for part in (one, other)
    ]
    found: dict[str, Any] = {
        "examples": set(examples[0].tolist()) != set(examples[1].tolist()),
        "preprocessing": not _same_preprocessing(one, other),
    }
    mine, theirs = (_by_example(part) for part in (one, other))
    shared = [number for number in mine if number in theirs]
    found["pixels"] = tuple(
        number for number in shared
        if (mine[number][0] != theirs[number][0]).any()
    )[:_SHOWN] if one.job.features == other.job.features else ()  # fmt: skip
    found["labels"] = tuple(n for n in shared if mine[n][1] != theirs[n][1])[:_SHOWN]
    return found


def _by_example(parts: TakenApart) -> dict[int, tuple[Any, int]]:
    """Values and label of each example of a minibatch."""
    every = chain.from_iterable(
        zip(rows.examples.tolist(), rows.values, rows.labels.tolist(), strict=True)
        for rows in parts.rows
    )
    return {number: (values, label) for number, values, label in every}


def _same_preprocessing(one: TakenApart, other: TakenApart) -> bool:
    mine, theirs = one.job.preprocessing, other.job.preprocessing
    return mine.scale == theirs.scale and mine.mean.tobytes() == theirs.mean.tobytes()


def try_recomputed(run: RecordedRun, update: int) -> tuple[Side | None, str]:
    """The same, or why it cannot be recomputed."""
    if run.timeline is None:
        return None, f"the dataset of {run.name} cannot be opened: {run.problem}"
    try:
        return recomputed(run, update), ""
    except DistsgdError as error:
        return None, error.problem
