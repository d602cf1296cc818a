"""Local steps: each replica makes H steps of its own, then the replicas are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distsgd.core.reduction_tree import shares
from distsgd.core.server.consistency.base import Policy, Range, parameter

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
        local_steps: H.
        replicas: how many; the workers at the start.
    """

    local_steps: int = parameter(
        "Steps that each worker makes between two averagings (H of local).",
        default=8, least=1, most=1_000_000,
    )  # fmt: skip
    replicas: int = 1
    name = "local"
    in_team = True

    @classmethod
    def create(cls, replicas: int, **parameters: int) -> LocalSteps:
        """With the number of replicas."""
        return cls(replicas=replicas, **parameters)

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """Shares of the replicas; for H > 1 ranges of replicas, not of slots."""
        if not self.local:
            return shares(slots, self.replicas)
        return [(replica, replica + 1) for replica in range(min(self.replicas, slots))]

    @property
    def local(self) -> bool:
        """With more than one step."""
        return self.local_steps > 1

    def steps(self, left: int) -> int:
        """H, or all that are left."""
        return left if 2 * (left - self.local_steps) < self.local_steps else self.local_steps
