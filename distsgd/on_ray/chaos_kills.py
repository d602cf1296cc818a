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


class _Process:
    """A process of this machine, by descriptor: its id may be used again, a descriptor is not."""

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
        """Wake it, and release the descriptor."""
        self.wake()
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


class ChaosKills:
    """Kills and stops workers and servers on the driver's machine, as a chaos plan says.

    Args:
        chaos: the plan.
        version: updates that have been applied; strikes due before are skipped.
        report: called with each strike that hit a process, and its name.
    """

    def __init__(self, chaos: Chaos, version: int, report: Callable[[Strike, str], None]) -> None:
        self._chaos, self._version, self._report = chaos, version, report
        self._asked: dict[str, Any] = {}
        self._processes: dict[str, _Process] = {}

    def started(self, name: str, reference: Any) -> None:
        """A process has been started.

        Args:
            name: "worker 0", "server 1", and so on; it replaces one of the same name.
            reference: reference to its node and process id.
        """
        self._forget(name)
        self._asked[name] = reference

    def updated(self, version: int) -> None:
        """Carry out the strikes that are due at a version."""
        due = self._chaos.strikes(self._version, version)
        self._version = max(self._version, version)
        if due:
            self._look()
        for strike in due:
            self._carry_out(strike)

    def close(self) -> None:
        """Wake all stopped processes, and forget them."""
        self._asked.clear()
        for name in list(self._processes):
            self._forget(name)

    def _forget(self, name: str) -> None:
        if name in self._processes:
            self._processes.pop(name).close()

    def _look(self) -> None:
        """Note which processes are on this machine, and forget those that have died."""
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
        action, kind = strike.fault.name.split("-")
        names = sorted(
            name
            for name, process in self._processes.items()
            if name.startswith(kind) and not (action == "stop" and process.stopped)
        )
        if not names:
            return  # all are dead, or not located yet
        name = names[int(strike.choice * len(names))]
        if action == "stop":
            self._processes[name].stop(strike.fault.seconds)
        else:
            self._processes[name].send(signal.SIGKILL)
            self._forget(name)
        self._report(strike, name)
