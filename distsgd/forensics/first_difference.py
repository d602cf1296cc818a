"""The first update after which two histories have different W, without a replay if possible."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from distsgd.errors import DistsgdError, RunError
from distsgd.forensics.recorded import RecordedRun, Updates

__all__ = ["FirstDifference", "first_difference", "first_other_record"]


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where two runs part.

    Attributes:
        same_until: the last update after which W is known to be the same; None if none is.
        update: the first update after which it is known to differ; None if none is.
        compared: the last update that was compared at all.
        by_fingerprints: updates that were compared by fingerprints.
        by_checkpoints: checkpoints of both that were compared.
        replayed: updates of each that were recomputed for it.
        note: what kept this from being exact; "" if nothing did.
    """

    same_until: int | None
    update: int | None
    compared: int
    by_fingerprints: int = 0
    by_checkpoints: int = 0
    replayed: int = 0
    note: str = ""

    @property
    def exact(self) -> bool:
        """Whether it is known to be that very update, or that there is no difference."""
        if self.update is None:
            return True
        if self.update == 0:
            return True
        return self.same_until == self.update - 1


def first_difference(first: RecordedRun, second: RecordedRun) -> FirstDifference:
    """Compare W after every update that both runs have.

    Fingerprints decide where both journals have them. Elsewhere checkpoints that both have are
    searched by bisection, which takes W to differ from its first difference on, and the updates
    between two of them are recomputed.
    """
    one, other = first.updates, second.updates
    end = min(one.last, other.last)
    known, unlike, printed = _by_fingerprints(one, other)
    common = sorted(set(first.versions) & set(second.versions))
    low = -1 if known is None else known
    high = end + 1 if unlike is None else unlike
    between = [version for version in common if low < version < high]
    position = bisect_left(
        between, True, key=lambda version: not _same_weights(first, second, version)
    )
    looked = len(between).bit_length()
    if position:
        known = between[position - 1]
    if position < len(between):
        unlike = between[position]
    settled = unlike is None or known is None or unlike == known + 1
    if unlike is not None and known is None:
        # Both begin there, or W differs from the start on.
        return FirstDifference(
            same_until=None, update=unlike, compared=end, by_fingerprints=printed,
            by_checkpoints=looked,
            note="" if unlike == 0 else "the journals begin later, and W differs already there",
        )  # fmt: skip
    last = end if unlike is None else unlike
    if settled and not (unlike is None and known is not None and known < end):
        return FirstDifference(
            same_until=known, update=unlike, compared=max(end, known or 0),
            by_fingerprints=printed, by_checkpoints=looked,
        )  # fmt: skip
    assert known is not None
    return _by_replay(first, second, known, last, unlike, (end, printed, looked))


def _by_fingerprints(one: Updates, other: Updates) -> tuple[int | None, int | None, int]:
    """The last update up to which fingerprints agree, the first that differs, and their number."""
    begin, end = max(one.begin, other.begin), min(one.last, other.last)
    if end <= begin:
        return None, None, 0
    mine, theirs = (
        slice(begin - one.begin, end - one.begin),
        slice(begin - other.begin, end - other.begin),
    )
    both = one.printed[mine] & other.printed[theirs]
    unlike = np.flatnonzero(both & (one.prints[mine] != other.prints[theirs]))
    first = int(unlike[0]) if len(unlike) else end - begin
    alike = np.flatnonzero(both[:first])
    known = begin + 1 + int(alike[-1]) if len(alike) else None
    return known, (begin + 1 + first if len(unlike) else None), int(both.sum())


def _same_weights(first: RecordedRun, second: RecordedRun, version: int) -> bool:
    """Whether the checkpoints of both have the same W; those that cannot be read count as same."""
    one, other = first.weights(version), second.weights(version)
    return one is None or other is None or one.tobytes() == other.tobytes()


def _by_replay(
    first: RecordedRun, second: RecordedRun, known: int, last: int, unlike: int | None,
    counts: tuple[int, int, int],
) -> FirstDifference:  # fmt: skip
    """Recompute both in step from the last common state on."""
    end, printed, looked = counts
    found = unlike
    count = 0
    try:
        if first.timeline is None or second.timeline is None:
            missing = first if first.timeline is None else second
            raise RunError(
                f"the dataset of {missing.name} cannot be opened: {missing.problem}", "Fetch it"
            )
        pair = (first.timeline.steps(known + 1, last), second.timeline.steps(known + 1, last))
        for one, other in zip(*pair, strict=True):
            count += 1
            if one.after.tobytes() != other.after.tobytes():
                found = one.record.version
                break
            known = one.record.version
    except DistsgdError as error:
        return FirstDifference(
            same_until=known, update=unlike, compared=known if unlike is None else end,
            by_fingerprints=printed, by_checkpoints=looked, replayed=count,
            note=f"it could not be found exactly: {error.problem}",
        )  # fmt: skip
    note = ""
    if found is not None and found == unlike and known == unlike:
        known = unlike - count
        note = "recomputed here, both have the same W: one of them departs from its own journal"
    return FirstDifference(
        same_until=known, update=found, compared=end, by_fingerprints=printed,
        by_checkpoints=looked, replayed=count, note=note,
    )  # fmt: skip


def first_other_record(first: RecordedRun, second: RecordedRun) -> int | None:
    """The first update whose records differ in step, pieces, versions read, or their order."""
    one, other = first.updates, second.updates
    begin, end = max(one.begin, other.begin), min(one.last, other.last)
    unlike = np.flatnonzero(
        one.keys[begin - one.begin : end - one.begin]
        != other.keys[begin - other.begin : end - other.begin]
    )
    return begin + 1 + int(unlike[0]) if len(unlike) else None
