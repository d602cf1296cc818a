"""A parameter server that many threads may call: one lock around the state machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from distsgd.core.messages import (
    Decision,
    Dismiss,
    Grant,
    Lease,
    Message,
    Push,
    ResidualReport,
    Stand,
)
from distsgd.core.optim import shared_out
from distsgd.core.server import Keep
from distsgd.engine.events import (
    Ended,
    EpochEnded,
    Event,
    Hung,
    Notice,
    Recorder,
    Saved,
    Stopwatch,
    Trace,
    UpdateSampled,
)
from distsgd.engine.fleet_report import GONE, IN_TEAM, FleetReport
from distsgd.engine.follower import DecisionLog
from distsgd.engine.job import Job, Snapshot
from distsgd.engine.lease_times import LeaseTimes
from distsgd.engine.pending_replies import PendingReplies
from distsgd.engine.snapshots import HeldEvents, TimedSnapshots
from distsgd.engine.team_host import TeamHost
from distsgd.transport.base import Answer, Reply
from distsgd.transport.framing import Entry

__all__ = ["ServerHost"]

_MOST = 64
"""Decisions that are kept before they are turned into events."""


class ServerHost:
    """Carries out the server's decisions: answers workers, keeps events for the driver.

    Args:
        job: what to train.
        start: where to start.
        workers: number of workers that are expected.

    Attributes:
        trace: its timeline.
    """

    def __init__(self, job: Job, start: Snapshot, workers: int) -> None:
        self._server = job.coordinator(start, own_places=job.has_residuals)
        self._watch = Stopwatch()
        self._recorder = Recorder(job, self._server, self._watch.seconds)
        self._timed = TimedSnapshots(self._server, job.save_seconds, self._watch.seconds)
        # One lock, with a condition for each kind of waiter: waking one in vain costs time.
        lock = threading.RLock()
        self._decided = threading.Condition(lock)  # followers
        self._news = threading.Condition(lock)  # the driver
        self._lock = lock
        self._events = HeldEvents()
        self._replies = PendingReplies(threading.Condition(lock), self._events.request)
        self._unrecorded: list[Decision] = []
        self._team = TeamHost(self._server, job, self._replies.put)
        self.bell, self._stopping = self._team.bell, False
        self._followers = job.servers - 1
        self._log = DecisionLog(self._followers)
        self._has_residuals, self._job, self._workers = job.has_residuals, job, workers
        self._attached: dict[int, Callable[[Reply | None], None]] = {}
        # Residuals of workers that have not answered yet.
        self._shares = shared_out(start.residuals or {}, workers) if job.has_residuals else {}
        self._gone: set[int] = set()
        self._heard: set[int] = set()
        self._dead: dict[int, int] = {}  # worker -> the latest incarnation that has died
        self._times = LeaseTimes(job.hang_seconds)
        self.trace = Trace(job.trace)
        self._over = False
        self._failure: Exception | None = None
        with lock:
            for worker in range(workers):
                self._carry_out(self._server.joined(worker))
            if self._server.finished:  # the run was killed after its last update
                self._end(self._recorder.ended())

    def exchange(self, worker: int, message: Message | None, size: int) -> Answer | None:
        """A worker pushes and pulls; see `distsgd.transport.base.ServerPort.exchange`."""
        return self._replies.exchange(worker, lambda: self.submit(worker, message, size))

    def submit(self, worker: int, message: Message | None, size: int) -> None:
        """See `distsgd.transport.base.ServerPort.submit`."""
        try:
            with self._lock:
                self._submit(worker, message, size)
        except Exception as error:
            with self._lock:
                self._failure = error
                self._news.notify_all()
            raise

    @contextmanager
    def attached(self, worker: int, give: Callable[[Reply | None], None]) -> Iterator[None]:
        """See `distsgd.transport.base.ServerPort.attached`."""
        with self._replies.attached(worker, give):
            self._attached[worker] = give
            with self._lock:
                self._carry_out(self._team.came(worker))
            try:
                yield
            finally:
                with self._lock:
                    if self._attached.get(worker) is give:  # else a successor has come
                        self._carry_out(self._team.went(worker))

    def rung(self) -> None:
        """See `distsgd.transport.base.ServerPort.rung`."""
        try:
            with self._lock:
                now = perf_counter()
                self._advance_team()
                self._recorder.statistics.busy_seconds += perf_counter() - now
        except Exception as error:
            with self._lock:
                self._failure = error
                self._news.notify_all()
            raise

    def _advance_team(self) -> None:
        """Record what the team has made, and have it go on or stop."""
        team = self._team
        if not team.standing:
            return
        self.trace.start()
        stretch = team.read(perf_counter())
        goes_on, due = not team.in_trouble, self._timed.due
        if team.paused:  # before what it has made ends an epoch, of which W is kept
            team.bring_home()
            # What is recorded below is of W as it is home: the team need not wait for that.
            if goes_on and not (due or team.revoked):
                goes_on = team.extend()
        elif due:
            team.ring_at_end()
        elif goes_on and team.hungry and not team.revoked:
            goes_on = team.extend()
        if stretch is not None:
            self._carry_out([stretch])
        if goes_on and due and team.paused and not team.revoked:
            self._record()  # the snapshot
            goes_on = team.extend()
        if not goes_on:
            team.revoke(perf_counter())

    def _leave_team(self, worker: int, *, dead: bool = False) -> None:
        """A member has left the team or died; after the last, others do what it has not done."""
        team = self._team
        team.revoke(perf_counter())
        if team.leave(worker, dead=dead):
            self._close_team()

    def _close_team(self) -> None:
        team, now = self._team, perf_counter()
        stretch = team.read(now)
        team.bring_home()
        for worker, seconds in team.waits().items():
            self._replies.waited_inside(worker, seconds, now)
        left, late = team.close()
        if stretch is not None:
            self._carry_out([stretch])
        self._carry_out(self._server.disbanded())
        for worker in late:  # it has its turn as if it held a lease
            self._times.granted(worker, Lease(0, 0, self._job.plan.most_slots, 0), now)
            self._carry_out(self._server.overdue(worker))
        if self._stopping:
            self._stop()
        for worker in left:
            self._carry_out(self._server.pull(worker))

    def _submit(self, worker: int, message: Message | None, size: int) -> None:
        self._watch.run()
        self._gone.discard(worker)
        self._heard.add(worker)
        now = perf_counter()
        self.trace.start()
        if message is None:
            self._replies.ask(worker, now)
            if self._team.inside(worker):
                self._leave_team(worker)
            else:
                self._times.lost(worker)
                without_it = self._team.standing
                self._carry_out(self._server.pull(worker))
                if without_it:  # it comes to a team that works without it
                    self._team.revoke(now)
        elif isinstance(message, ResidualReport):
            self._events.reported(worker, message)
            self._news.notify_all()
            self._replies.ask(worker, now)
        else:
            self._take(worker, message, size, now)
        self._recorder.statistics.busy_seconds += perf_counter() - now

    def _take(self, worker: int, push: Push, size: int, now: float) -> None:
        self._replies.ask(worker, now)
        self._recorder.statistics.bytes_pushed += size
        self._times.answered(worker, now)
        version = self._server.version
        decisions = self._server.exchange(worker, push)
        self._replies.pushed(worker, perf_counter() - now)
        self.trace.lap("add" if self._server.version == version else "update")
        if decisions:
            self._carry_out(decisions)

    def events(self, timeout: float) -> list[Event]:
        """The events since the last call.

        Waits ``timeout`` seconds, so that calls are few, or until an event is urgent.

        Raises:
            Exception: an error of an exchange, passed on to the driver.
        """
        with self._lock:
            self._news.wait_for(
                lambda: self._events.urgent(perf_counter()) or self._failure or self._crowded(),
                timeout,
            )
            if self._failure is not None:
                raise self._failure
            now = perf_counter()
            for worker in self._times.overdue(now):
                self._carry_out(self._server.overdue(worker))
            if self._team.look(now):
                self._close_team()
            self._advance_team()
            self._record()
            if self._recorder.report_due and not self._over and self._heard:
                self._emit(self._report(now))
            if hung := self._times.hung(now):
                self._emit(Hung(tuple(hung)))
            found = self._events.take(perf_counter())
            if (sampler := self._server.sampler) is not None:
                sampler.delivered(sum(isinstance(event, UpdateSampled) for event in found))
            return found

    def _crowded(self) -> bool:
        """Whether the driver has to take the sampled updates now, as their buffer is full."""
        return self._server.sampler is not None and self._server.sampler.full

    def log(self, follower: int, timeout: float) -> list[Entry]:
        """The next entries for a follower, counted from 1; waits up to ``timeout`` seconds."""
        with self._lock:
            self._decided.wait_for(lambda: self._log.news(follower - 1), timeout)
            return self._log.take(follower - 1)

    def arrived(self, worker: int, incarnation: int) -> None:
        """A process has connected as a worker; those that had its number before are dead."""
        self.lost(worker, incarnation - 1)

    def lost(self, worker: int, incarnation: int) -> None:
        """A worker process is dead; its slots go to the others.

        The first report counts, whether it comes from the connection, the driver or the successor.

        Args:
            worker: its number.
            incarnation: which of the processes with that number, from 1.
        """
        with self._lock:
            if incarnation <= self._dead.get(worker, 0):
                return
            self._dead[worker] = incarnation
            # Before it has asked for anything, its residual is there for its replacement.
            if worker in self._heard or not self._has_residuals:
                self._lose(worker)

    def node_teams(self, sizes: dict[int, int]) -> None:
        """See `ParameterServer.node_teams`."""
        with self._lock:
            self._server.node_teams(sizes)

    def hangs(self, worker: int) -> None:
        """A worker does not answer the leader of its node."""
        with self._lock:
            self._emit(Hung((worker,)))
            self._news.notify_all()

    def give_up(self, worker: int) -> None:
        """A worker has not come in time: its pieces and its residual are not waited for."""
        with self._lock:
            self._lose(worker)

    def _lose(self, worker: int) -> None:
        self._gone.add(worker)
        self._replies.gone(worker)
        self._times.lost(worker)
        self._events.lost(worker)
        self._carry_out(self._server.lost(worker))
        if self._team.inside(worker):
            self._leave_team(worker, dead=True)
        else:  # it may have left the team, and wait for the others to do so
            self._team.leave(worker, dead=True)
        self._news.notify_all()

    def refused(self, where: str) -> None:
        """See `distsgd.transport.base.ServerPort.refused`."""
        with self._lock:
            text = f"refused: a connection from {where} without the training's token"
            self._emit(Notice(text, kind="stranger"))
            self._news.notify_all()

    def stop(self) -> None:
        """Grant no more work; the last event follows."""
        with self._lock:
            self._stopping = True
            if self._team.standing:  # at the last version that is whole, once its members have left
                self._team.revoke(perf_counter())
            else:
                self._stop()

    def _stop(self) -> None:
        decisions = self._server.stop()
        self._record()
        self._end(self._recorder.ended())  # asks for residuals, then dismisses
        self._carry_out(decisions)

    def _end(self, event: Ended) -> None:
        if not self._over:
            self._over = True
            self._watch.pause()
            if self._heard:
                self._emit(self._report(perf_counter()))
            self._recorder.statistics.waiting_seconds = self._replies.waited
            self._recorder.statistics.answering_seconds = self._replies.answering
            self._emit(event)

    def _report(self, now: float) -> FleetReport:
        """What the workers have done until now."""
        replies, team = self._replies, self._team
        for worker, seconds in team.waits().items():
            replies.waited_inside(worker, seconds, now)
        known = {*range(self._workers), *self._heard, *self._gone}
        states = {
            worker: GONE
            if worker in self._gone
            else IN_TEAM
            if team.inside(worker)
            else replies.state(worker)
            for worker in known
        }
        return self._recorder.report(replies.answering, replies.pushing, replies.waited, states)

    def _emit(self, event: Event) -> None:
        wanted: dict[int, int] = {}
        if isinstance(event, EpochEnded | Saved | Ended):
            floor = min(event.snapshot.floor or event.snapshot.version, self._timed.floor)
            self._news.notify_all()
            self._tell([Keep(event.snapshot.version)])
            serials = self._server.residual_serials() if self._has_residuals else {}
            known = None if serials is None or serials.keys() & self._gone else self._shares
            wanted = {} if known is None else serials or {}
            event = replace(event, snapshot=replace(event.snapshot, floor=floor, residuals=known))
        self._events.add(event, wanted, perf_counter())
        if isinstance(event, UpdateSampled) and self._crowded():
            self._news.notify_all()
        if wanted:
            self._replies.flush_all()

    def _carry_out(self, decisions: list[Decision]) -> None:
        """Send work first, as workers wait for it, and then record the decisions.

        With residuals, workers are asked for theirs before they get more work.
        """
        if not self._has_residuals:
            self._grant(decisions)
            self._stand(decisions)
        self._tell(decisions)
        if self._timed.collecting and self._timed.keep():
            self._tell([Keep(self._server.version)])
        self._unrecorded += decisions
        if len(self._unrecorded) >= _MOST or any(map(self._recorder.due, decisions)):
            self._record()
        for decision in decisions:
            if isinstance(decision, Dismiss):
                self._replies.put(decision.worker, None)
        self.trace.lap("record")
        if self._has_residuals:
            self._grant(decisions)

    def _record(self) -> None:
        """Turn the decisions since the last time into events: several at once take less time."""
        decisions, self._unrecorded = self._unrecorded, []
        for decision in decisions:
            for event in self._recorder.record(decision):
                if isinstance(event, Ended):
                    self._end(event)
                else:
                    self._emit(event)
        if self._over or self._team.away:
            return
        if self._timed.due and (found := self._timed.take()) is not None:
            self._emit(Saved(found))

    def _tell(self, entries: Sequence[Entry]) -> None:
        if self._followers:
            self._log.add(entries)
            self._decided.notify_all()

    def _stand(self, decisions: list[Decision]) -> None:
        """Have a team work, if that has been decided."""
        for decision in decisions:
            if isinstance(decision, Stand) and not self._team.stand(decision.lease, perf_counter()):
                self._team.give_up()
                self._carry_out(self._server.disbanded())
                for worker in decision.lease.members:
                    self._carry_out(self._server.pull(worker))

    def _grant(self, decisions: list[Decision]) -> None:
        now = perf_counter()
        for decision in decisions:
            if isinstance(decision, Grant):
                self._replies.put(decision.worker, (decision.lease, self._server.weights))
                self._times.granted(decision.worker, decision.lease, now)
        self.trace.lap("give")
