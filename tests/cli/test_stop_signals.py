"""Signals of a command: the first for a good end, a second to leave, none left behind."""

from __future__ import annotations

import os
import signal

import pytest
import typer

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


def test_none_is_no_end() -> None:
    with StopSignals() as stop:
        pass
    stop.leave()


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


def test_under_nohup_a_lost_terminal_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            send(signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
