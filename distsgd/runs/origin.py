"""Where a training comes from: command line, commit of the folder, machine; and its tags."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distsgd.data.text_files import is_printable
from distsgd.errors import RunError, StorageError, UsageError
from distsgd.runs.folder import RunFolder
from distsgd.spelling import spelling

__all__ = ["Origin", "change_tags", "checked_tags", "commit_of", "origin_here", "tags_of"]

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
_LONGEST_FILE, _MOST_LEVELS = 16 << 20, 64
_TAGS_FILE = "tags.json"
_LONGEST_TAG, _MOST_TAGS = 100, 100


@dataclass(frozen=True)
class Origin:
    """Where a training comes from.

    Attributes:
        command: the command line that started it; None if it was called from Python.
        git: commit of the folder in which it was started; None outside a repository.
        host: name of the machine.
    """

    command: tuple[str, ...] | None = None
    git: str | None = None
    host: str | None = None


def origin_here(command: Sequence[str] | None = None) -> Origin:
    """The origin of what is started now; what cannot be found out is None.

    Args:
        command: the command line, if there is one.
    """
    git = host = None
    with suppress(OSError):
        git = commit_of(Path.cwd())
    with suppress(OSError):
        host = socket.gethostname()
    return Origin(None if command is None else tuple(command), git, host)


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in the repository of a folder, read from git's own files.

    No program is started. None outside a repository, before the first commit, and where git keeps
    its references in another form than files.
    """
    for above in (folder, *list(folder.parents)[:_MOST_LEVELS]):
        place = above / ".git"
        with suppress(OSError, ValueError):
            if place.is_file():  # of a worktree or a submodule
                place = above / _text(place).removeprefix("gitdir:").strip()
            if place.is_dir():
                return _head(place)
    return None


def _head(place: Path) -> str | None:
    """The commit of a git directory."""
    head = _text(place / "HEAD")
    if not head.startswith("ref:"):
        return _checked(head)
    name = head.removeprefix("ref:").strip()
    shared = place
    with suppress(OSError):
        shared = place / _text(place / "commondir")
    for folder in (place, shared):
        with suppress(OSError):
            if ".." not in Path(name).parts and (found := _checked(_text(folder / name))):
                return found
    for line in _text(shared / "packed-refs").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return _checked(commit)
    return None


def _text(path: Path) -> str:
    """The content of a small plain file.

    Raises:
        OSError, ValueError: there is none.
    """
    if not path.is_file() or path.stat().st_size > _LONGEST_FILE:
        raise FileNotFoundError(path)
    return path.read_text(encoding="utf-8").strip()


def _checked(text: str) -> str | None:
    return text if _COMMIT.fullmatch(text) else None


def tags_of(run: RunFolder) -> list[str]:
    """The tags of a run, in the order in which they were given."""
    with suppress(RunError, StorageError):
        tags = run.read(_TAGS_FILE).get("tags")
        if isinstance(tags, list):
            return [tag for tag in tags if isinstance(tag, str)]
    return []


def change_tags(run: RunFolder, add: Iterable[str] = (), remove: Iterable[str] = ()) -> list[str]:
    """Give a run tags, and take others from it; returns those that it has then.

    Raises:
        UsageError: see `checked_tags`.
        StorageError: the folder cannot be written.
    """
    gone = set(remove)
    before = tags_of(run)
    tags = [tag for tag in dict.fromkeys([*before, *checked_tags(add)]) if tag not in gone]
    if len(tags) > _MOST_TAGS:
        raise UsageError(f"a run has at most {_MOST_TAGS} tags", "Remove some")
    if tags != before:
        run.write(_TAGS_FILE, {"tags": tags})
    return tags


def checked_tags(tags: Iterable[str]) -> list[str]:
    """Tags without spaces around them.

    Raises:
        UsageError: one is empty, too long, or cannot be shown.
    """
    found = [tag.strip() for tag in tags]
    for tag in found:
        if not tag or len(tag) > _LONGEST_TAG or not is_printable(tag):
            raise UsageError(
                f"{spelling().given('tag', tag[:_LONGEST_TAG])} is no tag",
                f"Give 1 to {_LONGEST_TAG} printable characters",
            )
    return found
