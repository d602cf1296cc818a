"""The worker actors of one training: connected, set to work, and replaced when they die."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import ray

from distsgd.errors import ChannelClosed, DistsgdError, RuntimeFailure, ServerLost

__all__ = ["HINT", "Fleet", "cause_of", "server_lost"]

_MOST_FAILURES = 5
_SECONDS_UNSAID = 5.0
HINT = "Look for a lack of memory; `distsgd resume` goes on from the last update"


def cause_of(error: Any) -> Exception:
    """Our own error inside Ray's, or Ray's if there is none."""
    return error.cause if isinstance(error.cause, DistsgdError) else error


def server_lost(error: Exception) -> ServerLost:
    """What there is to say of a server that has died."""
    why = str(error).splitlines()[0].rstrip(".")
    return ServerLost(f"a parameter server died: {why}", HINT)


class Fleet:
    """Workers by their numbers.

    Args:
        make: starts the actor of a worker; twice, if the first has died.
        channel: by which channel a worker reaches the servers.
        lost: told when a worker has gone.
        workers: how many there are.
        patience: seconds to wait without a single worker.

    Attributes:
        names: worker -> name of its channel.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        channel: str,
        lost: Callable[[int], None],
        workers: int,
        patience: float,
    ) -> None:
        self._make, self._lost, self._patience = make, lost, patience
        self._channel, self._contacts = channel, list[Any]()
        self.names: dict[int, str] = {}
        self._actors: dict[int, Any] = {}
        self._connecting: dict[Any, int] = {}
        self._running: dict[Any, int] = {}
        self._failures = 0
        self._alone_since: float | None = None
        self._said = False
        for worker in range(workers):
            self._actors[worker] = make(worker)

    @property
    def actors(self) -> list[Any]:
        """The actors there are, dead ones that have not been replaced yet included."""
        return list(self._actors.values())

    @property
    def pending(self) -> list[Any]:
        """The calls whose end `ended` wants to be told."""
        return [*self._connecting, *self._running]

    def connect_all(self, contacts: list[Any]) -> None:
        """Wait until every worker is connected, so that none begins long before the others.

        Args:
            contacts: how a worker reaches the servers.
        """
        self._contacts = contacts
        for worker in self._actors:
            self._connect(worker)
        while self._connecting:
            done, _ = ray.wait(list(self._connecting), timeout=1.0)
            for reference in done:
                self.ended(reference)
            self.check()

    def set_to_work(self) -> None:
        """Those who are connected begin."""
        for worker, actor in self._actors.items():
            self._running[actor.run.remote()] = worker

    def ended(self, reference: Any) -> None:
        """A call has ended: a worker is connected, has no more work, or has died.

        Raises:
            ServerLost: a worker has lost its server, which is dead.
            RuntimeFailure: workers die again and again.
            DistsgdError: what a worker says cannot be mended by another.
        """
        was_running = reference in self._running
        worker = (self._running if was_running else self._connecting).pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, ChannelClosed):
                self._check_servers()
            elif isinstance(cause, DistsgdError):
                raise cause from error
            self._replace(worker, error)
        except ray.exceptions.RayActorError as error:
            self._replace(worker, error)
        else:
            if not was_running:
                again = worker in self.names
                self.names[worker] = result
                if again:
                    self._running[self._actors[worker].run.remote()] = worker

    def resize(self, workers: int) -> str | None:
        """Add workers, or take the last ones away; returns what there is to say, if anything."""
        before = len(self._actors)
        for worker in range(before, workers):
            self._actors[worker] = self._make(worker)
            self.names.setdefault(worker, "")
            self._connect(worker)
        for worker in range(workers, before):
            for calls in (self._connecting, self._running):
                for reference in [call for call, number in calls.items() if number == worker]:
                    del calls[reference]
            ray.kill(self._actors.pop(worker))
            self.names.pop(worker, None)
            self._lost(worker)
        return None if workers == before else f"{workers} workers from here on"

    def progressed(self) -> None:
        """An update has been applied: whoever fails from now on may be replaced again."""
        self._failures = 0

    def check(self) -> str | None:
        """What there is to say when nobody works.

        Raises:
            RuntimeFailure: nobody has for too long.
        """
        if self._running or not self._connecting:
            self._alone_since, self._said = None, False
            return None
        self._alone_since = self._alone_since or monotonic()
        alone = monotonic() - self._alone_since
        if alone > self._patience:
            raise RuntimeFailure(f"no worker has come for {self._patience:.0f} s", HINT)
        if self._said or alone < _SECONDS_UNSAID:
            return None
        self._said = True
        return f"no worker is there; waiting up to {self._patience:.0f} s for one"

    def kill(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _connect(self, worker: int) -> None:
        actor = self._actors[worker]
        self._connecting[actor.connect.remote(self._contacts, self._channel)] = worker

    def _replace(self, worker: int, error: Exception) -> None:
        self._lost(worker)
        self._failures += 1
        if self._failures > _MOST_FAILURES * len(self._actors):
            problem = str(error).strip().splitlines()[-1]
            raise RuntimeFailure(f"workers die again and again: {problem}", HINT) from error
        self.names.setdefault(worker, "")
        ray.kill(self._actors[worker])
        self._actors[worker] = self._make(worker)
        self._connect(worker)

    def _check_servers(self) -> None:
        """Raises `ServerLost` unless all of them answer."""
        for server, *_ in self._contacts:
            try:
                ray.get(server.address.remote())
            except ray.exceptions.RayActorError as error:
                raise server_lost(error) from error
