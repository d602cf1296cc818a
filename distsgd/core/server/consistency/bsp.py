"""Bulk-synchronous: everyone computes at the same version, everyone waits for all."""

from __future__ import annotations

from distsgd.core.server.consistency.base import Policy

__all__ = ["BulkSynchronous"]


class BulkSynchronous(Policy):
    """An update is the mean over all slots of a minibatch; no gradient is old.

    Source: Valiant 1990.
    """

    in_team = True
    divides = True
