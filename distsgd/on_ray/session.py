"""A private Ray on this machine, a *session*: quiet, on loopback only, and gone afterwards.

All its files lie in one folder under the system's temporary folder, which is locked while its owner
lives. If the owner is killed, a guard process ends what is left (`session_guard`); a folder whose
owner and guard are both gone is removed by the next session. Only processes that carry the mark of
a session in their environment are ever ended.

A Ray takes seconds of every core to start, and gives up after a minute: twenty at once on two cores
would all fail. So at most as many of one user's sessions start at a time as there are cores.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from distsgd.data.system import pause, search_path
from distsgd.engine.blas import same_core_type
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.capacity import free_threads
from distsgd.on_ray.init import init_ray, same_random_numbers, set_variables
from distsgd.on_ray.private import (
    SOCKET_PATH,
    drop_gcs_client,
    global_node,
    init_options,
    no_extra_processes,
    quiet_output,
    read_token,
    reread_environment,
)
from distsgd.on_ray.session_guard import (
    LOCK,
    Guard,
    clear_session,
    guarded,
    is_ours,
    mark_folder,
    session_mark,
)
from distsgd.on_ray.sharing import OWN, shared_connection
from distsgd.spelling import spelling
from distsgd.transport.ray_variables import STARTING, TOKEN, settings

__all__ = [
    "dead_sessions",
    "is_loopback",
    "ray_environment",
    "ray_session",
    "shut_down",
    "starting",
    "sweep_dead_sessions",
]


_PATIENCE_SECONDS = 600.0
"""Seconds after which a session that is still starting counts as stuck, and is not awaited."""

_QUIET_SECONDS = 1.0
_POLL_SECONDS = 0.1
_log = logging.getLogger("distsgd")


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """While entered, this session may start; waits for a free place among those that start.

    Args:
        folder: folder of the sessions; where no lock file can be made, nothing is awaited.
    """
    names = [f"distsgd-start-{os.getuid()}-{n}.lock" for n in range(len(os.sched_getaffinity(0)))]
    place = _take_place([folder / name for name in names])
    try:
        yield
    finally:
        if place is not None:
            path, lock = place
            with suppress(OSError):
                path.unlink()
            os.close(lock)


def _take_place(places: Sequence[Path]) -> tuple[Path, int] | None:
    """Lock one of the files; None if none can be locked in time."""
    began, warned = monotonic(), False
    while True:
        taken = False
        for path in places:
            if (lock := _own_file(path)) is None:
                continue
            if _locked(lock, path):
                return path, lock
            os.close(lock)
            taken = True
        waited = monotonic() - began
        if not taken or waited > _PATIENCE_SECONDS:
            return None
        if waited > _QUIET_SECONDS and not warned:
            warned = True
            _log.warning("waiting for other trainings on this machine that are starting")
        pause(_POLL_SECONDS)


def _own_file(path: Path) -> int | None:
    """Open a file that belongs to this user, or make it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        lock = os.open(path, flags, 0o600)
        found = os.fstat(lock)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            return lock
        os.close(lock)
    return None


def _locked(lock: int, path: Path) -> bool:
    """Lock a file, unless another process has, or it has been removed meanwhile."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(lock).st_ino == path.stat(follow_symlinks=False).st_ino
    return False


_PREFIX = "distsgd-ray-"
_SESSION = re.compile(r"distsgd-ray-[a-z0-9_]{8}")
_UNNAMED = re.compile(r"\.distsgd-(?P<owner>[0-9]+)-(?P<name>[a-z0-9_]{8})")
"""Names of a session's folder: the final one, and the one before it is locked."""

_OBJECT_STORE_BYTES = 100 * 2**20
_SECONDS_TO_LEAVE = 2.0
_LEAST_THREADS = 200
"""A session with one worker on two cores has about 270."""

_STARTING_PER_CORE = 2
"""Workers that start at the same time, for each core; Ray would start one."""

_STAND_IN = Path(__file__).with_name("stand_in.py")

_MOST_BYTES = 107 - len(f"/{_PREFIX}12345678{SOCKET_PATH}")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is on the loopback interface."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _root() -> Path:
    """The temporary folder, or /tmp where the paths of Ray's sockets would be too long."""
    chosen = Path(tempfile.gettempdir())
    return chosen if len(os.fsencode(chosen)) <= _MOST_BYTES else Path("/tmp")


def sweep_dead_sessions() -> None:
    """End the processes of sessions whose owner was killed, and remove their folders.

    Folders of other users, and copies of ours, stay.
    """
    root = _root()
    for entry in _entries(root):
        if _SESSION.fullmatch(entry.name) and _is_own_folder(entry):
            with suppress(OSError):
                _sweep(Path(entry.path), Path(entry.path))
        match = _UNNAMED.fullmatch(entry.name)
        if match and _is_own_folder(entry) and not Path("/proc", match["owner"]).exists():
            with suppress(OSError):
                _sweep(Path(entry.path), root / f"{_PREFIX}{match['name']}")


def dead_sessions() -> list[Path]:
    """Folders of sessions whose owner and guard were killed; `sweep_dead_sessions` clears them."""
    return [
        Path(entry.path)
        for entry in _entries(_root())
        if _SESSION.fullmatch(entry.name) and _is_own_folder(entry) and _is_dead(Path(entry.path))
    ]


