"""What all tests share: private folders, one Ray, and the proof that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from distsgd.engine.core_type import VARIABLE, best_core_type

# As the command line does, and before numpy is loaded: tests compare the bits of the two.
if (best := best_core_type()) is not None:
    os.environ.setdefault(VARIABLE, best)

from support import (
    PATIENCE,
    Run,
    all_processes,
    command_line,
    end_new_processes_of,
    not_taken,
    run_here,
)

from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE, dataset_folder

# How long one example takes says more of the machine than of the code.
settings.register_profile("distsgd", deadline=None)
settings.load_profile("distsgd")


def pytest_configure() -> None:
    """Signals work in a shell's background job and under nohup too, where they are ignored."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules",
        type=int,
        default=400,
        help="random schedules that each consistency policy is tested with",
    )
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run the tests, too, that take minutes and prove little that quicker ones do not",
    )
    parser.addoption(
        "--all-chapters",
        action="store_true",
        help="run the commands of every chapter of the lecture, not of the quick ones alone",
    )
    parser.addoption(
        "--taken",
        type=Path,
        metavar="FOLDER",
        help="run only the modules that no other pytest with the same FOLDER has begun",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share a Ray as tests with Ray; skip those for --thorough alone."""
    for item in items:
        if item.get_closest_marker("thorough") and not item.config.getoption("thorough"):
            item.add_marker(pytest.mark.skip(reason="only with --thorough"))
        if "shared_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --taken: run the modules that are left, each of which is taken by one process alone."""
    folder = session.config.getoption("taken")
    if folder is None or session.testsfailed or session.config.option.collectonly:
        return None
    items = not_taken(session.items, folder)
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        for stop, reason in (
            (session.Failed, session.shouldfail),
            (session.Interrupted, session.shouldstop),
        ):
            if reason:
                raise stop(reason)
        item = following
    return True


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs made by a test lie in its own folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("DISTSGD_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def no_processes_left(private_home: Path, tmp_path: Path) -> Iterator[None]:
    """Whatever a test has started and not ended, because it failed say, ends with it."""
    before = all_processes()
    yield
    end_new_processes_of(tmp_path, before)


@pytest.fixture(scope="session")
def sample() -> Dataset:
    return Dataset(SAMPLE)


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of the full dataset; fetched into the cache if it is not there yet."""
    from distsgd.data.cifar10.fetch import fetch_cifar10
    from distsgd.errors import SourceError

    if dataset_folder("cifar10").exists():
        return dataset_folder("cifar10")
    try:
        return fetch_cifar10()
    except SourceError as error:
        pytest.skip(f"CIFAR-10 cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for all tests that train in this process."""
    from distsgd.on_ray.session import ray_session

    with ray_session(cpus=8):
        yield


@pytest.fixture
def distsgd(tmp_path: Path) -> Run:
    """Runs the command line as a user would, in an empty folder."""

    def run(
        *arguments: object, env: dict[str, str] | None = None, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def distsgd_here(tmp_path: Path) -> Run:
    """The same in this process, which takes milliseconds where another takes a second.

    For whatever a process of its own proves no more of: refusals, tables, files. A module of such
    tests takes it under the name `distsgd`.
    """

    def run(
        *arguments: object, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        return subprocess.CompletedProcess(words, *run_here(words, tmp_path, env or {}))

    return run
