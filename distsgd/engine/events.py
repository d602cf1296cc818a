"""What a runtime tells its caller while it trains.

What a consistency policy cost: gradient ages, drops, requeues, waiting.

What a process does when: laps of one thread of work, for a timeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter, perf_counter_ns

from distsgd.core.messages import Applied, Decision, Diverged, Dropped, Stretch
from distsgd.core.optim import Residuals
from distsgd.core.server import ParameterServer, SampledUpdate, SplitServer
from distsgd.engine.fleet_report import FleetReport, ImageCounts, ReportTimes, done
from distsgd.engine.job import Job, Snapshot, snapshot

__all__ = [
    "Connected",
    "Ended",
    "EpochEnded",
    "Event",
    "FleetReport",
    "Happened",
    "Hung",
    "Notice",
    "Progress",
    "Recorder",
    "Saved",
    "Statistics",
    "Stopwatch",
    "Trace",
    "Track",
    "UpdateSampled",
    "Updated",
    "UpdatedByTeam",
]


@dataclass
class Statistics:
    """Counts over a run.

    Attributes:
        updates: updates applied.
        ages: age of a gradient in updates -> contributions of that age.
        dropped: pushes that were not used.
        requeued: pieces that were put off to a later update.
        waiting_seconds: worker -> seconds from asking for work to getting it.
        answering_seconds: worker -> seconds from getting work to its answer's arrival: computing,
            and the way there and back.
        busy_seconds: time the server spent on pushes and pulls.
        bytes_pushed: bytes of gradients that were sent to the server.
        let_pass: updates sampled for a recomputation that found no room to wait for it.
    """

    updates: int = 0
    ages: Counter[int] = field(default_factory=Counter)
    dropped: int = 0
    requeued: int = 0
    waiting_seconds: dict[int, float] = field(default_factory=dict)
    answering_seconds: dict[int, float] = field(default_factory=dict)
    bytes_pushed: int = 0
    busy_seconds: float = 0.0
    let_pass: int = 0

    def count(self, decision: Decision) -> None:
        """Take note of a decision of the server."""
        if isinstance(decision, Applied):
            self.updates += 1
            self.ages.update(decision.ages)
            self.requeued += len(decision.requeued)
        elif isinstance(decision, Stretch):
            self.updates += len(decision.steps)
            self.ages.update(decision.ages())
        elif isinstance(decision, Dropped):
            self.dropped += 1

    def waited(self, worker: int, seconds: float) -> None:
        """A worker has waited for work."""
        self.waiting_seconds[worker] = self.waiting_seconds.get(worker, 0.0) + seconds


Span = tuple[str, int, int]
"""What was done, and from when to when, in nanoseconds of the node's monotonic clock."""

MOST_SPANS = 1_000_000
"""Kept of one track; what comes after is left out, so that a long run does not fill the memory."""


@dataclass(frozen=True)
class Track:
    """One line of the timeline.

    Attributes:
        name: of the process, such as "worker 0".
        spans: what it did, in order.
    """

    name: str
    spans: tuple[Span, ...]


class Trace:
    """Takes the time between one call and the next.

    Args:
        on: False makes every call do nothing.
    """

    def __init__(self, on: bool) -> None:
        self._on, self._last = on, perf_counter_ns()
        self._spans: list[Span] = []

    def start(self) -> None:
        """What has been done until now belongs to nothing."""
        if self._on:
            self._last = perf_counter_ns()

    def lap(self, name: str) -> None:
        """What has been done since the call before was this."""
        if self._on and len(self._spans) < MOST_SPANS:
            now = perf_counter_ns()
            self._spans.append((name, self._last, now))
            self._last = now

    def track(self, name: str) -> Track:
        """All laps, as those of the process of this name."""
        return Track(name, tuple(self._spans))


