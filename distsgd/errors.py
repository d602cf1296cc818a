"""Every error that a user can meet, as one tree.

DistsgdError                 anything that a user can fix; exit code 1
├── UsageError               an argument or setting that cannot be used; exit code 2
├── DatasetError             a dataset that is missing or malformed
│   └── CorruptDataError     bytes that do not match their checksum
├── SourceError              a source of data that cannot be reached or used
├── RunError                 a run folder that is missing, taken or damaged
│   └── JournalError         a journal that is invalid
├── StorageError             a disk that is full, read-only or failing, or an unreadable file
├── ResourceError            too little memory, or too few threads or open files
├── DivergedError            the loss is no longer a finite number
├── VerificationError        an update that an independent recomputation does not confirm
├── ProcessLost              a process that has died; training resumes after its last update
│   ├── ServerLost           a parameter server
│   └── WorkerLost           a worker, and its residual with it
└── RuntimeFailure           workers or servers that fail again and again, or do not start
    └── ChannelClosed        the other end of a channel is closed

Outside the tree: TrainingInterrupted is a KeyboardInterrupt, and NotPlainFile is an OSError that
becomes a StorageError.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = [
    "ChannelClosed",
    "CorruptDataError",
    "DatasetError",
    "DistsgdError",
    "DivergedError",
    "JournalError",
    "NotPlainFile",
    "ProcessLost",
    "ResourceError",
    "RunError",
    "RuntimeFailure",
    "ServerLost",
    "SourceError",
    "StorageError",
    "TrainingInterrupted",
    "UsageError",
    "VerificationError",
    "WorkerLost",
    "import_optional",
    "in_short",
    "machine_trouble",
    "missing_package",
    "resource_error",
    "storage_error",
    "system_error",
    "unreadable_module",
]


class DistsgdError(Exception):
    """What is wrong, and what to do next.

    Args:
        problem: one clause without a full stop.
        hint: the next step for the user; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        # Both go to args, so that the error survives pickling between processes.
        super().__init__(problem, hint)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        hint = self.hint if self.hint.endswith("?") else f"{self.hint}."
        return f"{self.problem}. {hint}" if self.hint else f"{self.problem}."


class UsageError(DistsgdError):
    """An argument or a setting has a value that cannot be used."""

    exit_code = 2


class DatasetError(DistsgdError):
    """A dataset is missing or malformed."""


class CorruptDataError(DatasetError):
    """Bytes do not match their recorded checksum."""


class SourceError(DistsgdError):
    """A source of data cannot be reached or is not what it should be."""


class RunError(DistsgdError):
    """A run folder is missing, already taken, or damaged."""


class JournalError(RunError):
    """A journal is invalid.

    Args:
        line: the first invalid line, from 1; 0 for the whole file.
        why: what is wrong with it.
    """

    def __init__(self, line: int, why: str) -> None:
        Exception.__init__(self, line, why)
        self.line, self.why = line, why
        self.problem = f"the journal does not hold: record {line}: {why}" if line else why
        self.hint = "The updates from there on cannot be trusted; train again"


class StorageError(DistsgdError):
    """A disk is full, read-only or failing, or the machine has no more memory or open files."""


class ResourceError(DistsgdError):
    """The machine, or a limit of this process, gives too little memory or too few files."""


class DivergedError(DistsgdError):
    """The loss of an update is not a finite number.

    Args:
        step: global number of the update, from 0.
        loss: the loss that was found.
        learning_rate: learning rate of that update.
        remedy: a setting to try, as the user writes it.
        bound: with exact arithmetic, which bound was exceeded, and by what.
    """

    def __init__(
        self, step: int, loss: float, learning_rate: float, remedy: str = "", bound: str = ""
    ) -> None:
        Exception.__init__(self, step, loss, learning_rate, remedy, bound)
        self.step = step
        self.loss = loss
        self.learning_rate = learning_rate
        self.problem = f"training diverged: the loss at step {step} is {loss}"
        if bound:
            self.problem = f"training diverged at step {step}: {bound}"
        self.hint = f"Lower the learning rate (it was {learning_rate:g})" + (
            f": {remedy}" if remedy else ""
        )


