"""The folder of a study: what is studied, and every finished piece of it, in an append-only file.

study.jsonl             what is studied, then one line for each thing that has happened, each on
                        the disk before the study goes on
runs/, states/          what belongs to the trainings themselves

The folder can be read by its user alone. A study that was killed goes on from its lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distsgd.data.folder_files import SMALL, read_inside, replace_inside
from distsgd.data.locations import expanded, home_folder
from distsgd.data.lock_file import LockFile
from distsgd.data.text_files import parse_json
from distsgd.errors import RunError, UsageError, machine_trouble, storage_error
from distsgd.runs.line_file import LineFile
from distsgd.spelling import spelling
from distsgd.version import __version__

__all__ = ["StudyFolder", "find_study", "studies_home", "study_digest"]

_LINES, _LOCK = "study.jsonl", ".running"
_FORMAT = 1
_LONGEST = 4 * SMALL
_LATEST = "latest"


def studies_home() -> Path:
    """The folder of studies without a folder of their own."""
    return home_folder() / "studies"


def study_digest(kind: str, definition: Mapping[str, Any]) -> str:
    """What distinguishes a study from all others."""
    text = json.dumps([kind, definition], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class StudyFolder:
    """A study folder, held by this process.

    Args:
        path: the folder; made if it is missing.
        kind: "sweep" or "tune".
        definition: what is studied, as JSON has it.

    Attributes:
        path: as given.
        lines: what has happened so far, in order, without the first line.
    """

    def __init__(self, path: Path, kind: str, definition: Mapping[str, Any]) -> None:
        self.path, self._kind = path, kind
        try:
            path.mkdir(parents=True, mode=0o700, exist_ok=True)
            if (path / _LINES).exists():
                self.lines = self._read(definition)
            elif any(one.name != _LOCK for one in path.iterdir()):
                raise UsageError(
                    f"{path} exists already and is no study",
                    f"Choose another {spelling().setting('study')}",
                )
            else:
                path.chmod(0o700)
                self.lines = []
        except (NotADirectoryError, FileExistsError):
            raise UsageError(
                f"{path} is no folder", f"Choose another {spelling().setting('study')}"
            ) from None
        except OSError as error:
            raise storage_error(error, path) from None
        self._definition = definition
        self._lock = LockFile(path / _LOCK)
        self._file: LineFile | None = None

    def _read(self, definition: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind, found, lines = read_study(self.path)
        if study_digest(kind, found) != study_digest(self._kind, definition):
            how = _difference(kind, found, self._kind, definition)
            raise UsageError(
                f"{self.path} is the folder of another study: {how}",
                f"Choose another {spelling().setting('study')}, or go on with that one: "
                f"`distsgd {kind} --resume {self.path}`",
            )
        return lines

    @contextmanager
    def held(self) -> Iterator[None]:
        """While entered, no other process works on the study.

        Raises:
            RunError: another one does.
            StorageError: the folder cannot be written.
        """
        path = self.path / _LINES
        try:
            if not self._lock.acquire(wait=False):
                raise RunError(
                    f"the study {self.path} is running", "Wait for its end, or stop it first"
                )
        except OSError as error:
            raise storage_error(error, self.path / _LOCK) from None
        try:
            if path.exists():  # it may have got lines while it was not held
                self.lines = self._read(self._definition)
                self._file = LineFile(path)
            else:
                self._begin(path)
            yield
        finally:
            if self._file is not None:
                self._file.close()
            self._lock.release()

    def _begin(self, path: Path) -> None:
        first = {
            "study": self._kind, "format": _FORMAT, "version": __version__,
            "definition": self._definition,
        }  # fmt: skip
        try:  # whole or not at all: a study without a first line is none
            replace_inside(path, (json.dumps(first) + "\n").encode())
        except OSError as error:
            raise storage_error(error, path) from None
        self._file = LineFile(path)

    def add(self, **line: Any) -> None:
        """Append a line; it is on the disk when this returns.

        Raises:
            StorageError: the disk is full.
        """
        assert self._file is not None, "the study is not held"
        self._file.write(line)
        self._file.sync()
        self.lines.append(line)

    def make(self, name: str) -> Path:
        """A folder inside, made if it is missing.

        Raises:
            StorageError: it cannot be made.
        """
        path = self.path / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error(error, path) from None
        return path

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder, whole or not at all.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        path = self.path / name
        try:
            replace_inside(path, content)
        except OSError as error:
            raise storage_error(error, path) from None


def read_study(path: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """What is studied in a folder, and what has happened.

    Returns:
        the kind, the definition, and the other lines; an incomplete last line is left out.

    Raises:
        RunError: it is no study, or damaged.
        StorageError: the machine cannot read it.
    """
    file = path / _LINES
    try:
        content = read_inside(file, most=_LONGEST)
    except FileNotFoundError:
        raise RunError(f"{path} is no study: it has no {_LINES}", "Check the path") from None
    except OSError as error:
        raise machine_trouble(error, file) or RunError(f"{file} cannot be read: {error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    try:
        first, *lines = [parse_json(line) for line in whole.splitlines()]
        if not all(isinstance(line, dict) for line in (first, *lines)):
            raise ValueError("a line is no JSON object")
        kind, form, definition = first["study"], first["format"], first["definition"]
        if not isinstance(kind, str) or not isinstance(definition, dict):
            raise ValueError("its first line does not say what is studied")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"{file} is damaged: {str(error) or type(error).__name__}", "Begin another study"
        ) from None
    if form != _FORMAT:
        raise RunError(f"{file} is of another version of distsgd", "Use the version that made it")
    return kind, definition, lines


def find_study(name: str | Path, kind: str) -> Path:
    """The folder of a study: a path, a name of a study, or "latest".

    Args:
        name: as the user gives it.
        kind: "sweep" or "tune".

    Raises:
        RunError: there is none.
    """
    home = studies_home()
    if str(name) == _LATEST:
        found = [path for path in _folders(home) if path.name.startswith(f"{kind}-")]
        if not found:
            raise RunError(f"there is no {kind} yet", f"Begin one: `distsgd {kind} --help`")
        return max(found, key=lambda path: (path / _LINES).stat().st_mtime_ns)
    path = expanded(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+", str(name)) and (home / name).exists():
        return home / name
    return path.absolute()


def _folders(home: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in home.iterdir() if (path / _LINES).is_file()]
    return []


def _difference(
    kind: str, found: Mapping[str, Any], wanted_kind: str, wanted: Mapping[str, Any]
) -> str:
    """In what two studies differ, in few words."""
    if kind != wanted_kind:
        return f"it is a {kind}"
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    shown = json.dumps(found.get(names[0])) if names else ""
    return (
        f"its {names[0]} is {shown if len(shown) < 100 else 'another'}" if names else "it differs"
    )
