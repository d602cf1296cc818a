"""What a fork records of the run that it was forked from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distsgd.errors import RunError
from distsgd.runs.folder import RunFolder
from distsgd.runs.journal import Mark

__all__ = ["COPY", "LIVE", "RECORDED", "Parent", "parent_of"]

COPY = "parent"
"""In the folder of a fork: the history before it, if it was copied."""

LIVE, RECORDED = "live", "recorded"
"""Orders of updates: as the processes of the fork make them, or as those of the parent did."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The run that a run was forked from.

    Attributes:
        path: its folder, when the run was forked.
        name: that of its folder, or of the run that this is a copy of.
        created: when it was, by its config.json: it is known by that.
        update: how many of its updates the run shares.
        mark: the place in its journal after the last of them.
        order: "live", or "recorded" if the run follows the parent's order of updates.
        changed: the settings that were given for the fork, with their new values.
    """

    path: Path
    name: str
    created: str
    update: int
    mark: Mark
    order: str = LIVE
    changed: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON, for config.json."""
        return {
            "path": str(self.path), "name": self.name, "created": self.created,
            "update": self.update,
            "order": self.order, "changed": dict(self.changed), **asdict(self.mark),
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Parent:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not that.
        """
        update, offset, lines = (content[name] for name in ("update", "offset", "lines"))
        if any(type(number) is not int or number < 0 for number in (update, offset, lines)):
            raise ValueError("it does not say where it was forked")
        return cls(
            path=Path(str(content["path"])),
            name=str(content["name"]),
            created=str(content["created"]),
            update=update,
            mark=Mark(str(content["digest"]), offset, lines),
            order=RECORDED if content["order"] == RECORDED else LIVE,
            changed=dict(content["changed"]),
        )


def parent_of(run: RunFolder) -> Parent | None:
    """The run that a run was forked from; None if it was not.

    Raises:
        RunError: config.json is missing or damaged.
    """
    content = run.read("config.json").get("parent")
    if content is None:
        return None
    try:
        return Parent.from_json(content)
    except (KeyError, TypeError, ValueError):
        raise RunError(
            f"{run.path / 'config.json'} is damaged: its parent is none", "Fork again"
        ) from None
