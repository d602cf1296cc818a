"""Sessions of our own Ray whose owner is dead: what is left goes, and nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from listening import answers, documented, listeners
from support import Run

from distsgd.errors import ChannelClosed
from distsgd.runtime import ray_session, session_guard
from distsgd.runtime.ray_answers import what_to_tell
from distsgd.runtime.ray_session import _MOST_BYTES, sweep_dead_sessions
from distsgd.runtime.session_guard import LOCK, processes_of, session_mark


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, of this test alone."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@contextmanager
def a_process(
    code: str, *arguments: object, marks: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs the code, which prints a line when it is ready, until its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{code}\nprint(flush=True)\nsys.stdin.read()"]
        + [str(argument) for argument in arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **(marks or {})},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def a_session(temporary: Path) -> Path:
    folder = temporary / "distsgd-ray-abc"
    (folder / "ray").mkdir(parents=True)
    (folder / LOCK).touch()
    return folder


def test_what_is_left_of_a_dead_session_is_ended(temporary: Path) -> None:
    folder = a_session(temporary)
    with (
        a_process("", folder, marks=session_mark(folder)) as named,
        a_process(f"file = open({str(folder / LOCK)!r})", marks=session_mark(folder)) as opened,
    ):
        sweep_dead_sessions()
        assert named.wait() == opened.wait() == -signal.SIGKILL
    assert not folder.exists()


@pytest.mark.parametrize("marked", [False, True])
def test_a_process_that_is_not_ours_lives(marked: bool, temporary: Path) -> None:
    """One that has the folder on its command line or open is the user's; so is one that another
    thread of the owner started while Ray was starting, which has the mark and neither of them."""
    folder = a_session(temporary)
    code, arguments = "", []
    if not marked:
        code, arguments = "file = open(sys.argv[1])", [folder / LOCK]
    with a_process(code, *arguments, marks=session_mark(folder) if marked else None) as process:
        sweep_dead_sessions()
        assert process.poll() is None and not folder.exists()


def test_a_command_without_ray_sweeps_nothing(temporary: Path, distsgd: Run) -> None:
    folder = a_session(temporary)
    assert distsgd("runs", "list").returncode == 0
    assert folder.exists()


def test_a_folder_that_never_got_its_name_is_removed(temporary: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    for owner in (dead.pid, os.getpid()):
        (temporary / f".distsgd-{owner}-abc").mkdir()
    sweep_dead_sessions()
    assert [path.name for path in temporary.iterdir()] == [f".distsgd-{os.getpid()}-abc"]


def test_a_session_whose_owner_lives_stays(temporary: Path) -> None:
    folder = a_session(temporary)
    locked = "import fcntl; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX)"
    with a_process(locked, folder / LOCK) as process:
        sweep_dead_sessions()
        assert folder.exists() and process.poll() is None


def test_an_owner_that_removes_its_folder_is_let_do_so(temporary: Path) -> None:
    """Its lock is gone, the folder not yet; it has files of it open that it has removed."""
    folder = a_session(temporary)
    opened = "files = [open(sys.stdin.readline().strip()) for _ in range(2)]"
    (folder / "ray" / "log").touch()
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; {opened}; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdin is not None and owner.stdout is not None
        owner.stdin.write(f"{folder / LOCK}\n{folder / 'ray' / 'log'}\n")
        owner.stdin.flush()
        owner.stdout.readline()
        (folder / "ray" / "log").unlink()
        (folder / LOCK).unlink()
        sweep_dead_sessions()
        assert owner.poll() is None and (folder / "ray").is_dir()
        (folder / "ray").rmdir()
        sweep_dead_sessions()
        assert owner.poll() is None and not folder.exists()


def test_a_lock_that_was_removed_while_it_was_opened_is_none(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_session(temporary)
    (folder / "ray" / "log").touch()
    monkeypatch.setattr(fcntl, "flock", lambda *_: (folder / LOCK).unlink())
    sweep_dead_sessions()
    assert (folder / "ray" / "log").exists() and not (folder / LOCK).exists()


def test_what_cannot_be_removed_stays_ours(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_guard, "_remove", lambda folder: None)
    with ray_session._session_folder() as folder:
        pass
    monkeypatch.undo()
    sweep_dead_sessions()
    assert (folder / LOCK).exists()


def test_a_process_is_found_while_it_closes_other_files(temporary: Path) -> None:
    busy = """
import threading
def churn():
    while True:
        for file in [open("/dev/null") for _ in range(100)]:
            file.close()
file = open(sys.stdin.readline().strip(), "w")
threading.Thread(target=churn, daemon=True).start()
"""
    folder = a_session(temporary)
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys{busy}print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **session_mark(folder)},
    )  # fmt: skip
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{folder / 'ray' / 'log'}\n")
        process.stdin.flush()
        process.stdout.readline()
        assert all(process.pid in processes_of(str(folder)) for _ in range(50))


def test_a_temporary_folder_in_which_no_socket_fits_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = str(temporary / ("x" * (_MOST_BYTES - len(f"{temporary}/"))))
    for chosen, used in ((fits, fits), (f"{fits}x", "/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", chosen)
        assert ray_session._root() == Path(used)


@pytest.mark.ray
def test_ray_starts_under_a_temporary_folder_in_which_its_sockets_just_fit(
    temporary: Path, distsgd: Run
) -> None:
    chosen = temporary / ("x" * (_MOST_BYTES - len(f"{temporary}/")))
    chosen.mkdir()
    done = distsgd("train", "--dataset", "sample", "--workers", 1, "--epochs", 1,
                   env={"TMPDIR": str(chosen)})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_server_that_has_gone_is_told_with_what_to_do() -> None:
    found = str(what_to_tell(ChannelClosed("the peer of a channel has gone")))
    assert found.startswith("a parameter server can no longer be reached: the peer")
    assert "distsgd resume" in found


def test_a_session_listens_at_loopback_and_gives_no_more_than_the_table(shared_ray: None) -> None:
    """Of SECURITY.md; to another user, if we may become one."""
    import ray

    folder = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    found = listeners(processes_of(str(folder)))
    assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= {one.program for one in found}
    assert {one.ip for one in found} == {"127.0.0.1"}
    table: dict[str, list[set[str]]] = {}
    for (program, _), given in documented().items():
        table.setdefault(program, []).append(given)
    nobody = 65_534 if os.geteuid() == 0 else None
    given = answers([one.port for one in found], "127.0.0.1", nobody)
    for one in found:
        assert given[one.port] in table[one.program], one
