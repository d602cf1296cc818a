"""Where two runs part, or a run and its own replay, and what the likely cause is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.fingerprint import fingerprint
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import RunError
from distsgd.forensics.cause import cause_of_fault, cause_of_split, initial_settings
from distsgd.forensics.first_difference import first_difference, first_other_record
from distsgd.forensics.one_bit import Fault
from distsgd.forensics.one_update import (
    Side,
    UpdateDifference,
    recomputed,
    try_recomputed,
    update_difference,
)
from distsgd.forensics.places import FEW_ULPS, compared, naming_of, same_weights
from distsgd.forensics.recorded import RecordedRun
from distsgd.forensics.surroundings import (
    ChangedRow,
    DataDifference,
    Pair,
    Setting,
    data_difference,
    first_use,
    settings_difference,
    versions_difference,
)
from distsgd.proof.replayer import Step

__all__ = ["Difference", "Distance", "diff"]


@dataclass(frozen=True)
class Distance:
    """How far two W are apart.

    Attributes:
        update: after which update.
        relative: norm of the difference over the norm of the first W.
        largest: the largest difference of an entry.
    """

    update: int
    relative: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What two runs have in common and where they part.

    Attributes:
        runs: their folders; of one run alone, compared with its replay, that one.
        settings: those that differ.
        versions: of packages, BLAS kernels and machines that differ.
        data: how the datasets differ; None if they have one digest.
        shared: updates of a common history, which both have from the same run.
        compared: the last update that was compared.
        method: how W was compared, in words.
        same: whether W never differed.
        update: the first update after which W differs; None if there is none, or it is unknown.
        after: the last update after which W is known to be the same; None if none is.
        record: the first update whose records differ in pieces, versions read, or order.
        there: what differs in the first update where W does; None if it cannot be recomputed.
        departing: those of the runs that depart from their own replay there.
        faults: single changes, one of which explains such a departure.
        cause: the likely cause, in one sentence.
        distances: how the distance between the two W grows.
        notes: what could not be done, and remarks.
    """

    runs: tuple[str, ...]
    settings: tuple[Setting, ...] = ()
    versions: tuple[Pair, ...] = ()
    data: DataDifference | None = None
    shared: int = 0
    compared: int = 0
    method: str = ""
    same: bool
    update: int | None = None
    after: int | None = None
    record: int | None = None
    there: UpdateDifference | None = None
    departing: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    cause: str
    distances: tuple[Distance, ...] = ()
    notes: tuple[str, ...] = ()


def diff(
    first: str | Path | os.PathLike[str], second: str | Path | os.PathLike[str] | None = None
) -> Difference:
    """Find the first update after which two runs have different W, and the likely cause.

    Args:
        first: path or name of a run, "latest", a loaded run.
        second: another; None to compare the first with its own replay.

    Returns:
        what differs; ``same`` says whether anything of W does.

    Raises:
        RunError: there is no such run, or it is damaged.
        JournalError: a journal is invalid; names the line.
    """
    one = RecordedRun.find(_as_path(first))
    with one_blas_thread():
        if second is None:
            return _with_replay(one)
        return _of_two(one, RecordedRun.find(_as_path(second)))


def _as_path(run: str | Path | os.PathLike[str]) -> str | Path:
    return run if isinstance(run, str | Path) else Path(run)


