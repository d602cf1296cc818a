"""Local steps: each replica makes H steps of its own, then the replicas are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distsgd.core.reduction_tree import shares
from distsgd.core.server.consistency.base import Policy, Range

__all__ = ["LocalSteps"]


@dataclass(frozen=True)
class LocalSteps(Policy):
    """Every replica takes its share of the next H minibatches, one step of plain SGD for each.

    What is averaged is W, weighted by examples. With H = 1 the mean of the replicas is W minus
    the mean gradient, and is computed as such: the bits of `bsp`. The number of replicas is part
    of the result for H > 1; it is fixed at the start, whatever becomes of the workers.
    Source: Stich 2019, "Local SGD converges fast and communicates little".

    A round does not go over the end of an epoch: the last takes the steps that are left over, if
    they are fewer than half of H, and otherwise they are a round of their own.

    Attributes:
        every: H.
        replicas: how many; the workers at the start.
    """

    every: int = 1
    replicas: int = 1
    name = "local"

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """Shares of the replicas; for H > 1 ranges of replicas, not of slots."""
        if not self.local:
            return shares(slots, self.replicas)
        return [(replica, replica + 1) for replica in range(min(self.replicas, slots))]

    @property
    def local(self) -> bool:
        """With more than one step."""
        return self.every > 1

    def steps(self, left: int) -> int:
        """H, or all that are left."""
        return left if 2 * (left - self.every) < self.every else self.every
