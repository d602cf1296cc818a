"""The runs that a page lists, as read from their small JSON files.

A run is read again only when one of its files has another time or size.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from distsgd.config.settings import chosen_settings
from distsgd.errors import DistsgdError, RunError, StorageError, UsageError
from distsgd.runs.branch import branch_of
from distsgd.runs.folder import RunFolder, find_run, runs_home
from distsgd.runs.history import filled_settings

__all__ = ["Listing", "identity", "stamp"]

_FILES = (
    "config.json",
    "report.json",
    "metrics.jsonl",
    "journal.jsonl",
    "tags.json",
    "checkpoints",
)
_SHOWN_ANYWAY = ("model", "loss", "dataset")
_LISTED, _GROWS = ("config.json", "report.json", "tags.json"), ("metrics.jsonl",)


def identity(folder: Path) -> str:
    """The name of a run in addresses: a digest of its path, which says nothing of it."""
    return hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def stamp(folder: Path, files: tuple[str, ...] = _FILES) -> tuple[object, ...]:
    """Times and sizes of the files of a run; equal as long as nothing has been written."""
    found: list[object] = []
    top = str(folder)
    for name in files:
        try:
            about = os.stat(f"{top}/{name}")  # noqa: PTH116  a Path each takes longer than the rest
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


class Listing:
    """The runs in a folder of runs, or one run.

    Args:
        place: "latest" for all runs of this user, the name or path of a run, or a folder of runs.

    Attributes:
        start: identity of the run to show first; None for the latest.

    Raises:
        RunError: there is no such run.
        UsageError: the folder has no runs.
    """

    def __init__(self, place: str) -> None:
        self._home: Path | None = None
        self._alone: Path | None = None
        self._known: dict[str, tuple[object, object, dict[str, Any]]] = {}
        self._folders: dict[str, Path] = {}
        self._places: dict[tuple[str, int], Path] = {}
        self._rows: list[dict[str, Any]] = []
        self._looked, self._lock = 0.0, Lock()
        self.start: str | None = None
        if place == "latest":
            return
        folder = Path(place).expanduser()
        with suppress(OSError, ValueError):
            if folder.is_dir() and not (folder / "config.json").is_file():
                self._home = folder.resolve()
                if not any(True for _ in self._paths()):
                    raise UsageError(
                        f"there are no runs in {folder}", "Name a run, or a folder of runs"
                    )
                return
        run = find_run(place)
        self.start = identity(run.path)
        if run.path.parent != runs_home().resolve():
            self._alone = run.path

    def _paths(self) -> Iterator[Path]:
        with suppress(OSError, StorageError), os.scandir(self._home or runs_home()) as entries:
            for entry in entries:
                with suppress(OSError):
                    key = entry.name, entry.inode()
                    if key not in self._places and (Path(entry) / "config.json").is_file():
                        self._places[key] = Path(entry).resolve()
                    if key in self._places:
                        yield self._places[key]
        if self._alone is not None:
            yield self._alone

    def look(self, age: float = 0.0) -> list[dict[str, Any]]:
        """A summary of every run, latest first.

        Args:
            age: seconds that it may be old.
        """
        with self._lock:
            if not self._rows or time.monotonic() - self._looked > age:
                self._rows, self._looked = self._again(), time.monotonic()
            return self._rows

    def _again(self) -> list[dict[str, Any]]:
        folders = {
            identity(path): path
            for path in self._paths()
            if os.path.isdir(path)  # noqa: PTH112
        }
        for gone in set(self._known) - set(folders):
            del self._known[gone]
        rows = [self._summary(name, path) for name, path in folders.items()]
        self._folders = folders
        return sorted(rows, key=lambda row: (row["created"], row["name"]), reverse=True)

    def folder(self, name: str) -> Path | None:
        """The folder of a run by its identity; None if it is not listed."""
        return self._folders.get(name)

    def _summary(self, name: str, path: Path) -> dict[str, Any]:
        now, grown = stamp(path, _LISTED), stamp(path, _GROWS)
        seen = self._known.get(name)
        if seen is None or seen[0] != now:
            row = _read(name, path)
        elif seen[1] == grown and seen[2]["state"] != "running":
            return seen[2]
        else:
            row = {**seen[2], "state": RunFolder(path).status()}
        self._known[name] = now, grown, row
        return row


def _read(name: str, path: Path) -> dict[str, Any]:
    run = RunFolder(path)
    row: dict[str, Any] = {
        "id": name, "name": path.name, "created": "", "state": "empty", "model": "", "loss": "",
        "dataset": "", "about": "", "tags": [], "accuracy": None, "seconds": None,
    }  # fmt: skip
    try:
        config = run.read("config.json")
        row["created"] = str(config.get("created", ""))
        report = run.report()
        row["state"] = run.status()
        if row["state"] == "dead" and not _has_begun(path):
            row["state"] = "empty"
    except (RunError, StorageError):
        return row
    settings = config.get("settings", {})
    for key in ("model", "loss", "dataset"):
        row[key] = str(settings.get(key, row[key]))
    row["about"] = ", ".join(
        f"{key} {value}"
        for key, value in _chosen(settings, filled_settings(config)).items()
        if key not in _SHOWN_ANYWAY
    )
    row["accuracy"], row["seconds"] = report.get("test_accuracy"), report.get("train_seconds")
    if (parent := branch_of(run, config)) is not None:
        row["parent"], row["parent_name"] = identity(parent.path), parent.name
        row["fork"], row["parent_gone"] = parent.words, parent.gone
    with suppress(RunError, StorageError):
        row["tags"] = [str(tag) for tag in run.read("tags.json").get("tags", [])]
    return row


def _has_begun(path: Path) -> bool:
    """Whether anything has been recorded."""
    with suppress(OSError):
        return (path / "metrics.jsonl").stat().st_size > 0
    return False


def _chosen(settings: dict[str, Any], filled: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the recipe; those of another version may not be known."""
    try:
        return chosen_settings(settings, filled)
    except (DistsgdError, TypeError, ValueError, KeyError):
        return {}
