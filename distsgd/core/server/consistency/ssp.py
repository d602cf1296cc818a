"""Bounded staleness: up to S minibatches ahead of the oldest that is not complete."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.server.consistency.base import Policy

__all__ = ["BoundedStaleness"]


@dataclass(frozen=True)
class BoundedStaleness(Policy):
    """A worker may begin a piece of minibatch t + S when t is the oldest not yet applied.

    Updates are applied in the order of the plan, each over all slots of its minibatch, so a
    gradient is at most S updates old; with S = 0 this is `bsp`. Source: Ho et al. 2013.

    Attributes:
        staleness: S.
    """

    staleness: int = 0
    name = "ssp"

    def window(self, workers: int) -> int:
        """S + 1."""
        return self.staleness + 1
