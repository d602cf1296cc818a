"""`distsgd train` as a process: output, exit codes, signals, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import (
    PATIENCE,
    Run,
    command_line,
    processes_with,
    short_temporary_folder,
    wait_for,
)

from distsgd.runs.checkpoint import latest_checkpoint, read_checkpoint
from distsgd.training import train

LONG = ("--dataset", "sample", "--epochs", "100000")
LAZY = ("--chaos", "delay:p=1:for=50ms")
"""Leaves the processors to others."""


def named_memory(session: str) -> set[str]:
    """Files of /dev/shm with a name that a process of a session has mapped or open.

    There are to be none at any time: then none can be left. Those of other programs come and go.
    """
    found = set[str]()
    for pid in processes_with(session):
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
            found |= {line.split(maxsplit=5)[-1] for line in maps if "/dev/shm/" in line}
            found |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {name for name in found if "/dev/shm/" in name and not name.endswith("(deleted)")}


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One in which nothing else is going on, and after which nothing goes on."""
    with short_temporary_folder() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


def ray_folders() -> set[str]:
    return {path.name for path in Path(os.environ["TMPDIR"]).glob("distsgd-ray-*")}


@contextmanager
def training(
    folder: Path, *options: object, start_new_session: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """A long training in a process of its own; ended by force if the test has not done so."""
    process = subprocess.Popen(
        command_line("train", *LONG, "--run-dir", folder, *options),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=start_new_session, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        print(*process.communicate())


def wait_for_epochs(folder: Path, epochs: int) -> None:
    wait_for(lambda: len(list((folder / "checkpoints").glob("step-*.npz"))) > epochs)


def assert_the_result_is_one_object(output: str) -> None:
    """That of two epochs by two workers."""
    result = json.loads(output)
    assert {
        "run_dir", "loss", "workers", "batch_size", "epochs", "steps", "examples_seen",
        "train_loss", "train_accuracy", "test_accuracy", "train_seconds", "wall_seconds",
        "examples_per_second", "weights_sha256",
    } <= result.keys()  # fmt: skip
    assert result["workers"] == 2
    assert result["examples_seen"] == 3000
    alone = train("sample", workers=0, epochs=2)
    assert alone.weights_sha256 == result["weights_sha256"]


def test_without_workers_ray_is_not_imported(distsgd: Run) -> None:
    code = (
        "import os, sys, distsgd; os.environ.pop('KMP_DUPLICATE_LIB_OK', None);"
        "before = dict(os.environ);"
        "distsgd.train('sample', workers=0, epochs=1);"
        "assert 'ray' not in sys.modules and dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_piped_output_is_a_line_an_epoch(distsgd: Run) -> None:
    done = distsgd("train", "--dataset", "sample", "--epochs", 3, "--workers", 0)
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert any(line.strip().startswith("test accuracy") for line in lines)
    (time_of_it,) = [line for line in lines if line.strip().startswith("time ")]
    total, *parts = map(float, re.findall(r"([0-9.]+) s ", time_of_it))
    assert len(parts) == 3 and total == pytest.approx(sum(parts), abs=0.21)


def test_a_terminal_shows_live_progress(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command_line("train", "--dataset", "sample", "--epochs", 40, "--workers", 0),
        stdout=theirs, stderr=theirs, stdin=theirs, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert b"images/s" in shown and b"step" in shown and b"test accuracy" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_training_well_and_tells_which(
    number: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with training(folder, "--workers", 0, "--json") as process:
        wait_for_epochs(folder, 1)
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert "stopping after this update" in errors and "to resume: distsgd resume" in errors
    result = json.loads(output)
    model = read_checkpoint(latest_checkpoint(folder / "checkpoints"))
    assert (result["status"], model.version) == ("interrupted", result["steps"])


def test_a_training_whose_terminal_is_closed_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command_line("train", *LONG, "--workers", 0, "--run-dir", folder),
        stdout=theirs, stderr=theirs, stdin=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    drained = threading.Thread(target=_drain, args=(ours, folder))
    drained.start()
    drained.join()
    assert process.wait(PATIENCE) == 129
    status = json.loads((folder / "report.json").read_text(encoding="utf-8"))["status"]
    assert status == "interrupted"


def _drain(terminal: int, folder: Path) -> None:
    """Read what a terminal shows until two epochs have ended, then close it."""
    while len(list((folder / "checkpoints").glob("step-*.npz"))) < 3:
        os.read(terminal, 65536)
    os.close(terminal)


@pytest.mark.ray
def test_control_c_leaves_a_whole_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    """In a terminal it goes to every process of the group."""
    folder = tmp_path / "run"
    with training(folder, "--json", *LAZY) as process:
        wait_for_epochs(folder, 2)
        (name,) = ray_folders()
        assert (Path(os.environ["TMPDIR"]) / name).stat().st_mode & 0o777 == 0o700
        assert not named_memory(name)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    result = json.loads(output)
    assert result["status"] == "interrupted"
    assert "interrupted after step" in errors
    model = read_checkpoint(latest_checkpoint(folder / "checkpoints"))
    assert model.version == result["steps"] > 0
    assert not ray_folders() and not processes_with(name)


@pytest.mark.ray
def test_after_a_kill_no_process_stays_and_the_next_run_sweeps_and_disturbs_no_other(
    distsgd: Run, distsgd_here: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with training(folder, *LAZY) as process:
        wait_for_epochs(folder, 1)
        (name,) = ray_folders()
        assert not named_memory(name)
        process.kill()
        process.wait()
        wait_for(lambda: not processes_with(name))
    assert json.loads(distsgd_here("runs", "show", folder, "--json").stdout)["status"] == "dead"
    assert ray_folders() <= {name}  # unless its guard has removed it
    long = tmp_path / "long"
    with training(long, *LAZY) as other:
        wait_for_epochs(long, 1)
        assert len(ray_folders() - {name}) == 1 == len(ray_folders())
        done = distsgd("train", "--dataset", "sample", "--epochs", 2, "--workers", 2, "--json")
        assert done.returncode == 0, done.stderr
        assert other.poll() is None and len(ray_folders()) == 1
        wait_for_epochs(long, len(list((long / "checkpoints").iterdir())))
        other.send_signal(signal.SIGTERM)
        other.communicate(timeout=PATIENCE)
    assert other.returncode == 143 and not ray_folders()
    assert_the_result_is_one_object(done.stdout)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_the_death_of_ray_itself_is_a_clear_error_soon(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, *LAZY) as process:
        wait_for_epochs(folder, 1)
        (session,) = ray_folders()
        (pid,) = [
            pid for pid in processes_with(session)
            if f"/{name}\0" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        ]  # fmt: skip
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    # Which of the two is noticed first is chance.
    found = (f"a process of Ray died: {name}. Look for", "Ray can no longer be reached")
    assert any(f"error: {text}" in errors for text in found), errors
    assert not ray_folders() and not processes_with(session)


@pytest.mark.ray
def test_a_signal_while_ray_starts_is_not_taken_by_ray(tmp_path: Path) -> None:
    with training(tmp_path / "run") as process:
        wait_for(lambda: any(processes_with(f"{name}/ray") for name in ray_folders()))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "stopping after this update" in errors and "interrupted after step 0" in errors
    assert "2 (none started)" in output and " s in all: " in output
    assert not ray_folders()
