"""Safe access to files of a folder that another user may have made: plain files, and no links.

A run folder, a dataset or a cache may come from a colleague or a stranger. Through a symbolic link
in it we would read, truncate or remove a file elsewhere, and on a pipe we would wait without end.
So all of its files are opened by the functions of this module. The folder itself may be reached
through links: these are the user's own, or the user has named them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from distsgd.errors import NotPlainFile

__all__ = [
    "SMALL",
    "mappable",
    "move_inside",
    "names_inside",
    "open_inside",
    "read_inside",
    "reader_inside",
    "remove_inside",
    "replace_inside",
    "stat_inside",
]

SMALL = 64 << 20
"""Most bytes of a JSON file."""

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def _entered(inner: Path, top: Path, path: Path) -> Iterator[int]:
    """A descriptor of a folder, which is ``top`` or lies below it, with no link between them.

    Errors within name ``path``, whatever name they had from the system.
    """
    folder = -1
    try:
        folder = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in inner.relative_to(top).parts:
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                what = "it" if name == path.name else name
                raise NotPlainFile(errno.ELOOP, f"{what} is a symbolic link, not a folder")
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            outer, folder = folder, os.open(name, flags, dir_fd=folder)
            os.close(outer)
        yield folder
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        if folder >= 0:
            os.close(folder)


def _folder_of(path: Path, below: Path | None) -> AbstractContextManager[int]:
    return _entered(path.parent, below or path.parent, path)


def _check(found: os.stat_result, *, writing: bool) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise NotPlainFile(errno.EINVAL, f"it is {kind}, not a file")
    if writing and found.st_nlink > 1:
        raise NotPlainFile(
            errno.EMLINK, "it has another name elsewhere, a hard link, and would change there too"
        )


def open_inside(
    path: Path, flags: int = os.O_RDONLY, *, below: Path | None = None, mode: int = 0o600
) -> int:
    """Open a file of a folder; returns its descriptor.

    Args:
        path: the file.
        flags: those of `os.open`, without O_TRUNC, which would act before the checks.
        below: the outer folder that must be free of links, if ``path`` is in a folder of it.
        mode: mode of a file that is created.

    Raises:
        NotPlainFile: it is a link, a pipe, a device or a socket; or it is opened for writing
            and has a second name.
        OSError: it cannot be opened.
    """
    writing = flags & os.O_ACCMODE != os.O_RDONLY
    with _folder_of(path, below) as folder:
        with suppress(FileNotFoundError):  # first, as opening a device may have effects
            _check(os.stat(path.name, dir_fd=folder, follow_symlinks=False), writing=writing)
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(path.name, flags, mode, dir_fd=folder)
        try:
            _check(os.fstat(file), writing=writing)  # another file may have taken its place
        except BaseException:
            os.close(file)
            raise
        return file


def reader_inside(path: Path, *, below: Path | None = None) -> BufferedReader:
    """Open a file of a folder for reading bytes; errors as `open_inside`."""
    return os.fdopen(open_inside(path, below=below), "rb")


def read_inside(path: Path, *, below: Path | None = None, most: int | None = None) -> bytes:
    """The content of a file of a folder.

    Args:
        path: the file.
        below: as for `open_inside`.
        most: largest number of bytes; None for any.

    Raises:
        OSError: as `open_inside`, or it is larger.
    """
    with reader_inside(path, below=below) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(
                errno.EFBIG, f"it has {size:,} bytes, more than such a file ever has", str(path)
            )
        return file.read()


def stat_inside(path: Path, *, below: Path | None = None) -> os.stat_result:
    """The `os.stat` of a plain file of a folder, without opening it.

    Raises:
        OSError: as `open_inside`.
    """
    with _folder_of(path, below) as folder:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        _check(found, writing=False)
        return found


def replace_inside(
    path: Path,
    content: bytes,
    *,
    below: Path | None = None,
    mode: int = 0o600,
    durable: bool = True,
) -> None:
    """Write a file, so that it has either its old or its new content at any time.

    Anything there except a folder is replaced, and never written into.

    Args:
        path: the file.
        content: all of its content.
        below: as for `open_inside`.
        mode: permissions, before the umask.
        durable: whether it must also survive a loss of power; else it may be lost or garbled then.

    Raises:
        OSError: the old file, if there was one, is untouched.
    """
    beside = f".{path.name}.{os.getpid()}.tmp"
    with _folder_of(path, below) as folder:
        try:
            with suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)  # do not open it: it may be a link
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(beside, flags, mode, dir_fd=folder), "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise
        if not durable:
            return
        entries = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def remove_inside(path: Path, *, below: Path | None = None) -> None:
    """Remove a file of a folder, if it exists; a link itself is removed.

    Raises:
        OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError), _folder_of(path, below) as folder:
        os.unlink(path.name, dir_fd=folder)


def move_inside(path: Path, target: Path, *, below: Path) -> None:
    """Rename a file; what is at the new place, if it is no folder, is replaced.

    Args:
        path: the file.
        target: its new place.
        below: a folder around both; no link lies between it and them.

    Raises:
        OSError: it is where it was.
    """
    with _folder_of(path, below) as source, _folder_of(target, below) as folder:
        os.replace(path.name, target.name, src_dir_fd=source, dst_dir_fd=folder)


def names_inside(folder: Path, *, below: Path) -> list[str]:
    """The names in a folder inside another one, in any order; none if it is missing.

    Raises:
        OSError: it cannot be listed, or is a link.
    """
    with suppress(FileNotFoundError), _entered(folder, below, folder) as opened:
        entries = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
        try:
            return os.listdir(entries)  # noqa: PTH208
        finally:
            os.close(entries)
    return []


@contextmanager
def mappable(path: Path, flags: int = os.O_RDONLY) -> Iterator[str]:
    """A path to an open plain file of a folder, for libraries that open files themselves.

    Args:
        path: the file.
        flags: as for `open_inside`; permissions of a new file follow the umask.

    Raises:
        OSError: as `open_inside`.
    """
    file = open_inside(path, flags, mode=0o666)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
