"""Consistency policies: a file each, and a line each in the registry below.

A policy is a subclass of `Policy`. Numbers that it takes are fields declared with `parameter`;
settings, flags and checks follow from them.
"""

from __future__ import annotations

from distsgd.core.server.consistency.asp import Asynchronous
from distsgd.core.server.consistency.backup import BackupWorkers
from distsgd.core.server.consistency.base import Parameter, Policy
from distsgd.core.server.consistency.bsp import BulkSynchronous
from distsgd.core.server.consistency.local import LocalSteps
from distsgd.core.server.consistency.ssp import BoundedStaleness

__all__ = ["POLICIES", "Parameter", "Policy", "make_policy"]

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (BulkSynchronous, BoundedStaleness, Asynchronous, BackupWorkers, LocalSteps)
}


def make_policy(name: str, *, replicas: int = 1, **parameters: int) -> Policy:
    """The policy called ``name``.

    Args:
        name: one of `POLICIES`.
        replicas: workers at the start of the run, at least 1.
        **parameters: those of the policy; one that is left out has its default.
    """
    return POLICIES[name].create(replicas, **parameters)