class VerificationError(DistsgdError):
    """An update differs from an independent recomputation; says which one, and by how much."""


class ProcessLost(DistsgdError):
    """A process has died whose state is rebuilt from the run folder, after the last update."""


class ServerLost(ProcessLost):
    """A parameter server has died."""


class WorkerLost(ProcessLost):
    """A worker has died, and its residual with it."""


class RuntimeFailure(DistsgdError):
    """Workers or servers fail again and again, or do not start."""


class ChannelClosed(RuntimeFailure):
    """The other end of a channel is closed."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C has ended a training; `distsgd.resume(run_dir)` continues after its last update.

    Args:
        run_dir: the run folder.
        step: updates applied, of which the last has a checkpoint; None if a second Ctrl-C has
            ended it at once, without one.
    """

    def __init__(self, run_dir: str, step: int | None) -> None:
        super().__init__(run_dir, step)
        self.run_dir = run_dir
        self.step = step

    def __str__(self) -> str:
        after = "" if self.step is None else f" after update {self.step}"
        return f"training was interrupted{after}; to resume: distsgd.resume({self.run_dir!r})"


class NotPlainFile(OSError):
    """A link, a pipe, a device or a socket, where a folder should have a plain file.

    See `distsgd.data.folder_files`. The user meets it as a `StorageError`.
    """


_LONGEST = 300
"""Characters of a file's content that an error quotes at most."""

_PLAIN = "Replace it by a plain file, if you know where it comes from"


