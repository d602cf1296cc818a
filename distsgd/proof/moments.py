"""Points in the history of a run as a user names them: an update, the end of an epoch, the last."""

from __future__ import annotations

import re

from distsgd.core.server import Ledger
from distsgd.errors import UsageError
from distsgd.proof.timeline import Timeline
from distsgd.runs.journal_check import JournalCheck, beginning_of
from distsgd.runs.lineage import lineage
from distsgd.runs.metrics import epoch_rows, read_metrics
from distsgd.runs.opened_run import OpenedRun

__all__ = ["MOMENTS", "end_of_epoch", "is_moment", "update_of"]

MOMENTS = (
    "a number, last, last-N, epoch:N (the last update of an epoch, from 1), or a time of training "
    "such as 90s or 2m"
)
"""What `update_of` understands."""

_FROM_LAST = re.compile(r"last-(\d{1,15})", re.ASCII)
_EPOCH = re.compile(r"epoch:(\d{1,15})", re.ASCII)
_TIME = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_NUMBER = re.compile(r"-?\d{1,15}", re.ASCII)


def is_moment(text: str) -> bool:
    """Whether a text has the form of what `update_of` understands."""
    forms = (_FROM_LAST, _EPOCH, _TIME, _NUMBER)
    return text == "last" or any(form.fullmatch(text) for form in forms)


def update_of(run: OpenedRun, named: int | str, timeline: Timeline | None = None) -> int:
    """The number of the update that a user names, which the run has.

    Args:
        run: the run.
        named: see `MOMENTS`. A negative number counts from the end: -1 is the last. 0 is the
            start, before the first update.
        timeline: of the run, where there is one already.

    Raises:
        UsageError: it names no update of the run.
        RunError: the run is damaged.
    """
    text = str(named).strip()
    timeline = Timeline(run) if timeline is None else timeline
    if (match := _EPOCH.fullmatch(text)) is not None:
        return end_of_epoch(run, int(match[1]))
    if (match := _TIME.fullmatch(text)) is not None:
        return at_time(run, float(match[1]) * _SECONDS[match[2]])
    if text == "last":
        return timeline.last
    if (match := _FROM_LAST.fullmatch(text)) is not None:
        number = timeline.last - int(match[1])
    elif _NUMBER.fullmatch(text):
        number = int(text)
        if number >= 0:
            return number  # the timeline refuses one that the run lacks
        number += timeline.last + 1
    else:
        raise UsageError(f"{text or 'nothing'} names no update", f"Give {MOMENTS}")
    if number < 0:
        raise UsageError(
            f"{run.folder.path} has no update {text}: its last is {timeline.last}",
            f"Give {MOMENTS}",
        )
    return number


def at_time(run: OpenedRun, seconds: float) -> int:
    """The last update that the metrics record within the first seconds of training; else 0.

    Raises:
        RunError: the metrics are damaged, or the parent of a fork is gone.
    """
    found = 0
    for segment in lineage(run):
        for record in read_metrics(segment.run.folder.path / "metrics.jsonl"):
            step = record.get("step", record.get("version"))
            if record.get("kind") not in ("progress", "epoch", "ended") or step is None:
                continue
            if segment.last is not None and step > segment.last:
                continue
            if record["seconds"] <= seconds:
                found = max(found, int(step))
    return found


def end_of_epoch(run: OpenedRun, epoch: int) -> int:
    """The update with which all examples of an epoch have been applied; 0 for epoch 0.

    Raises:
        UsageError: the run has no such epoch, or has not finished it.
        RunError: the run is damaged.
    """
    if not epoch:
        return 0
    known = 0
    for segment in lineage(run):
        rows = epoch_rows(segment.run.folder.path / "metrics.jsonl")
        ends = {int(row["epoch"]): int(row["version"]) for row in rows}
        if segment.last is not None:
            ends = {number: version for number, version in ends.items() if version <= segment.last}
        if epoch in ends:
            return ends[epoch]
        known = max([known, *ends])
    return _by_journal(run, epoch, known)


def _by_journal(run: OpenedRun, epoch: int, known: int) -> int:
    """The same by the journal: a run that was killed lacks metrics of its last epochs.

    Args:
        run: the run.
        epoch: from 1.
        known: the last epoch whose end is known.
    """
    base = run.base(run.journal().begin)
    begin = beginning_of(run, base)
    check = JournalCheck(run, begin)
    steps = check.plan.steps_per_epoch
    if Ledger.from_json(begin.ledger.to_json()).whole < epoch * steps:
        for _ in check.follow(run.entries(begin.mark)):
            if check.updates.ledger.whole >= epoch * steps:
                return check.updates.ledger.version
        known = max(known, check.updates.ledger.whole // steps)
    raise UsageError(
        f"{run.folder.path} has no end of epoch {epoch}: it knows those of epochs up to {known}",
        f"Give {MOMENTS}",
    )
