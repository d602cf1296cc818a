"""Bounded staleness: up to S minibatches ahead of the oldest that is not complete."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.server.consistency.base import Policy, parameter

__all__ = ["BoundedStaleness"]


@dataclass(frozen=True)
class BoundedStaleness(Policy):
    """A worker may start a piece of minibatch t + S when t is the oldest not yet applied.

    Updates are applied in the order of the plan, each over all slots of its minibatch, so a
    gradient is at most S updates old; with S = 0 this is `bsp`. A worker helps others that are
    behind before it waits. Source: Ho et al. 2013, where it waits.

    Attributes:
        staleness: S.
    """

    staleness: int = parameter(
        "Minibatches that a worker may be ahead (S of ssp).",
        default=3, least=0, most=10_000, aliases=("max_staleness",),
    )  # fmt: skip
    name = "ssp"

    @property
    def max_staleness(self) -> int:
        """S."""
        return self.staleness