def _is_dead(folder: Path) -> bool:
    """Whether a folder is a session's, and nobody holds its lock."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A shared one, which keeps nobody out.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return is_ours(lock, folder)
    except OSError:
        return False
    finally:
        os.close(lock)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
        return own and entry.is_dir(follow_symlinks=False)
    return False


def _sweep(folder: Path, path: Path) -> None:
    """Clear a folder whose lock nobody holds.

    Never creates the lock file: its owner may just have removed it.

    Args:
        folder: the folder.
        path: its final path; a folder made for another path is not ours.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        folder.rmdir()  # the lock goes last: it is empty, or it is not one of ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have removed it since it was opened; then nothing is left to do.
        if not is_ours(lock, path) or (folder / LOCK).stat().st_ino != os.fstat(lock).st_ino:
            return
        if folder == path:
            clear_session(folder)
        else:  # nothing else is in it yet
            (folder / LOCK).unlink()
            folder.rmdir()
    finally:
        os.close(lock)


@contextmanager
def ray_environment(**variables: str) -> Iterator[None]:
    """While entered, these environment variables are set, and Ray knows it."""
    try:
        with _variables(**variables):
            reread_environment()
            yield
    finally:
        if _session_token is None:
            reread_environment()
        else:
            _read_token(_session_token)


@contextmanager
def _variables(**variables: str) -> Iterator[None]:
    """While entered, these environment variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        set_variables(before)


@contextmanager
def _session_folder() -> Iterator[tuple[Path, Guard]]:
    sweep_dead_sessions()
    # It gets its final name once it is locked, so that another sweep never sees it unlocked. Until
    # then its name contains the process id of its owner.
    owner = os.getpid()
    unnamed = Path(tempfile.mkdtemp(prefix=f".distsgd-{owner}-", dir=_root()))
    folder = _root() / f"{_PREFIX}{unnamed.name.rpartition('-')[2]}"
    lock = mark_folder(unnamed, folder)
    unnamed.rename(folder)
    try:
        with guarded(folder) as guard:
            yield folder, guard
    finally:
        if os.getpid() == owner:  # not in a forked child
            clear_session(folder, _SECONDS_TO_LEAVE)
            # A folder that could not be removed stays locked until this process ends.
            if not folder.exists():
                os.close(lock)


@contextmanager
def ray_session(cpus: int) -> Iterator[None]:
    """Connect to Ray: to the caller's if there is one, else to a new session.

    Trainings in several threads of a process share the session; the last one ends it.

    Args:
        cpus: logical CPUs of a new session; its worker processes start when they are needed.

    Raises:
        RuntimeFailure: Ray did not start, or see `shared_connection`.
    """
    with shared_connection(OWN, lambda: _own_session(cpus)):
        yield


@contextmanager
def _own_session(cpus: int) -> Iterator[None]:
    _check_threads()
    with (
        ray_environment(**settings("session")),
        _session_folder() as (folder, guard),
        quiet_output(),
    ):
        owner = os.getpid()
        try:
            with _own_token() as token:
                with starting(folder.parent), _token_shown(token):
                    reread_environment()
                    _start(cpus, folder)
                guard.check()
                yield
        finally:
            if os.getpid() == owner:
                shut_down()


def _check_threads() -> None:
    """Check that Ray's processes can start their threads; Ray would wait for a minute.

    Raises:
        RuntimeFailure: they cannot.
    """
    free = free_threads()
    if free is not None and free < _LEAST_THREADS:
        raise RuntimeFailure(
            f"only {free} more threads and processes may be started, and Ray needs at least "
            f"{_LEAST_THREADS}",
            "Raise the limit (ulimit -u, pids.max), or train in this process: "
            + spelling().given("workers", 0),
        )


_session_token: str | None = None
"""The token of the session of this process, while there is one."""


@contextmanager
def _own_token() -> Iterator[str]:
    """A new token; Ray returns to it after `ray_environment` for another cluster."""
    global _session_token
    _session_token = token = secrets.token_hex(32)
    try:
        yield token
    finally:
        _session_token = None


@contextmanager
def _token_shown(token: str) -> Iterator[None]:
    """While entered, the token is in the environment, so that Ray's new processes inherit it.

    Processes that the caller starts later do not.
    """
    with _variables(**{TOKEN: token}):
        yield


def _read_token(token: str) -> None:
    """Make Ray read a token, and keep it when it is no longer in the environment."""
    with _token_shown(token):
        reread_environment()
        read_token()


def shut_down() -> None:
    """Disconnect from Ray, and drop the client that Ray itself keeps until the process exits.

    That client ends the process some seconds after its cluster has gone.
    """
    import ray

    node = global_node()
    with same_random_numbers():
        ray.shutdown()
    drop_gcs_client(node)


def _start(cpus: int, folder: Path) -> None:
    at_once = min(cpus, _STARTING_PER_CORE * len(os.sched_getaffinity(0)))
    try:
        with no_extra_processes([sys.executable, "-I", "-S", str(_STAND_IN)]):
            init_ray(
                {
                    **session_mark(folder),
                    **search_path(),
                    **same_core_type(),
                    STARTING: str(at_once),
                },
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                # In our folder, which only this user can enter; Ray lets everyone into its own.
                **init_options(folder / "ray"),
            )
    except RuntimeFailure:
        raise
    except Exception as error:  # Ray raises this very class when a process of it does not come up
        why = str(error).partition("\n")[0].rstrip(".")
        raise RuntimeFailure(
            f"Ray did not start: {why}",
            f"Train in this process instead: {spelling().given('workers', 0)}",
        ) from error