@dataclass(frozen=True)
class Progress:
    """Some updates have been applied.

    Attributes:
        step: updates applied so far.
        epoch: epoch of the last of them, from 0.
        loss: mean loss (without regularisation) over the updates since the last event.
        accuracy: share of their examples classified rightly before each update.
        learning_rate: of the last of them.
        examples_seen: examples used so far.
        seconds: spent on steps so far.
        examples_per_second: over the steps of this session alone, of a run that was resumed.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    examples_seen: int
    seconds: float
    examples_per_second: float = 0.0


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is over; loss and accuracy as in `Progress`, over the whole epoch."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    snapshot: Snapshot


@dataclass(frozen=True)
class Saved:
    """The server within an epoch, for a checkpoint."""

    snapshot: Snapshot


@dataclass(frozen=True)
class Ended:
    """Training is over: finished, stopped on request, or diverged.

    Attributes:
        snapshot: the server after its last update.
        seconds: spent on steps.
        examples_seen: examples used.
        finished: whether every example of every epoch was applied.
        statistics: what the consistency policy cost.
        diverged: what was found, if the loss was not finite.
        tracks: the timeline of each process, if they were kept.
    """

    snapshot: Snapshot
    seconds: float
    examples_seen: int
    finished: bool
    statistics: Statistics
    diverged: Diverged | None = None
    tracks: tuple[Track, ...] = ()


@dataclass(frozen=True)
class Connected:
    """The workers are connected to the server, and begin.

    Attributes:
        channels: name of the channel of each worker.
        hosts: the address of the node that each is on.
        servers: and of those that the servers are on.
    """

    channels: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Who is where, and how they reach the servers."""
        by_place: dict[tuple[str, str], list[str]] = {}
        for number, place in enumerate(zip(self.hosts, self.channels, strict=True)):
            by_place.setdefault(place, []).append(str(number))
        who = "; ".join(
            f"worker{'s' if numbers[1:] else ''} {', '.join(numbers)} on {host} by {channel}"
            for (host, channel), numbers in by_place.items()
        )
        return f"server{'s' if self.servers[1:] else ''} on {', '.join(self.servers)}; {who}"


@dataclass(frozen=True)
class Updated:
    """An update, for the journal.

    Attributes:
        update: the server's decision.
    """

    update: Applied


@dataclass(frozen=True, eq=False)
class UpdatedByTeam:
    """Updates of a team, for the journal; a training yields them one by one.

    Attributes:
        stretch: the updates.
    """

    stretch: Stretch


@dataclass(frozen=True)
class UpdateSampled:
    """A sampled update, to be recomputed.

    Attributes:
        sampled: what the server did.
    """

    sampled: SampledUpdate


@dataclass(frozen=True)
class Notice:
    """Something that the user should know of, and that does not end the training.

    Attributes:
        text: what it is.
        kernel: another kernel than the driver's, by which a worker multiplies; else "".
        kind: what it is kept as in the run's folder, one of `EVENT_KINDS`.
    """

    text: str
    kernel: str = ""
    kind: str = "notice"


@dataclass(frozen=True)
class Happened:
    """Something to be written to the run folder, but not shown to the user at once.

    Attributes:
        kind: one of `EVENT_KINDS`.
        text: what it is.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Hung:
    """Workers have had their leases for so long that others are to take their places.

    For who starts workers; a training does not yield it.
    """

    workers: tuple[int, ...]


Event = (
    Notice | Happened | Connected | Updated | UpdatedByTeam | UpdateSampled | Progress | EpochEnded
    | Saved | FleetReport | Hung | Ended
)  # fmt: skip


class Stopwatch:
    """Seconds spent while running."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._since: float | None = None

    def run(self) -> None:
        """Start, or continue."""
        if self._since is None:
            self._since = perf_counter()

    def pause(self) -> None:
        """Stop counting."""
        self._spent, self._since = self.seconds(), None

    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._spent + (perf_counter() - self._since if self._since else 0.0)


