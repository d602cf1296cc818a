"""A process that ends what is left of a Ray session when its owner is killed.

Most processes of a local Ray die with the process that started them, but not all, and its files
stay. The guard waits for the owner's end of a pipe to close.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from distsgd.data.system import kill_if, pause, python_module, wait_for_exit, whole_environment
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.private import DRIVER_LOG
from distsgd.spelling import spelling
from distsgd.transport.ray_variables import KEEP_ENVIRONMENT

__all__ = [
    "LOCK", "NODE_MARK", "Guard", "clear_session", "guarded", "is_ours", "mark_folder",
    "processes_of", "session_mark",
]  # fmt: skip

LOCK = "owner.lock"
"""The lock file of a session's folder; it contains the path, so that a copied or renamed folder is
not taken for a session's. It is locked by the owner, or by who clears up after a dead owner."""

NODE_MARK = "DISTSGD_NODE"
"""Variable of the processes that `cluster start` starts, and their children: their folder."""

_SESSION_MARK = "DISTSGD_SESSION"
"""Variable of the processes that Ray starts for a session, and their children: their folder."""

_SECONDS_TO_START, _SECONDS_TO_LEAVE, _SECONDS_TO_DIE = 60.0, 5.0, 10.0
_READY = _DISMISSED = b"x"
_POLL_SECONDS = 0.02


def session_mark(folder: Path) -> dict[str, str]:
    """Variables that mark the processes of a session as ours."""
    # Ray's processes rename themselves, by default over what was their environment.
    return {_SESSION_MARK: str(folder), KEEP_ENVIRONMENT: "1"}


def processes_of(folder: str) -> list[int]:
    """Ids of the other processes that carry the mark of a node or of a session.

    A process of a session must also name its folder or have a file in it open: what another thread
    of the owner starts while Ray starts inherits the mark, and is not ours. Naming the folder or
    having a file open is not enough without the mark: an editor does so too.

    Args:
        folder: folder of the node or session.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and _belongs(entry, folder):
                found.append(int(entry.name))
    return found


def _belongs(process: Path, folder: str) -> bool:
    environment = (process / "environ").read_bytes().split(b"\0")
    if os.fsencode(f"{NODE_MARK}={folder}") in environment:
        return True
    return os.fsencode(f"{_SESSION_MARK}={folder}") in environment and (
        _names((process / "cmdline").read_bytes(), folder) or _has_open(process, folder)
    )


def _names(command: bytes, folder: str) -> bool:
    """Whether a command line contains the whole path, not as a part of ``/copies/FOLDER_2``."""
    path = re.escape(os.fsencode(folder))
    return re.search(rb"(?<![\w./-])" + path + rb"(?![\w.-])", command) is not None


def _has_open(process: Path, folder: str) -> bool:
    ours = [file for file in _open_files(process) if f"{file}/".startswith(f"{folder}/")]
    return bool(ours) and not any(map(DRIVER_LOG.search, ours))


def _open_files(process: Path) -> list[str]:
    found = []
    for link in (process / "fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found


def mark_folder(folder: Path, path: Path | None = None) -> int:
    """Mark a new folder as ours.

    Args:
        folder: a folder that was just made.
        path: its final path; None for its present one.

    Returns:
        the descriptor of its lock, which is held while it is open.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(folder / LOCK, flags, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, _mark(path or folder))
    return lock


def _mark(folder: Path) -> bytes:
    """The content of a lock file: the path with links resolved, except in its last part."""
    return os.fsencode(folder.parent.resolve() / folder.name)


def is_ours(lock: int, path: Path) -> bool:
    """Whether a descriptor is that of the lock of a folder that this user made under a path."""
    found, mark = os.fstat(lock), _mark(path)
    mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
    return mine and os.pread(lock, len(mark) + 1, 0) == mark


def clear_session(folder: Path, seconds: float = 0.0) -> None:
    """Wait for the processes of a session to end, kill them after some seconds, remove its folder.

    The folder stays if a process cannot be ended, or if `mark_folder` did not make it.
    """
    name, until = str(folder), time.monotonic() + seconds
    while pids := processes_of(name):
        now = time.monotonic()
        if now > until + _SECONDS_TO_DIE:
            return
        for pid in pids:
            if now > until:
                process = Path("/proc", str(pid))
                with suppress(OSError):
                    kill_if(pid, partial(_belongs, process, name))
        pause(_POLL_SECONDS)
    _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, following no links.

    The lock is removed last, as it tells whether the folder is in use.
    """
    with suppress(OSError), ExitStack() as stack:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, top)
        lock = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
        stack.callback(os.close, lock)
        if os.fstat(top).st_uid != os.getuid() or not is_ours(lock, folder):
            return
        for entry in os.scandir(top):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, ignore_errors=True, dir_fd=top)
            elif entry.name != LOCK:
                os.unlink(entry.name, dir_fd=top)
        if [entry.name for entry in os.scandir(top)] == [LOCK]:
            os.unlink(LOCK, dir_fd=top)
            folder.rmdir()


class Guard:
    """A handle of the guard process, for the owner of a session.

    Args:
        process: the guard, which writes a byte to its stdout when it is ready.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def check(self) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeFailure: it did not start.
        """
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], _SECONDS_TO_START)[0]:
            raise _unguarded(f"it has not answered for {_SECONDS_TO_START:g} s")
        if not os.read(output.fileno(), 1):
            code = wait_for_exit(self._process, _SECONDS_TO_LEAVE)
            raise _unguarded(f"it has ended with exit code {code}")

    def dismiss(self) -> None:
        """End it; by force, if it does not end by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                if pipe.writable():
                    pipe.write(_DISMISSED)
                pipe.close()
        if wait_for_exit(self._process, _SECONDS_TO_LEAVE) is None:  # stopped, say
            self._process.kill()
            self._process.wait()


def _unguarded(why: str) -> RuntimeFailure:
    return RuntimeFailure(
        f"the process that clears up after a killed training did not start: {why}",
        "Look for a lack of memory or of processes, or train in this process: "
        + spelling().given("workers", 0),
    )


@contextmanager
def guarded(folder: Path) -> Iterator[Guard]:
    """While entered, a guard process watches a session's folder.

    Raises:
        RuntimeFailure: it cannot be started.
    """
    try:
        process = subprocess.Popen(
            python_module("distsgd.on_ray.session_guard", str(folder)),
            env=whole_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _unguarded(error.strerror or str(error)) from None
    guard = Guard(process)
    try:
        yield guard
    finally:
        guard.dismiss()


def _watch(folder: Path) -> None:
    """Wait for a byte, which dismisses the guard, or for the end of the pipe: the owner died."""
    with suppress(OSError):  # the owner is dead already
        os.write(sys.stdout.fileno(), _READY)
    if not sys.stdin.buffer.read(1):
        clear_session(folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
