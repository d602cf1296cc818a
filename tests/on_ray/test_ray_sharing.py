"""A process has one Ray: trainings share it or are refused, and a forked child is refused."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray import sharing as ray_sharing
from distsgd.on_ray.capacity import connected_ray, worker_capacity
from distsgd.on_ray.sharing import OWN, owns_ray, shared_connection


class Connections:
    """Counts how often Ray is connected to and left."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.begun += 1
        yield
        self.ended += 1


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody in this process is connected to Ray."""
    not_connected = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setattr(ray_sharing, "import_ray", lambda: not_connected)
    monkeypatch.setattr(ray_sharing, "wait_for_other_threads", lambda: None)
    monkeypatch.setattr(ray_sharing, "_current", None)


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function does in another thread: its result, or what it raises."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_the_last_of_two_trainings_ends_the_ray_that_they_share() -> None:
    connections, entered, leave = Connections(), threading.Event(), threading.Event()

    def other() -> None:
        with shared_connection(OWN, connections), shared_connection(OWN, connections):
            entered.set()
            leave.wait()

    with shared_connection(OWN, connections):
        assert owns_ray()
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
    assert (connections.begun, connections.ended) == (1, 0)
    leave.set()
    thread.join()
    assert (connections.begun, connections.ended) == (1, 1) and not owns_ray()


def test_ray_outlives_the_thread_that_wanted_it_first() -> None:
    """Linux ends the processes of a Ray with the thread that started them."""
    starter: list[threading.Thread] = []

    @contextmanager
    def connect() -> Iterator[None]:
        starter.append(threading.current_thread())
        yield
        assert threading.current_thread() is starter[-1]

    def wants() -> AbstractContextManager[None]:
        connection = shared_connection(OWN, connect)
        connection.__enter__()
        return connection

    connection = in_thread(wants)
    assert starter[0].is_alive() and owns_ray()
    connection.__exit__(None, None, None)
    starter[0].join()
    with shared_connection(OWN, connect):  # by the main thread, which lives long enough
        assert starter[1] is threading.main_thread()


def test_what_connecting_in_another_thread_raises_comes_through() -> None:
    @contextmanager
    def connect() -> Iterator[None]:
        raise RuntimeFailure("Ray did not start")
        yield

    def wants() -> None:
        with shared_connection(OWN, connect):
            pass

    assert isinstance(in_thread(wants), RuntimeFailure) and not owns_ray()


def test_a_package_that_another_thread_is_importing_is_not_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    assert connected_ray() is None and worker_capacity(0) >= 1
    ray_sharing._check_not_forked()


def test_another_ray_is_refused_in_another_thread_and_shared_in_the_same() -> None:
    connections = Connections()

    def wants(address: str) -> None:
        with shared_connection(address, connections):
            pass

    with shared_connection("10.0.0.1:6379", connections):
        wants(OWN)
        assert in_thread(lambda: wants("10.0.0.1:6379")) is None
        refused = in_thread(lambda: wants(OWN))
    assert isinstance(refused, RuntimeFailure)
    assert "uses the cluster at 10.0.0.1:6379, and a process has one Ray" in refused.problem
    assert (connections.begun, connections.ended) == (1, 1)


def test_the_ray_of_the_caller_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    theirs = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: theirs)
    connections = Connections()
    caller = SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setattr(ray_sharing, "import_ray", lambda: caller)
    for address in (OWN, "localhost:6379"):
        with shared_connection(address, connections):
            assert not owns_ray()
    with (
        pytest.raises(UsageError, match=r"connected to the Ray at 127\.0\.0\.1:6379"),
        shared_connection("10.0.0.1:6379", connections),
    ):
        pass
    assert connections.begun == 0


@pytest.mark.parametrize(("uses_ray", "code"), [(True, 1), (False, 0)])
def test_a_forked_child_of_a_process_that_uses_ray_is_refused(
    uses_ray: bool, code: int, tmp_path: Path
) -> None:
    """Ray leaves the log of a driver open in it, also after `ray.shutdown`."""
    name = f"python-core-driver-01ff_{os.getpid()}.log" if uses_ray else "another.log"
    connections = Connections()
    with (tmp_path / name).open("w"), shared_connection(OWN, connections):
        if (child := os.fork()) == 0:
            try:
                with shared_connection(OWN, Connections()):
                    os._exit(0)
            except RuntimeFailure as error:
                os._exit(1 if "spawn" in error.hint else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        with shared_connection(OWN, connections):  # nothing has changed for this process
            assert connections.begun == 1
