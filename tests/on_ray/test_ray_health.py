"""A head that does not answer is told of before Ray ends the process for it."""

from __future__ import annotations

import socket

import pytest

from distsgd.errors import RuntimeFailure
from distsgd.on_ray import health as ray_health
from distsgd.on_ray.health import HeadWatch


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows; waiting moves it."""
    shown = [1000.0]

    def sleep(seconds: float) -> None:
        shown[0] += seconds

    monkeypatch.setattr(ray_health, "monotonic", lambda: shown[0])
    monkeypatch.setattr(ray_health, "pause", sleep)
    return shown


def watch_of(door: socket.socket) -> HeadWatch:
    host, port = door.getsockname()[:2]
    return HeadWatch(f"{host}:{port}")


def test_a_head_that_answers(time: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        head = watch_of(door)
        for _ in range(20):
            time[0] += 100
            head.look()
            head.wait()
    assert time[0] == 3000, "nothing waited"


def test_a_head_that_refuses_has_gone(time: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        head = watch_of(door)
    time[0] += 100  # nobody has looked for long; that alone says nothing
    head.look()
    time[0] += 1.5
    head.look()
    time[0] += 1.5
    with pytest.raises(RuntimeFailure, match=rf"{head.address} no longer answers: .*refused"):
        head.look()


def test_a_head_that_is_silent_is_waited_for_longer(
    time: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> socket.socket:
        raise TimeoutError("timed out")

    head = HeadWatch("192.0.2.1:6379")
    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(RuntimeFailure, match="no longer answers: timed out"):
        head.wait()
    assert 1008 < time[0] < 1010


def test_a_head_that_answers_again_is_forgiven(time: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        head = watch_of(door)
        port = door.getsockname()[1]
    for _ in range(3):
        time[0] += 1.5
        head.look()  # once, then it is back
        with socket.create_server(("127.0.0.1", port)):
            head.wait()
