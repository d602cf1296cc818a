"""The updates of a fork in the order of its parent: a training that follows a journal.

With several workers an asynchronous policy makes other updates each time. A fork that follows the
journal of its parent has the same ones (leases, versions read, order of contributions), computed
with its own settings, in one process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.core.arrays import finite
from distsgd.core.fingerprint import fingerprint
from distsgd.core.messages import Applied, Diverged
from distsgd.engine.events import (
    Ended,
    EpochEnded,
    Event,
    Progress,
    Saved,
    Statistics,
    Stopwatch,
    Updated,
)
from distsgd.engine.job import Job, Snapshot
from distsgd.proof.replayer import Replayer, Step, records_of
from distsgd.runs import Entry, Forked, Record, Resized, Resumed
from distsgd.runs.checkpoint import resumed_settings
from distsgd.runs.journal_check import Beginning, JournalCheck
from distsgd.runs.opened_run import OpenedRun

__all__ = ["RecordEnds", "RecordedOrder", "lines_after", "lines_left"]


class RecordEnds(Exception):
    """The recorded lines of one fleet have been followed to their end.

    Attributes:
        resumed: what the parent did then; None if it recorded nothing more that can be followed.
    """

    def __init__(self, resumed: Resumed | None) -> None:
        super().__init__("the record ends")
        self.resumed = resumed


def lines_after(parent: OpenedRun, begin: Beginning) -> list[Entry]:
    """The lines of a run after a place in its journal, each checked.

    Raises:
        JournalError: names the first invalid line.
    """
    check = JournalCheck(parent, begin)
    lines = check.follow(parent.entries(begin.mark))
    return [entry for entry, _ in lines if not isinstance(entry, Forked)]


def lines_left(own: Sequence[Entry], parents: Sequence[Entry]) -> list[Entry] | None:
    """What a fork has not followed yet; None if it has left the recorded order.

    Args:
        own: lines of its journal, of a bounded one the last.
        parents: those of its parent since the fork.
    """
    mine = [entry for entry in own if not isinstance(entry, Forked)]
    known = next((entry.version for entry in mine if isinstance(entry, Record)), None)
    there = 0
    if known is not None:
        mine = mine[mine.index(records_of(mine)[0]) :]
        while there < len(parents):
            entry = parents[there]
            if isinstance(entry, Record) and entry.version >= known:
                break
            there += 1
    followed = parents[there : there + len(mine)]
    same = [_plain(entry) for entry in mine] == [_plain(entry) for entry in followed]
    return list(parents[there + len(mine) :]) if same else None


def _plain(entry: Entry) -> object:
    """A line without what a fork may change of it, and without what follows from W."""
    if isinstance(entry, Resumed):
        return entry.version
    if isinstance(entry, Record):
        return entry.version, entry.step, entry.contributions, entry.requeued
    return entry


@dataclass
class _Tally:
    loss: float = 0.0
    correct: int = 0
    examples: int = 0

    def add(self, step: Step) -> None:
        self.loss += step.loss * step.examples
        self.correct += step.correct
        self.examples += step.examples

    def take(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last call."""
        count = max(1, self.examples)
        means = self.loss / count, self.correct / count
        self.loss, self.correct, self.examples = 0.0, 0, 0
        return means


class RecordedOrder:
    """Follows the lines of a journal, those of one fleet at a time.

    Args:
        run: the fork.
        entries: lines of its parent, from where it stands.
        changed: settings that were given for the fork; what the parent did with them later does
            not count.

    Attributes:
        entries: those that are left.
    """

    def __init__(
        self, run: OpenedRun, entries: Sequence[Entry], changed: Mapping[str, Any]
    ) -> None:
        self._run, self.entries = run, list(entries)
        self._kept = [name for name in RESUMABLE_SETTINGS if name in changed]

    def resumed(self, config: TrainConfig, entry: Resumed) -> TrainConfig:
        """The settings after a line of the parent that records a resume."""
        own = {name: getattr(config, name) for name in self._kept}
        return replace(resumed_settings(config, entry), **own)

    def events(
        self,
        config: TrainConfig,
        job: Job,
        start: Snapshot,
        stop: Callable[[], bool],
        resized: Callable[[Resized], None],
    ) -> Iterator[Event]:
        """The events of the updates up to the next resume of the parent, or to the end.

        Args:
            config: the settings of the fork here.
            job: the same for the runtime.
            start: where it stands.
            stop: asked after every update whether to end.
            resized: called with a new number of workers of the parent.

        Raises:
            RecordEnds: instead of the event `Ended`, if epochs are left then.
        """
        lines, following, after = self._next(job)
        goes_on = after is not None and "epochs" not in self._kept
        followed = _Followed(self._run, config, job, start, lines, goes_on)
        yield from followed.events(stop, resized)
        self.entries = following
        if followed.over:
            return
        yield Saved(followed.snapshot())
        if after is not None:
            own = {name: getattr(config, name) for name in self._kept}
            self.entries[0] = replace(after, **own)
        raise RecordEnds(after)

    def _next(self, job: Job) -> tuple[list[Entry], list[Entry], Resumed | None]:
        """The lines of the fleet here, those that follow, and the resume between them."""
        total, found = job.plan.total_steps, list[Entry]()
        for number, entry in enumerate(self.entries):
            if isinstance(entry, Resumed) and number:
                return found, self.entries[number:], entry
            if isinstance(entry, Record) and any(
                lease.step + lease.steps > total for _, lease in entry.contributions
            ):  # there are fewer epochs
                return found, [], None
            found.append(entry)
        return found, [], None


