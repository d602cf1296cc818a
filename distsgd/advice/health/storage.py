"""Folders and shared memory: whether they are there, can be written, and have room."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.cluster.access import cluster_home, token_file
from distsgd.cluster.node import last_node
from distsgd.data.locations import cache_folder, home_folder
from distsgd.errors import DistsgdError
from distsgd.transport.ray_variables import AUTH_MODE, TOKEN, TOKEN_PATH

__all__ = ["folders", "shared_memory", "token"]

_LEAST, _FEW = 100 * 2**20, 2**30
"""Bytes without which a folder is full, and with which it soon is."""

_FILES = 1000
_SHM = Path("/dev/shm")
_SHM_LEAST = 128 * 2**20
"""A private Ray has an object store of 100 MiB there."""

_OTHERS = 0o077


def folders() -> Iterator[Finding]:
    """The folders of runs and datasets, and that of temporary files."""
    for topic, where, variable in (
        ("runs", lambda: home_folder() / "runs", "DISTSGD_HOME"),
        ("cache", cache_folder, "DISTSGD_CACHE"),
        ("temporary files", _temporary, "TMPDIR"),
    ):
        yield from _folder(topic, where, variable)


def _temporary() -> Path:
    """The folder of temporary files, even one in which nothing can be made."""
    chosen = os.environ.get("TMPDIR")
    return Path(chosen) if chosen else Path(tempfile.gettempdir())


def _folder(topic: str, where: Callable[[], Path], variable: str) -> Iterator[Finding]:
    try:
        path = where()
    except DistsgdError as error:
        yield problem(topic, error.problem, error.hint)
        return
    except OSError as error:  # no folder of temporary files can be used
        yield problem(topic, str(error.strerror or error), f"Set {variable} to a folder of yours")
        return
    there = next(one for one in (path, *path.parents) if one.exists())
    elsewhere = f"Set {variable} to a folder on another disk"
    if not there.is_dir():
        yield problem(topic, f"{there} is not a folder", f"Set {variable} to a folder of yours")
        return
    if (why := _unwritable(there)) is not None:
        number, words = why
        if number == errno.ENOSPC:
            yield problem(topic, f"the disk of {path} is full", f"Free some space, or {elsewhere}")
        elif number == errno.ENOLCK:
            yield problem(topic, f"files in {path} cannot be locked", elsewhere)
        else:
            yield problem(
                topic, f"{path} cannot be written: {words}", f"Set {variable} to a folder of yours"
            )
        return
    system = os.statvfs(there)
    free = system.f_bavail * system.f_frsize
    if free < _FEW:
        kind = problem if free < _LEAST else warning
        yield kind(
            topic, f"the disk of {path} has {free >> 20} MiB left", f"Free some space, or "
            f"{elsewhere[0].lower()}{elsewhere[1:]}",
        )  # fmt: skip
    elif system.f_files and system.f_favail < _FILES:
        yield problem(
            topic, f"the disk of {path} has room for {system.f_favail} more files", elsewhere
        )
    else:
        yield ok(topic, f"{path}: writable, {free / 2**30:.1f} GiB left")


def _unwritable(folder: Path) -> tuple[int, str] | None:
    """The number and the words of the error that keeps a file from being written and kept."""
    try:
        handle, name = tempfile.mkstemp(prefix=".distsgd-doctor-", dir=folder)
    except OSError as error:
        return error.errno or 0, (error.strerror or str(error)).lower()
    try:
        os.write(handle, bytes(4096))
        os.fsync(handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or 0, (error.strerror or str(error)).lower()
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)
    return None


def shared_memory() -> Iterator[Finding]:
    """/dev/shm, where Ray keeps objects, and memory shared by descriptors, where we keep W."""
    try:
        os.close(os.memfd_create("distsgd-doctor"))
    except OSError as error:
        yield problem(
            "shared memory",
            f"this system gives none: memfd_create: {error.strerror}",
            "Allow memfd_create in the sandbox (seccomp), or train with --channel tcp",
        )
    cure = "Give the container more: docker run --shm-size=1g, or an emptyDir of medium Memory"
    if not _SHM.is_dir():
        yield problem("shared memory", f"there is no {_SHM}", f"Mount a tmpfs there. {cure}")
        return
    if (why := _unwritable(_SHM)) is not None:
        yield problem("shared memory", f"{_SHM} cannot be written: {why[1]}", cure)
        return
    system = os.statvfs(_SHM)
    free = system.f_bavail * system.f_frsize
    if free < _SHM_LEAST:
        yield warning(
            "shared memory",
            f"{_SHM} has {free >> 20} MiB left; Ray then keeps its objects on a disk",
            cure,
        )
    elif _kind(_SHM) not in ("tmpfs", ""):
        yield warning(
            "shared memory",
            f"{_SHM} is of kind {_kind(_SHM)}, not tmpfs: what Ray shares goes to a disk",
            "Mount a tmpfs there: mount -t tmpfs -o mode=1777 none /dev/shm",
        )
    else:
        yield ok("shared memory", f"{_SHM}: {free / 2**30:.1f} GiB left")


def _kind(path: Path) -> str:
    """The kind of file system that is mounted at a path; empty if nothing is."""
    kind = ""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return kind
    for line in lines.splitlines():
        _, where, found, *_ = line.split(" ")
        kind = found if where == str(path) else kind
    return kind


def token() -> Iterator[Finding]:
    """The token of a cluster: where it is needed, that it is there, and that it is private."""
    named = os.environ.get(TOKEN_PATH)
    path = Path(named).expanduser() if named else token_file()
    needed = bool(named) or last_node() is not None or os.environ.get(AUTH_MODE) == "token"
    if os.environ.get(TOKEN):
        yield ok("token", f"{TOKEN} has it")
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        if needed:
            yield problem(
                "token",
                f"there is no token in {path}, and this machine is of a cluster",
                f"Copy the head's to {path}, with mode 600",
            )
        else:
            yield ok("token", "none, as this machine is in no cluster")
        return
    except OSError as error:
        yield problem("token", f"{path} cannot be read: {error.strerror}", "Check its folder")
        return
    if found.st_uid != os.geteuid():
        yield problem("token", f"{path} belongs to another user", "Copy it, as a file of yours")
    elif found.st_mode & _OTHERS:
        yield problem(
            "token",
            f"other users may read {path} (mode {stat.S_IMODE(found.st_mode):o}), and so run any "
            "program on the cluster",
            f"chmod 600 {path}; begin the cluster again with a new token if others have an "
            "account here",
        )
    elif not os.access(path, os.R_OK) or not path.read_bytes().strip():
        yield problem("token", f"{path} is empty or cannot be read", "Copy the head's again")
    elif cluster_home().is_dir() and cluster_home().stat().st_mode & stat.S_IWOTH:
        yield problem(
            "token", f"every user may write to {cluster_home()}", f"chmod 700 {cluster_home()}"
        )
    else:
        yield ok("token", f"{path}, for you alone")
