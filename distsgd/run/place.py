"""Where in its run a checkpoint stands: what is needed to go on from it without what was before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from distsgd.core.position import Ledger
from distsgd.run.config import TrainConfig
from distsgd.run.journal import Mark, Resumed

__all__ = ["GOES_ON_WITH", "Place", "resumed_settings"]

GOES_ON_WITH = ("workers", "servers", "channel", "epochs")
"""The settings that may be others where a run is gone on with."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in its run a checkpoint stands.

    Attributes:
        mark: the place in the journal.
        ledger: which slots have been applied, as JSON; see `distsgd.core.position.Ledger`.
        settings: those of `GOES_ON_WITH`, as they were.
        usable: whether all that later updates read is in the checkpoint or comes after it.
    """

    mark: Mark
    ledger: dict[str, Any]
    settings: dict[str, Any]
    usable: bool

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Place:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        place = cls(**{**content, "mark": Mark(**content["mark"])})
        Ledger.from_json(place.ledger)
        return place

    def config(self, origin: TrainConfig) -> TrainConfig:
        """The settings here, from those at the beginning of the run."""
        return replace(origin, **self.settings)


def resumed_settings(config: TrainConfig, entry: Resumed) -> TrainConfig:
    """The settings from a line of the journal on that says that the run was gone on with."""
    return replace(
        config,
        epochs=entry.epochs,
        workers=entry.workers,
        servers=entry.servers,
        channel=entry.channel,
    )
