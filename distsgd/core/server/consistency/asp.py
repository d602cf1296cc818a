"""Asynchronous: each worker computes whole minibatches, each is applied when it comes."""

from __future__ import annotations

from collections.abc import Sequence

from distsgd.core.server.consistency.base import Policy, Range

__all__ = ["Asynchronous"]


class Asynchronous(Policy):
    """No worker waits; a gradient is as old as the updates made while it was computed.

    Source: Dean et al. 2012 ("Downpour SGD").
    """

    name = "asp"
    in_order = False
    in_team = True

    @property
    def max_staleness(self) -> None:
        """No bound."""
        return None

    def window(self, workers: int) -> int:
        """One for each worker."""
        return max(1, workers)

    def pieces(self, slots: int, workers: int) -> Sequence[Range]:
        """One piece: the whole minibatch."""
        return [(0, slots)]