def _of_two(one: RecordedRun, other: RecordedRun) -> Difference:
    settings = settings_difference(one, other)
    outside = Difference(
        runs=(str(one.folder.path), str(other.folder.path)),
        settings=settings,
        versions=versions_difference(one, other),
        same=False, cause="",
    )  # fmt: skip
    if why := _incomparable(one, other):
        matter = [setting.name for setting in settings if setting.matters]
        words = f"; settings that differ: {', '.join(matter)}" if matter else ""
        return replace(outside, cause=f"they have nothing to compare W by: {why}{words}")
    naming = naming_of(one.model)
    data = data_difference(one, other, naming)
    if data is not None and data.changed:
        data = replace(data, changed=_with_use(data.changed, one, other))
    found = first_difference(one, other)
    notes = [
        f"{run.name} is training: compared up to its last update" for run in (one, other)
        if run.running
    ]  # fmt: skip
    for run in (one, other):
        if run.updates.begin:
            notes.append(
                f"the journal of {run.name} begins after update {run.updates.begin}: earlier "
                "updates were dropped"
            )
        if run.opened is None:
            notes.append(
                f"the dataset of {run.name} cannot be opened, so that nothing of it is recomputed: "
                f"{run.problem}"
            )
    if found.note:
        notes.append(found.note)
    method = _method(found.by_fingerprints, found.by_checkpoints, found.replayed)
    outside = replace(
        outside, data=data, shared=_shared(one, other), compared=found.compared, method=method,
        update=found.update if found.exact else None, after=found.same_until,
        record=first_other_record(one, other),
    )  # fmt: skip
    if found.update is None:
        return _undivided(outside, one, other, notes)
    distances = list(_at_checkpoints(one, other, found.update))
    if not found.exact:
        cause = f"it is between the updates {found.same_until} and {found.update}"
        return replace(
            outside, cause=cause, distances=tuple(distances), notes=tuple(notes)
        )  # fmt: skip
    if found.update == 0:
        names = initial_settings(one, settings)
        cause = (
            f"W differs from the start: {', '.join(names)}" if names
            else "W differs from the start, and no setting explains it"
        )  # fmt: skip
        return replace(outside, cause=cause, distances=tuple(distances), notes=tuple(notes))
    sides, problems = [], []
    for run in (one, other):
        side, problem = try_recomputed(run, found.update)
        sides.append(side)
        problems += [problem] * bool(problem)
    left, right = sides
    if left is None or right is None:
        notes += [problem for problem in problems if not any(problem in note for note in notes)]
        return replace(
            outside, cause=_guess(outside), distances=tuple(distances), notes=tuple(notes)
        )  # fmt: skip
    there = update_difference((left, right), naming)
    departing = [side for side in (left, right) if side.departs and not side.other_kernel]
    for side in (left, right):
        if side.other_kernel:
            notes.append(
                f"{side.run.name} was computed by {', '.join(side.run.kernels)}, which this "
                "process does not multiply by"
            )
    if not departing:
        cause = cause_of_split(there, (left, right), settings, outside.versions, data)
    else:
        cause = "; ".join(
            cause_of_fault(side, side.run.name, alone=False) for side in departing
        )  # fmt: skip
    if there.entries is None:
        there = _later_entries(there, one, other)
    entries = there.entries
    if entries is not None and entries.of_rounding(one.settings.dtype):
        most = entries.most_ulps
        ulps = f", at most {most} units in the last place" if most <= FEW_ULPS else ""
        notes.append(
            f"only the last bits differ: {entries.relative:.1e} of the norm of W{ulps}, after "
            f"update {there.entries_after}"
        )
    distances = _merged(_nearby(left, right), distances)
    return replace(
        outside, there=there, cause=cause, distances=tuple(distances), notes=tuple(notes),
        departing=tuple(side.run.name for side in departing),
        faults=tuple(fault for side in departing for fault in side.faults),
    )  # fmt: skip


def _later_entries(
    there: UpdateDifference, one: RecordedRun, other: RecordedRun
) -> UpdateDifference:
    """The same with the entries of W that differ at the next checkpoint that both have."""
    for version in sorted(set(one.versions) & set(other.versions)):
        mine, theirs = one.weights(version), other.weights(version)
        if version >= there.update and mine is not None and theirs is not None:
            entries = compared(mine, theirs, naming_of(one.model))
            return replace(there, entries=entries, entries_after=version)
    return there