class _Tally:
    """Loss and hits since the last event."""

    def __init__(self) -> None:
        self.loss, self.correct, self.examples = 0.0, 0, 0

    def add(self, update: Applied) -> None:
        self.loss += update.loss * update.examples
        self.correct += update.correct
        self.examples += update.examples

    def add_all(self, stretch: Stretch, first: int, last: int) -> None:
        """The updates of a stretch from one place to another."""
        part = slice(first, last)
        for loss in (stretch.loss[part] * stretch.examples[part]).tolist():
            self.loss += loss
        self.correct += int(stretch.correct[part].sum())
        self.examples += int(stretch.examples[part].sum())

    def take(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last call."""
        count = max(1, self.examples)
        means = self.loss / count, self.correct / count
        self.__init__()  # type: ignore[misc]
        return means


class Recorder:
    """Turns the decisions of a server into events.

    Args:
        job: the job that is trained.
        server: its server.
        seconds: seconds spent on steps so far.
        residuals: of the workers, at the version of W as it is now, if they are in this process.
    """

    def __init__(
        self,
        job: Job,
        server: ParameterServer | SplitServer,
        seconds: Callable[[], float],
        residuals: Callable[[], Residuals | None] = dict,
    ) -> None:
        self._job, self._server, self._seconds = job, server, seconds
        self._residuals = residuals
        self._recent, self._epoch = _Tally(), _Tally()
        self._examples_seen = 0
        self._recorded_at = 0.0  # seconds of steps
        self._sampler = server.sampler
        self._images = ImageCounts(job.plan)
        self._report_times = ReportTimes(seconds)
        self.statistics = Statistics()

    @property
    def report_due(self) -> bool:
        """Whether it is time for a `FleetReport`."""
        return self._report_times.due

    def report(
        self,
        computing: Mapping[int, float],
        pushing: Mapping[int, float],
        waiting: Mapping[int, float],
        states: Mapping[int, str],
    ) -> FleetReport:
        """What the workers have done so far.

        Args:
            computing: worker -> seconds.
            pushing: likewise, and part of those of waiting.
            waiting: likewise, from an answer to the next work.
            states: worker -> what it does now.
        """
        self._report_times.made()
        workers = done(self._images, computing, pushing, waiting, states)
        counts = self.statistics
        return FleetReport(
            self._server.version, self._seconds(), workers, dict(counts.ages), counts.bytes_pushed
        )

    def due(self, decision: Decision) -> bool:
        """Whether a decision gives rise to an event that tells of now: it is to be recorded now."""
        if isinstance(decision, Applied):
            if self._sampler is not None and self._sampler.has_news:
                return True
            return decision.ends_epoch or decision.version % self._job.log_every == 0
        return isinstance(decision, Diverged | Stretch)

    def record(self, decision: Decision) -> list[Event]:
        """The events that a decision gives rise to."""
        self.statistics.count(decision)
        self._images.count(decision)
        if isinstance(decision, Diverged):
            return [self.ended(decision)]
        if isinstance(decision, Stretch):
            return list(self._record_all(decision))
        if not isinstance(decision, Applied):
            return []
        self._recorded_at = self._seconds()
        self._recent.add(decision)
        self._epoch.add(decision)
        self._examples_seen += decision.examples
        ends_epoch = decision.ends_epoch
        events: list[Event] = [Updated(decision)]
        if self._sampler is not None and (found := self._sampler.take(decision.version)):
            events.append(UpdateSampled(found))
        if ends_epoch or decision.version % self._job.log_every == 0:
            version, rate = decision.version, decision.learning_rate
            events.append(self._progress(version, decision.epoch, rate, self._seconds()))
        if ends_epoch:
            events.append(self._epoch_ended(decision.epoch))
        # One push can bring about several updates: the last of them is the end.
        if self._server.finished and decision.version == self._server.version:
            events.append(self.ended())
        return events

    def _record_all(self, stretch: Stretch) -> Iterator[Event]:
        """The events of a stretch; the time since the last is shared out evenly."""
        yield UpdatedByTeam(stretch)
        count, every = len(stretch.steps), self._job.log_every
        before, self._recorded_at = self._recorded_at, self._seconds()
        each = max(0.0, self._recorded_at - before) / count
        first = 0
        while first < count:
            version = stretch.version + first
            last = min(count, first + every - version % every)
            self._recent.add_all(stretch, first, last)
            self._epoch.add_all(stretch, first, last)
            self._examples_seen += int(stretch.examples[first:last].sum())
            version, first = stretch.version + last, last
            if version % every == 0 or (last == count and stretch.ends_epoch):
                rate = float(stretch.learning_rates[last - 1])
                yield self._progress(version, stretch.epoch, rate, before + last * each)
        if stretch.ends_epoch:
            yield self._epoch_ended(stretch.epoch)
        if self._server.finished and stretch.end == self._server.version:
            yield self.ended()

    def _progress(self, version: int, epoch: int, rate: float, seconds: float) -> Progress:
        return Progress(version, epoch, *self._recent.take(), rate, self._examples_seen, seconds)

    def _epoch_ended(self, epoch: int) -> EpochEnded:
        return EpochEnded(epoch, *self._epoch.take(), self._seconds(), self._snapshot())

    def _snapshot(self) -> Snapshot:
        return self.with_residuals(snapshot(self._server))

    def with_residuals(self, now: Snapshot) -> Snapshot:
        """A snapshot of the server as it is now, with the residuals that belong to it."""
        return replace(now, residuals=self._residuals())

    def ended(self, diverged: Diverged | None = None) -> Ended:
        """The last event, as things are now."""
        finished = self._server.finished
        if self._sampler is not None:
            self.statistics.let_pass = self._sampler.skipped
        now = self._snapshot()
        seconds, seen = self._seconds(), self._examples_seen
        return Ended(now, seconds, seen, finished, self.statistics, diverged)
