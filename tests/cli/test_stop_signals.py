"""Signals of a command: the first for a good end, a second to leave, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import typer
from support import PATIENCE

from distsgd.cli.stop_signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Left(BaseException):
    """Instead of the end of this process."""


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_is_acknowledged_at_once_and_handlers_are_put_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(other) for other in NUMBERS]
    with StopSignals() as stop:
        assert not stop()
        send(number)
        assert stop()
        assert "stopping after this update" in capfd.readouterr().err
    assert [signal.getsignal(other) for other in NUMBERS] == before
    with pytest.raises(typer.Exit) as ended:
        stop.leave()
    assert ended.value.exit_code == 128 + number


def test_without_a_signal_nothing_ends() -> None:
    with StopSignals() as stop:
        assert not stop()
    stop.leave()  # would raise typer.Exit
    assert not stop()


@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_leaves_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with StopSignals():
        send(first)
        with pytest.raises(Left) as left:
            send(second)
    assert left.value.args == (128 + second,)


def test_a_lost_terminal_is_never_the_second() -> None:
    """The system and the shell both tell of it."""
    with StopSignals() as stop:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
    assert stop.code == 129


def test_what_must_not_be_cut_short_goes_on() -> None:
    with StopSignals("stopping the node", leaves=False) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert stop.code == 143


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """A lost terminal under nohup, Ctrl-C in a background job."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            send(number)
            assert not stop()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


_INSIDE_A_LIBRARY = """
import ctypes
from distsgd.cli import stop_signals
stop_signals._SECONDS_TO_REACT = 0.1
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with stop_signals.StopSignals():
    print(flush=True)
    for _ in range(2):  # the second call never returns
        library.pthread_mutex_lock(mutex)
"""


def test_signals_are_answered_inside_a_library() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _INSIDE_A_LIBRARY], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"a second Ctrl-C leaves at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
