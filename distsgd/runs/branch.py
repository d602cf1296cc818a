"""Where a fork leaves its parent, as lists and figures show it: read without the dataset.

Whether the shared history is whole, `distsgd.runs.lineage` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distsgd.errors import RunError, StorageError
from distsgd.runs.folder import RunFolder, handle
from distsgd.runs.lineage import find_parent
from distsgd.runs.parent import COPY, Parent

__all__ = ["Branch", "branch_of", "changed_in_words"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Where a fork leaves the run that it was forked from.

    Attributes:
        name: by which commands find it; its path if it lies elsewhere, or as recorded if it is
            gone.
        path: its folder, where it is now, or as recorded if it is gone.
        update: after which the fork begins.
        folder: where its history can be read, itself or a copy in the fork; None if it is gone.
        gone: whether the run itself is no longer there.
        changed: setting -> its value in the parent, and in the fork.
    """

    name: str
    path: Path
    update: int
    folder: RunFolder | None = None
    gone: bool = False
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What the fork is, as in "fork at update 784: learning_rate 0.01 -> 0.001"."""
        text = f"fork at update {self.update}"
        return f"{text}: {changed_in_words(self.changed)}" if self.changed else text


def changed_in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings with both values, such as "learning_rate 0.01 -> 0.001"."""
    return ", ".join(
        f"{name} {new}" if old is None else f"{name} {old} -> {new}"
        for name, (old, new) in changed.items()
    )


def branch_of(run: RunFolder, config: Mapping[str, Any]) -> Branch | None:
    """Where a run leaves its parent; None if the run is no fork, or does not say of which.

    Args:
        run: the run.
        config: the content of its config.json.
    """
    try:
        parent = Parent.from_json(config["parent"])
    except (KeyError, TypeError, ValueError):
        return None
    there, copy = (_read(path, parent.created) for path in (parent.path, run.path / COPY))
    if there is None and copy is None:
        there = _moved(run, parent)
    known = there or copy
    settings = config.get("settings", {})
    if known is not None:
        changed = dict(_changed(known[1].get("settings", {}), settings))
    else:
        changed = {str(name): (None, value) for name, value in parent.changed.items()}
    return Branch(
        name=parent.name if there is None else handle(there[0]),
        path=parent.path if there is None else there[0].path,
        update=parent.update,
        folder=next((one[0] for one in (copy, there) if one is not None), None),
        gone=there is None,
        changed=changed,
    )


def _moved(run: RunFolder, parent: Parent) -> tuple[RunFolder, dict[str, Any]] | None:
    """The parent where it has been moved to, if it is found there."""
    with suppress(RunError, StorageError, OSError):
        return _read(find_parent(run, parent).path, parent.created)
    return None


def _read(path: Path, created: str) -> tuple[RunFolder, dict[str, Any]] | None:
    """A run folder and its config.json, if it can be read and was made at this time."""
    if not path.is_absolute():
        return None
    folder = RunFolder(path)
    with suppress(RunError, StorageError, OSError, ValueError):
        config = folder.read("config.json")
        return (folder, config) if config.get("created") == created else None
    return None


def _changed(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name, value in after.items():
        if name in before and before[name] != value:
            yield name, (before[name], value)