def _undivided(
    outside: Difference, one: RecordedRun, other: RecordedRun, notes: list[str]
) -> Difference:
    """Two runs in which no difference was found."""
    ends = one.updates.last, other.updates.last
    if outside.after is None:
        cause = "they have no update in common that could be compared"
        return replace(outside, cause=cause, notes=tuple(notes))
    cause = f"nothing differs: the same bits of W up to update {outside.after}"
    if ends[0] != ends[1]:
        longer = one if ends[0] > ends[1] else other
        cause += f", the last that both have; {longer.name} goes on to update {max(ends)}"
    if outside.after < min(ends):
        cause += f"; later updates, up to {min(ends)}, could not be compared"
    return replace(outside, same=True, cause=cause, notes=tuple(notes))


def _with_replay(run: RecordedRun) -> Difference:
    """Compare what a run recorded with its own replay."""
    if run.timeline is None:
        raise RunError(
            f"{run.folder.path} cannot be recomputed: {run.problem}",
            "Put its dataset back, or give a second run to compare it with",
        )
    notes = [f"{run.name} is training: compared up to its last update"] if run.running else []
    updates, naming = run.updates, naming_of(run.model)
    kind = naming.architecture
    begin = run.timeline.first
    if begin:
        notes.append(f"the journal begins after update {begin}: earlier updates were dropped")
    kernels = run.kernels
    outside = Difference(runs=(str(run.folder.path),), same=True, cause="")
    same, checked = begin, 0
    saved = set(run.versions)
    steps = run.timeline.steps(begin + 1, updates.last) if updates.last > begin else iter(())
    seen: Step | None = None
    for step in steps:
        version = step.record.version
        recorded = updates.fingerprint(version)
        if recorded is not None:
            checked += 1
            alike = recorded == fingerprint(step.after)
        elif version in saved:
            weights = run.weights(version)
            alike = weights is None or same_weights(weights, step.after, kind)
        else:
            continue
        if version in saved and alike and (weights := run.weights(version)) is not None:
            alike = same_weights(weights, step.after, kind)
        if not alike:
            seen = step
            break
        same = version
    total = updates.last - begin
    checkpoints = sum(begin <= version <= updates.last for version in saved)
    how = f"{checked} by fingerprints, {checkpoints} checkpoints"
    method = f"{total} updates were recomputed, {how}"
    outside = replace(outside, compared=updates.last, method=method, after=same)
    if seen is None:
        cause = f"nothing differs: the replay has the same bits up to update {same}"
        return replace(outside, cause=cause, notes=tuple(notes))
    update = seen.record.version
    outside = replace(
        outside, same=False, compared=update,
        method=f"{update - begin} updates were recomputed, {checked} compared by fingerprints",
    )  # fmt: skip
    if same != update - 1:
        return replace(
            outside, notes=tuple(notes), distances=tuple(_from_replay(run, {update: seen.after})),
            cause=f"the run departs from its replay between the updates {same} and {update}; "
            "without fingerprints the very update is unknown",
        )  # fmt: skip
    side = recomputed(run, update, _again(seen, steps))
    there = update_difference((side,), naming)
    if side.other_kernel:
        cause = (
            f"another kernel: the run was computed by {', '.join(kernels)}, which this process "
            "does not multiply by"
        )
    else:
        cause = cause_of_fault(side, run.name, alone=True)
    distances = _from_replay(run, side.replayed)
    if side.actual is not None and update not in run.versions:
        distances = [_distance(update, side.replayed[update], side.actual), *distances]
    return replace(
        outside, update=update, there=there, cause=cause, notes=tuple(notes),
        departing=(run.name,), faults=side.faults, distances=tuple(distances),
    )  # fmt: skip


def _again(step: Step, later: Iterable[Step]) -> Iterator[Step]:
    """A step that has been taken already, and those after it."""
    yield step
    yield from later


def _incomparable(one: RecordedRun, other: RecordedRun) -> str:
    """Why two runs have W of different shapes or kinds; "" if they have not."""
    mine, theirs = one.model, other.model
    if mine.model != theirs.model:
        return f"the models are {mine.model} and {theirs.model}"
    if mine.weights.shape != theirs.weights.shape:
        return f"W has the shapes {mine.weights.shape} and {theirs.weights.shape}"
    if mine.weights.dtype != theirs.weights.dtype:
        return f"W is {mine.weights.dtype} and {theirs.weights.dtype}"
    return ""


