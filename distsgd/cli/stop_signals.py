"""Signals that a command handles: Ctrl-C, SIGTERM and the loss of its terminal."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

import typer

from distsgd.cli.log_lines import as_json, noticed
from distsgd.data.system import pause
from distsgd.training.interrupts import Stop

__all__ = ["StopSignals"]

_STDERR = 2
_SECONDS_TO_REACT = 1.0
_ANSWER = "stopping after this update; a second Ctrl-C leaves at once"


class StopSignals(Stop):
    """While entered, the first signal asks for an orderly end, and a second one exits at once.

    A lost terminal (SIGHUP) never counts as the second: the shell and the system both send it.
    Ignored signals stay ignored: SIGHUP under nohup, SIGINT in a background job. The previous
    handlers are restored.

    Python's handlers wait while the main thread is inside a library, such as a Ray that does not
    start. A thread that receives each signal through a pipe exits then.

    Args:
        answer: a line for stderr as soon as the first comes.
        leaves: whether a second signal ends this process at once.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self, answer: str = _ANSWER, *, leaves: bool = True) -> None:
        self.received: int | None = None
        self._answer, self._leaves = answer, leaves
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._answered = self._leaving = False
        self._wakeup: tuple[int, int] | None = None

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    @property
    def code(self) -> int:
        """The exit code after such a signal: 130, 143 or 129."""
        return 128 + (self.received or 0)

    def leave(self) -> None:
        """End the command, with that code, if a signal has come."""
        if self.received is not None:
            raise typer.Exit(self.code)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._terminals = [stream for stream in range(3) if os.isatty(stream)]
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            if self._leaves:
                self._watch()
        return self

    def _watch(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        thread = threading.Thread(target=self._leave_anyway, args=(reader,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            os.close(reader)
            os.close(writer)
            return
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._wakeup = writer, before

    def _leave_anyway(self, reader: int) -> None:
        """Do what `_handle` is to do, where that is not called in time.

        Args:
            reader: where the system writes the number of each signal.
        """
        came = 0
        while number := int.from_bytes(os.read(reader, 1)):
            if number not in self._before or (came and number == signal.SIGHUP):
                continue
            came += 1
            pause(_SECONDS_TO_REACT)
            if came == 1 and self.received is None:
                self._answer_it()
            elif came > 1 and not self._leaving:
                os._exit(128 + number)
        os.close(reader)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._let_go_of_terminal()
        if self.received is None:
            self.received = number
            if not self._answered:
                self._answer_it()
        elif self._leaves and number != signal.SIGHUP:
            self._leaving = True
            # The processes of our own Ray are bound to end with this one.
            os._exit(128 + number)

    def _answer_it(self) -> None:
        self._answered = True
        # Not by print: the main thread may be in the middle of one.
        start = b"\r\x1b[K" if _STDERR in self._terminals and not as_json() else b""
        with suppress(OSError):
            os.write(_STDERR, start + noticed(self._answer, "warning").encode() + b"\n")

    def _let_go_of_terminal(self) -> None:
        """Send further output nowhere, so that it does not fail."""
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)
        self._terminals = []

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        if self._wakeup is not None:
            writer, previous = self._wakeup
            signal.set_wakeup_fd(previous)
            os.close(writer)  # which ends the thread
            self._wakeup = None
