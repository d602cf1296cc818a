"""Fetches that are killed: a dataset is whole or absent, and the next fetch cleans up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_cifar10
from data_support import LOCK, snapshot, wait_until
from support import PATIENCE

from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.cifar10.repair import verify_dataset


def written(cache: Path, pattern: str) -> int:
    return len(list(cache.glob(f"datasets/.cifar10~*/{pattern}")))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "it holds the lock": lambda cache: (cache / "datasets" / LOCK).exists(),
    "the temporary folder is there": lambda cache: any(cache.glob("datasets/.cifar10~*/")),
    "some shards are written": lambda cache: written(cache, "train-*.arrow") >= 4,
    "the last shard is begun": lambda cache: written(cache, "test-*.arrow") == 1,
    "the manifest is written": lambda cache: written(cache, "manifest.json") == 1,
}


@pytest.fixture
def fetching(cache: Path, binary_folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `distsgd data fetch` in a process of its own, and sees to its end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, small_cifar10.__file__]
        command = [*program, "data", "fetch", "--source", binary_folder, *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, **quiet))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def kill_when(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
    """SIGKILL a process at a moment; on a busy machine the last ones may be missed."""
    assert wait_until(lambda: moment() or process.poll() is not None)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "datasets").iterdir())


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when(
    cache: Path,
    fetching: Callable[..., subprocess.Popen[bytes]],
    binary_folder: Path,
    reference_bytes: dict[str, str],
    moment: str,
) -> None:
    kill_when(fetching(), lambda: MOMENTS[moment](cache))
    if (cache / "datasets" / "cifar10").exists():
        verify_dataset(cache / "datasets" / "cifar10")
    folder = fetch_cifar10(str(binary_folder))
    assert snapshot(folder) == reference_bytes
    assert names_in(cache) == [LOCK, "cifar10"]


def test_killed_while_it_replaces_a_dataset(
    settled: Path, fetching: Callable[..., subprocess.Popen[bytes]]
) -> None:
    before = snapshot(settled / "datasets" / "cifar10")
    moment = MOMENTS["some shards are written"]
    process = fetching("--force")
    kill_when(process, lambda: moment(settled))
    # On a busy machine the fetch may be done before the kill.
    assert written(settled, "*.arrow") > 0 or process.returncode == 0
    assert snapshot(settled / "datasets" / "cifar10") == before

    fetch_cifar10()  # all is there, so that it only sweeps
    assert snapshot(settled / "datasets" / "cifar10") == before
    assert names_in(settled) == [LOCK, "cifar10"]


def test_one_that_waits_takes_over_from_one_that_was_killed(
    cache: Path,
    fetching: Callable[..., subprocess.Popen[bytes]],
    reference_bytes: dict[str, str],
) -> None:
    first = fetching()
    assert wait_until(lambda: MOMENTS["it holds the lock"](cache))
    second = fetching()
    kill_when(first, lambda: MOMENTS["some shards are written"](cache))
    assert second.wait(timeout=PATIENCE) == 0
    assert snapshot(cache / "datasets" / "cifar10") == reference_bytes
    assert names_in(cache) == [LOCK, "cifar10"]


def crash_points(*arguments: str) -> list[dict[str, object]]:
    script = Path(__file__).with_name("crash_points.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen: list[dict[str, object]] = json.loads(done.stdout)
    assert [moment["ended"] for moment in seen] == [signal.SIGKILL] * (len(seen) - 1) + [0]
    return seen


def test_killed_at_any_file_operation(cache: Path) -> None:
    seen = crash_points("new")
    assert len(seen) > 5
    assert {moment["found"] for moment in seen} == {"absent", "seed 2"}
    assert all(moment["then"] == "seed 2" for moment in seen)
    assert all(moment["left"] == [LOCK, "cifar10"] for moment in seen)


def test_killed_at_any_file_operation_of_a_replacement(cache: Path) -> None:
    seen = crash_points("replaced")
    assert len(seen) > 8
    assert {moment["found"] for moment in seen} >= {"seed 1", "seed 2"}
    assert sum(moment["found"] == "absent" for moment in seen) <= 1  # between the two renames
    assert all(moment["left"] == [LOCK, "cifar10"] for moment in seen)


def test_an_interrupt_leaves_nothing(
    cache: Path, fetching: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = fetching()
    moment = MOMENTS["it holds the lock"]
    assert wait_until(lambda: moment(cache) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=PATIENCE)
    # On a busy machine the fetch may be done before the signal is sent.
    assert (code, names_in(cache)) in [(130, [LOCK]), (0, [LOCK, "cifar10"])]
