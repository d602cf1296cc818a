"""Where in its run a checkpoint stands: what is needed to go on from it without what was before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from distsgd.core.server.position import Ledger
from distsgd.config.settings import TrainConfig
from distsgd.runs.journal import Mark, Resumed

__all__ = ["GOES_ON_WITH", "Place", "resumed_settings"]

GOES_ON_WITH = ("workers", "servers", "channel", "epochs")
"""The settings that may be others where a run is gone on with."""

_MOST = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in its run a checkpoint stands.

    Attributes:
        mark: the place in the journal.
        ledger: which slots have been applied, as JSON; see `distsgd.core.server.position.Ledger`.
        settings: those of `GOES_ON_WITH`, as they were.
        usable: whether all that later updates read is in the checkpoint or comes after it.
        fleet: most workers that the fleet has had since the run began or was gone on with; None
            for those of ``settings``.
    """

    mark: Mark
    ledger: dict[str, Any]
    settings: dict[str, Any]
    usable: bool
    fleet: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Place:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        mark = Mark(**content["mark"])
        counts = [mark.offset, mark.lines, content.get("fleet") or 0]
        if any(type(n) is not int or not 0 <= n < _MOST for n in counts):
            raise ValueError("its place in the journal is none")
        if set(content["settings"]) != set(GOES_ON_WITH) or type(mark.digest) is not str:
            raise ValueError("its settings are not those that a run goes on with")
        place = cls(**{**content, "mark": mark})
        Ledger.from_json(place.ledger)
        return place

    def config(self, origin: TrainConfig) -> TrainConfig:
        """The settings here, from those at the beginning of the run.

        Raises:
            UsageError: one cannot be used.
        """
        return replace(origin, **self.settings)


def resumed_settings(config: TrainConfig, entry: Resumed) -> TrainConfig:
    """The settings from a line of the journal on that says that the run was gone on with.

    Raises:
        UsageError: one cannot be used.
    """
    return replace(
        config,
        epochs=entry.epochs,
        workers=entry.workers,
        servers=entry.servers,
        channel=entry.channel,
    )