def _shared(one: RecordedRun, other: RecordedRun) -> int:
    """Updates that both runs have from the same folder."""
    shared = 0
    for (mine, first), (theirs, second) in zip(one.chain, other.chain, strict=False):
        if mine.path != theirs.path:
            break
        ends = [end for end in (first, second) if end is not None]
        shared = min(ends) if ends else min(one.updates.last, other.updates.last)
        if first != second:
            break
    return shared


def _with_use(
    changed: Sequence[ChangedRow], one: RecordedRun, other: RecordedRun
) -> tuple[ChangedRow, ...]:
    """The same rows, with the first updates that they take part in."""
    numbers = {row.example for row in changed}
    mine, theirs = first_use(one, numbers), first_use(other, numbers)
    nowhere = (None, None)
    used = [
        replace(
            row,
            used=(mine.get(row.example, nowhere)[0], theirs.get(row.example, nowhere)[0]),
            slot=mine.get(row.example, nowhere)[1],
        )
        for row in changed
    ]
    return tuple(sorted(used, key=lambda row: (row.used[0] is None, row.used[0] or 0)))


def _method(fingerprints: int, checkpoints: int, replayed: int) -> str:
    """How W was compared."""
    parts = []
    if fingerprints:
        parts.append(f"{fingerprints} updates by fingerprints")
    if checkpoints:
        parts.append(f"{checkpoints} checkpoints")
    if replayed:
        parts.append(f"{replayed} updates recomputed")
    return ", ".join(parts) or "nothing could be compared"


def _guess(found: Difference) -> str:
    """A cause without a recomputation."""
    if found.record is not None and found.record == found.update:
        return f"the records differ from update {found.record} on"
    if matter := [setting.name for setting in found.settings if setting.matters]:
        return f"settings that differ: {', '.join(matter)}"
    if found.data is not None:
        return "the datasets differ"
    if found.versions:
        return f"versions that differ: {', '.join(pair.name for pair in found.versions)}"
    return "unknown: the update cannot be recomputed"


def _distance(update: int, first: Floats, second: Floats) -> Distance:
    one, other = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(all="ignore"):
        gap, norm = np.linalg.norm(one - other), np.linalg.norm(one)
        relative = float(gap / norm) if norm else float(gap > 0)
        return Distance(update, relative, float(np.abs(one - other).max()))


def _at_checkpoints(one: RecordedRun, other: RecordedRun, begin: int) -> Iterator[Distance]:
    """Distances at the checkpoints that both have, from an update on."""
    for version in sorted(set(one.versions) & set(other.versions)):
        if version < begin:
            continue
        mine, theirs = one.weights(version), other.weights(version)
        if mine is not None and theirs is not None:
            yield _distance(version, mine, theirs)


def _from_replay(run: RecordedRun, replayed: dict[int, Floats]) -> list[Distance]:
    """Distances between the checkpoints of a run and its replay."""
    found = []
    for version, weights in sorted(replayed.items()):
        if version in run.versions and (saved := run.weights(version)) is not None:
            found.append(_distance(version, weights, saved))
    return found


def _nearby(left: Side, right: Side) -> list[Distance]:
    """Distances after each of the updates from the first difference on."""
    found = []
    if left.actual is not None and right.actual is not None:
        found.append(_distance(left.update, left.actual, right.actual))
    if left.departs or right.departs:
        return found  # what follows was computed from another W
    for version in sorted(set(left.replayed) & set(right.replayed)):
        if version > left.update:
            found.append(_distance(version, left.replayed[version], right.replayed[version]))
    return found


def _merged(near: list[Distance], far: list[Distance]) -> list[Distance]:
    known = {distance.update: distance for distance in [*near, *far]}
    return [known[update] for update in sorted(known)]
