"""Kills and stops processes of a training on purpose, for `distsgd train --chaos`."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from distsgd.core.chaos import Chaos, Strike

__all__ = ["ChaosKills"]

Told = Callable[[Strike, str], None]


class _Process:
    """One process of this machine. A number may be given to another; a descriptor is not."""

    def __init__(self, pid: int) -> None:
        self._file = os.pidfd_open(pid)
        self._lock = threading.Lock()
        self.stopped = False

    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        return not poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self._file >= 0:
                signal.pidfd_send_signal(self._file, number)

    def stop(self, seconds: float) -> None:
        self.stopped = True
        self.send(signal.SIGSTOP)
        timer = threading.Timer(seconds, self.wake)
        timer.daemon = True
        timer.start()

    def wake(self) -> None:
        self.send(signal.SIGCONT)
        self.stopped = False

    def close(self) -> None:
        """Leave it be, and awake."""
        self.wake()
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


class ChaosKills:
    """Carries out strikes at the workers and servers that are on the driver's machine.

    Args:
        chaos: what is to be done.
        version: updates that there are already; nothing is done for those.
        told: told of each strike that hit somebody, and whom.
    """

    def __init__(self, chaos: Chaos, version: int, told: Told) -> None:
        self._chaos, self._version, self._told = chaos, version, told
        self._asked: dict[str, Any] = {}
        self._processes: dict[str, _Process] = {}

    def started(self, name: str, reference: Any) -> None:
        """There is a new process.

        Args:
            name: "worker 0", "server 1", and so on; there may have been another of that name.
            reference: to come: the node and the process id that it says it has.
        """
        self._forget(name)
        self._asked[name] = reference

    def updated(self, version: int) -> None:
        """So many updates have been applied: strike, if that is due."""
        due = self._chaos.strikes(self._version, version)
        self._version = max(self._version, version)
        if due:
            self._look()
        for strike in due:
            self._carry_out(strike)

    def close(self) -> None:
        """Wake whoever is stopped, and forget all processes."""
        self._asked.clear()
        for name in list(self._processes):
            self._forget(name)

    def _forget(self, name: str) -> None:
        if name in self._processes:
            self._processes.pop(name).close()

    def _look(self) -> None:
        """Take note of who has said where it is."""
        for name, reference in list(self._asked.items()):
            done, _ = ray.wait([reference], timeout=0)
            if not done:
                continue
            del self._asked[name]
            with suppress(ray.exceptions.RayError, OSError):  # it has died already
                node, pid = ray.get(reference)
                if node == ray.get_runtime_context().get_node_id():
                    self._processes[name] = _Process(pid)
        for name in [name for name, process in self._processes.items() if not process.alive()]:
            self._forget(name)

    def _carry_out(self, strike: Strike) -> None:
        deed, kind = strike.fault.name.split("-")
        names = sorted(
            name
            for name, process in self._processes.items()
            if name.startswith(kind) and not (deed == "stop" and process.stopped)
        )
        if not names:
            return  # all of them are dead, or have not said yet where they are
        name = names[int(strike.choice * len(names))]
        if deed == "stop":
            self._processes[name].stop(strike.fault.seconds)
        else:
            self._processes[name].send(signal.SIGKILL)
            self._forget(name)
        self._told(strike, name)