class _Followed:
    """The lines of one fleet as events.

    Attributes:
        over: whether the training has ended.
    """

    def __init__(
        self, run: OpenedRun, config: TrainConfig, job: Job, start: Snapshot,
        entries: Sequence[Entry], goes_on: bool,
    ) -> None:  # fmt: skip
        self._job, self._entries, self._version = job, entries, start.version
        self._replayer = Replayer(config, run.dataset, start, run.products)
        position = start.position
        self._applied = Counter(position.examples if position else {})
        self._before = position.examples_seen if position else 0
        self._seen = 0
        self._whole = math.inf if goes_on else job.plan.examples * job.plan.epochs
        self._recent, self._epoch, self._watch = _Tally(), _Tally(), Stopwatch()
        self._saved_at = 0.0
        self._statistics = Statistics()
        self.over = False

    def events(
        self, stop: Callable[[], bool], resized: Callable[[Resized], None]
    ) -> Iterator[Event]:
        """Up to the last line, or to `Ended`."""
        other = self._other_lines()
        if self._finished:
            yield self._ended(finished=True)
            return
        self._watch.run()
        for step in self._replayer.steps(self._entries):
            self._watch.pause()
            for entry in other.pop(step.record.version, ()):
                resized(entry)
            wrong = _divergence(step)
            if wrong is not None:
                state = Snapshot(step.record.version - 1, step.before.copy(), {})
                yield self._ended(diverged=wrong, now=state)
                return
            yield from self._updated(step)
            if self._finished or stop():
                yield self._ended(finished=self._finished)
                return
            self._watch.run()
        self._watch.pause()
        for entries in other.values():
            for entry in entries:
                resized(entry)

    @property
    def _finished(self) -> bool:
        return self._before + self._seen >= self._whole

    def snapshot(self) -> Snapshot:
        """The server as it is now."""
        return self._replayer.snapshot()

    def _other_lines(self) -> dict[int, list[Resized]]:
        """Version -> the numbers of workers that stand before its update."""
        found: dict[int, list[Resized]] = {}
        version = self._version
        for entry in self._entries:
            if isinstance(entry, Record):
                version = entry.version
            elif isinstance(entry, Resized):
                found.setdefault(version + 1, []).append(entry)
        return found

    def _updated(self, step: Step) -> Iterator[Event]:
        """The events of an update."""
        job, plan = self._job, self._job.plan
        epoch = plan.epoch_of(step.record.contributions[0][1].step)
        self._applied[epoch] += step.examples
        self._seen += step.examples
        self._recent.add(step)
        self._epoch.add(step)
        ends = self._applied[epoch] == plan.examples
        record, seconds = step.record, self._watch.seconds()
        applied = Applied(
            record.step, epoch, record.version, step.loss, step.correct, step.examples,
            step.learning_rate, record.contributions, record.requeued, ends,
            fingerprint(step.after) if job.fingerprints else None,
        )  # fmt: skip
        self._statistics.count(applied)
        yield Updated(applied)
        if ends or record.version % job.log_every == 0:
            means = self._recent.take()
            yield Progress(
                record.version, epoch, *means, step.learning_rate, self._seen, seconds
            )  # fmt: skip
        if ends:
            yield EpochEnded(epoch, *self._epoch.take(), seconds, self.snapshot())
            self._saved_at = seconds
        elif job.save_seconds and seconds - self._saved_at >= job.save_seconds:
            self._saved_at = seconds
            yield Saved(self.snapshot())

    def _ended(
        self,
        *,
        finished: bool = False,
        diverged: Diverged | None = None,
        now: Snapshot | None = None,
    ) -> Ended:
        self.over = True
        given = now or self.snapshot(), self._watch.seconds(), self._seen, finished
        return Ended(*given, self._statistics, diverged)


def _divergence(step: Step) -> Diverged | None:
    """What a server says of an update whose numbers are not finite; None for any other."""
    step_of_plan, rate = step.record.step, step.learning_rate
    if not (math.isfinite(step.loss) and finite(step.gradient)):
        return Diverged(step_of_plan, step.loss, rate)
    return None if finite(step.after) else Diverged(step_of_plan, math.inf, rate)
