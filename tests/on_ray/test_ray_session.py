"""Sessions of our own Ray whose owner is dead: what is left goes, and nothing else."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from listening import answers, documented, listeners
from support import PATIENCE, Run

from distsgd.data.system import kill_if
from distsgd.errors import ChannelClosed, RuntimeFailure
from distsgd.on_ray import session as ray_session
from distsgd.on_ray import session_guard
from distsgd.on_ray.health import classify_failure
from distsgd.on_ray.session import _MOST_BYTES, sweep_dead_sessions
from distsgd.on_ray.session_guard import (
    LOCK,
    clear_session,
    mark_folder,
    processes_of,
    session_mark,
)


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
    """The folder of one whose owner is dead."""
    folder = temporary / "distsgd-ray-12345678"
    (folder / "ray").mkdir(parents=True)
    os.close(mark_folder(folder))
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
        (temporary / f".distsgd-{owner}-12345678").mkdir()
    marked = temporary / f".distsgd-{dead.pid}-abcdefgh"
    marked.mkdir()
    os.close(mark_folder(marked, temporary / "distsgd-ray-abcdefgh"))
    sweep_dead_sessions()
    assert [path.name for path in temporary.iterdir()] == [f".distsgd-{os.getpid()}-12345678"]


def _copied(session: Path) -> Path:
    return Path(shutil.copytree(session, session.with_name("distsgd-ray-copied_2")))


def _link(session: Path) -> Path:
    """To a folder that looks like a session and is none: the path is another one."""
    project = Path(shutil.copytree(session, session.with_name("project")))
    session.with_name("distsgd-ray-linked_2").symlink_to(project)
    return project


def _of_ours_alone(session: Path) -> Path:
    """A link to a session that has another name by now."""
    moved = session.rename(session.with_name("kept"))
    session.symlink_to(moved)
    return moved


def _named_so(session: Path, name: str) -> Path:
    folder = session.with_name(name)
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "made",
    [
        _copied, _link, _of_ours_alone,
        lambda session: _named_so(session, ".distsgd-backup-2026"),
        lambda session: _named_so(session, ".distsgd-4194305-backup_1"),
        lambda session: _named_so(session, "distsgd-ray-of_mine1"),
        lambda session: _named_so(session, "distsgd-ray-notes"),
    ],
    ids=["copy", "link", "moved", "backup", "numbered", "named", "other"],
)  # fmt: skip
def test_a_folder_that_is_not_ours_stays(made: Callable[[Path], Path], temporary: Path) -> None:
    folder = made(a_session(temporary))
    (folder / "thesis.tex").touch()
    sweep_dead_sessions()
    clear_session(folder)  # as for a node that a note names
    assert (folder / "thesis.tex").exists()


def test_links_in_a_session_are_not_followed(temporary: Path) -> None:
    folder, precious = a_session(temporary), temporary / "precious"
    (precious / "more").mkdir(parents=True)
    (precious / "file").touch()
    for place in (folder / "a", folder / "ray" / "b"):
        place.symlink_to(precious)
    sweep_dead_sessions()
    assert not folder.exists()
    assert (precious / "file").exists() and (precious / "more").exists()


@pytest.mark.parametrize("around", ["{}_copy/logs", "/backup{}", "x{}/ray"])
def test_a_process_that_names_a_longer_path_lives(around: str, temporary: Path) -> None:
    folder = a_session(temporary)
    with a_process("", around.format(folder), marks=session_mark(folder)) as process:
        sweep_dead_sessions()
        assert process.poll() is None and not folder.exists()


def test_a_number_that_is_used_again_is_not_ended() -> None:
    with a_process("") as process:
        assert not kill_if(process.pid, lambda: False) and process.poll() is None
        assert kill_if(process.pid, lambda: True)
    assert process.returncode == -signal.SIGKILL and not kill_if(process.pid, lambda: True)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_guard_stands_by_and_is_stood_down(
    stopped: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_guard, "_SECONDS_TO_LEAVE", 0.1 if stopped else PATIENCE)
    with session_guard.guarded(a_session(temporary)) as guard:
        guard.check()
        if stopped:
            guard._process.send_signal(signal.SIGSTOP)
    assert guard._process.returncode == (-signal.SIGKILL if stopped else 0)


@pytest.mark.parametrize("command", [["/nowhere/python"], ["false"]])
def test_a_guard_that_does_not_start_is_an_error(
    command: list[str], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_guard, "python_module", lambda *_: command)
    with (
        pytest.raises(RuntimeFailure, match="clears up after a killed training did not start"),
        session_guard.guarded(a_session(temporary)) as guard,
    ):
        guard.check()


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
    with ray_session._session_folder() as (folder, _):
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
def test_ray_starts_where_its_sockets_just_fit_and_beside_files_named_like_modules(
    temporary: Path, tmp_path: Path
) -> None:
    """Neither workers nor servers nor the guard import what lies where the user stands."""
    chosen = temporary / ("x" * (_MOST_BYTES - len(f"{temporary}/")))
    chosen.mkdir()
    for name in ("distsgd", "numpy", "queue", "ray", "random", "socket"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is a shadow')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "distsgd", "train", "--dataset", "sample", "--workers", "2",
         "--epochs", "1"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(chosen)}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_server_that_has_gone_is_told_with_what_to_do() -> None:
    found = str(classify_failure(ChannelClosed("the peer of a channel has gone")))
    assert found.startswith("a parameter server can no longer be reached: the peer")
    assert "distsgd resume" in found


def test_results_of_a_usual_size_stay_out_of_the_object_store(shared_ray: None) -> None:
    """Whose users Ray ends without a word when the node dies."""
    import ray

    result = ray.remote(num_cpus=0)(lambda: bytes(4 * 2**20)).remote()
    assert ray.wait([result], timeout=PATIENCE)[0]
    worker = ray._private.worker.global_worker.core_worker
    assert worker.object_exists(result, memory_store_only=True)


def test_a_session_listens_at_loopback_and_gives_no_more_than_the_table(shared_ray: None) -> None:
    """Of SECURITY.md; to another user, if we may become one."""
    import ray

    folder = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
    found = listeners(processes_of(str(folder)))
    programs = {one.program for one in found}
    assert {"gcs_server", "raylet"} <= programs
    assert not {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} & programs
    assert {one.ip for one in found} == {"127.0.0.1"}
    table: dict[str, list[set[str]]] = {}
    for (program, _), given in documented().items():
        table.setdefault(program, []).append(given)
    nobody = 65_534 if os.geteuid() == 0 else None
    given = answers([one.port for one in found], "127.0.0.1", nobody)
    for one in found:
        assert given[one.port] in table[one.program], one
