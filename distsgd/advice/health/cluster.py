"""The nodes of a cluster beside this machine: versions and clocks."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.cluster.node_facts import NodeFacts, facts_of_nodes
from distsgd.errors import DistsgdError

__all__ = ["compared", "nodes"]

_PACKAGES = ("distsgd", "ray", "numpy", "pyarrow")
_VITAL = {"distsgd", "ray", "python"}
"""Without the same of these, workers do not start or do not understand each other."""

_SKEW, _LARGE_SKEW = 2.0, 300.0
"""Seconds by which clocks may differ: where logs mislead, and where stores refuse requests."""


def nodes(address: str) -> Iterator[Finding]:
    """Whether the cluster can be reached, and its nodes have what this machine has.

    Args:
        address: HOST:PORT of its head, or "auto".
    """
    try:
        found = facts_of_nodes(address, _PACKAGES)
    except DistsgdError as error:
        yield problem("cluster", error.problem, error.hint)
        return
    here = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            here[package] = metadata.version(package)
    yield from compared(found, here)


def compared(found: list[NodeFacts], here: dict[str, str]) -> Iterator[Finding]:
    """What differs between nodes and this machine.

    Args:
        found: what the nodes say.
        here: the versions on this machine.
    """
    for node in found:
        differences = list(_differences(node, here))
        yield from differences
        if not differences:
            yield ok(
                "cluster",
                f"{node.address}: {node.cores} processors, the same versions, clocks within "
                f"{abs(node.ahead_seconds) + node.unsure_seconds:.2f} s",
            )


def _differences(node: NodeFacts, here: dict[str, str]) -> Iterator[Finding]:
    if node.trouble:
        yield problem(
            "cluster", f"{node.address} starts no process: {node.trouble}",
            "Look at its log, or run `distsgd doctor` there",
        )  # fmt: skip
        return
    for name, version in here.items():
        there = node.versions.get(name)
        if there is None:
            yield problem(
                "cluster", f"{node.address} has no {name}", f"Install {name} {version} there"
            )
        elif there != version:
            kind = problem if name in _VITAL else warning
            yield kind(
                "cluster",
                f"{node.address} has {name} {there}, and this machine {version}",
                f"Install the same on both, such as {version}",
            )
    off = abs(node.ahead_seconds) - node.unsure_seconds
    if off > _SKEW:
        kind = problem if off > _LARGE_SKEW else warning
        way = "ahead of" if node.ahead_seconds > 0 else "behind"
        yield kind(
            "cluster",
            f"the clock of {node.address} is {abs(node.ahead_seconds):.1f} s {way} the one here",
            "Synchronise both: timedatectl set-ntp true",
        )