def in_short(error: BaseException) -> str:
    """The text of an error, cut where a damaged file has made it long."""
    text = str(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def storage_error(error: OSError, path: object, hint: str = "") -> StorageError:
    """Turn an operating-system error about ``path`` into one that says what to do."""
    why = (error.strerror or str(error)).lower()
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        hint = _TROUBLE[error.errno]
    elif isinstance(error, NotPlainFile):
        hint = _PLAIN
    elif not hint:
        hint = (
            "Free some space or choose another folder"
            if error.errno in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
            else ("Check that the folder exists and that you may write to it")
        )
    return StorageError(f"cannot write {path}: {why}", hint)


_FULL = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of writing alone."""


def system_error(error: OSError, folder: object = None) -> DistsgdError:
    """Turn an operating-system error that was not handled closer to its cause into one of ours.

    It may or may not be about a file, and about reading or writing.

    Args:
        error: the error.
        folder: a folder that is being written to, if any.
    """
    number, named = error.errno, error.filename
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    name = named if isinstance(named, str) and named else None
    inside = folder is not None and name is not None and Path(name).is_relative_to(str(folder))
    if number in _FULL or inside:
        return storage_error(error, name or folder or "to the disk")
    why = (error.strerror or str(error) or type(error).__name__).lower()
    if name is not None:
        hint = _TROUBLE.get(number or 0, "Check that it exists and that you may use it")
        return StorageError(f"cannot use {name}: {why}", hint)
    if isinstance(error, ConnectionError | TimeoutError):
        return SourceError(f"a connection has failed: {why}", "Try again, and check the network")
    where = _module_of(error)
    return DistsgdError(
        f"the system has refused something{f' in {where}' if where else ''}: {why}",
        "The traceback shows what",
    )


def _module_of(error: BaseException) -> str:
    """The module of ours where an error was raised, or that it passed last; "" if unknown."""
    found, trace = "", error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        found = name if name.startswith("distsgd.") else found
        trace = trace.tb_next
    return found


_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "google": "protobuf"}
"""Packages whose import name is not the name that pip knows."""


def missing_package(error: ImportError) -> DistsgdError | None:
    """What to install after a failed import; None if the module is ours or Python's."""
    name = (error.name or "").partition(".")[0]
    if not name or name in ("distsgd", *sys.stdlib_module_names):
        return None
    package = _PACKAGES.get(name, name)
    if isinstance(error, ModuleNotFoundError):
        problem = f"the package {package} is not installed"
    else:
        problem = f"the package {package} is damaged: {(str(error).splitlines() or [''])[0]}"
    return DistsgdError(problem, f"Run: {sys.executable} -m pip install --upgrade {package}")


def import_optional(module: str, extra: str) -> Any:
    """A module of a package that not everybody installs.

    Args:
        module: its full name.
        extra: of distsgd, which installs it.

    Raises:
        DistsgdError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if missing_package(error) is None:
            raise
        name = (error.name or "").partition(".")[0]
        raise DistsgdError(
            f"the package {_PACKAGES.get(name, name)} is not installed",
            f"Run: {sys.executable} -m pip install 'distsgd[{extra}]'",
        ) from None


_MEMORY = "Use smaller sizes, free some memory, or raise the limit (ulimit -v)"
_THREADS = "End some processes, or raise the limits (ulimit -u, ulimit -v)"
_FILES = "Raise the limit: ulimit -n 4096"
_SCARCE = {
    errno.ENOMEM: ("there is too little memory", _MEMORY),
    errno.EAGAIN: ("the system starts no more threads or processes", _THREADS),
    errno.EMFILE: ("this process may open no more files", _FILES),
    errno.ENFILE: ("the whole system may open no more files", "Close some programs"),
}
_SCARCE_WORDS = {
    "failed to map segment": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "std::bad_alloc": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "resource temporarily unavailable": errno.EAGAIN,
    "too many open files": errno.EMFILE,
}
"""Messages of the dynamic loader, threads and C++ libraries, whose errors have no own class."""


def resource_error(error: BaseException) -> ResourceError | None:
    """Name the resource that the machine lacks, if that caused an error; None for other causes.

    The causes of the error count too: libraries wrap a failed import in an error of their own.
    """
    if isinstance(error, DistsgdError):
        return None
    for one in _causes(error):
        text = str(one).strip().partition("\n")[0].rstrip(".")
        number = one.errno if isinstance(one, OSError) else None
        if isinstance(one, MemoryError):
            number = errno.ENOMEM
        for words, meaning in _SCARCE_WORDS.items():
            if number is None and words in text.lower():
                number = meaning
        if number in _SCARCE:
            problem, hint = _SCARCE[number]
            return ResourceError(f"{problem}: {text}" if text else problem, hint)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_TROUBLE = {
    **{number: _SCARCE[number][1] for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)},
    errno.EACCES: "Check that you may read it, and the folders around it",
    errno.EPERM: "Check that you may read it",
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space: your quota is used up",
    errno.EROFS: "Choose another folder: this one cannot be written",
    errno.ENOLCK: "Choose a folder on a local disk",
}
"""Errors that do not depend on a file's content, and what to do about each."""


def machine_trouble(error: BaseException, path: object) -> StorageError | None:
    """The error about a file that the machine or its limits make unusable.

    Args:
        error: raised while the file was read. Libraries raise an `OSError` for damaged content,
            too, which has no number.
        path: of the file.

    Returns:
        None for any other error, such as a missing or damaged file or a failing disk.
    """
    if isinstance(error, NotPlainFile):
        return StorageError(f"cannot use {path}: {error.strerror}", _PLAIN)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif isinstance(error, OSError) and error.errno in _TROUBLE:
        number = error.errno
    else:
        return None
    return StorageError(f"cannot use {path}: {os.strerror(number).lower()}", _TROUBLE[number])


def unreadable_module(error: BaseException) -> DistsgdError | None:
    """What to do about a truncated compiled module; None for other errors.

    Python leaves one behind if the disk was full, or a file size limit reached, as it wrote it.
    """
    for one in _causes(error):
        if isinstance(one, EOFError) and str(one).startswith(("marshal data", "EOF read")):
            return DistsgdError(
                f"a compiled module of this Python is truncated: {one}",
                "Remove the __pycache__ folders of the installation",
            )
    return None
