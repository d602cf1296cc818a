"""What the nodes of a cluster say of themselves: versions, BLAS, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distsgd.cluster.connection import joined_cluster
from distsgd.errors import in_short

__all__ = ["NodeFacts", "facts_of_nodes"]

_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node says.

    Attributes:
        address: at which it listens.
        versions: package -> its version, and "python"; a package that is missing is not in it.
        ahead_seconds: by how much its clock is ahead of the one here; negative if it is behind.
        unsure_seconds: half of the time that the question took: the error of ``ahead_seconds``.
        cores: processors that it may use.
        trouble: why it has not answered; empty if it has.
    """

    address: str
    versions: dict[str, str] = field(default_factory=dict)
    ahead_seconds: float = 0.0
    unsure_seconds: float = 0.0
    cores: int = 0
    trouble: str = ""


def facts_of_nodes(address: str, packages: tuple[str, ...]) -> list[NodeFacts]:
    """Ask every living node of a cluster.

    Args:
        address: see `joined_cluster`.
        packages: whose versions are asked for.

    Raises:
        UsageError: see `joined_cluster`.
        RuntimeFailure: see `joined_cluster`.
    """
    import ray

    with joined_cluster(address):
        living = [node for node in ray.nodes() if node["Alive"]]
        ask = _question(packages)
        # One worker process each, whose start is not to count as a difference of clocks.
        waiting = [(node["NodeManagerAddress"], _on(node["NodeID"], ask)) for node in living]
        found = []
        for where, actor in waiting:
            try:
                ray.get(actor.answer.remote(), timeout=_SECONDS)
                before = time.time()
                now, cores, versions = ray.get(actor.answer.remote(), timeout=_SECONDS)
                after = time.time()
            except Exception as error:
                found.append(NodeFacts(address=where, trouble=in_short(error)))
                continue
            found.append(
                NodeFacts(
                    address=where, versions=versions, cores=cores,
                    ahead_seconds=now - (before + after) / 2, unsure_seconds=(after - before) / 2,
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: one.address)


def _on(node: str, ask: Callable[[], Any]) -> Any:
    """An actor on a node, which answers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Answering:
        """Made here, and so sent whole: the node need not have this version of the package."""

        def answer(self) -> Any:
            return ask()

    where = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(num_cpus=0, scheduling_strategy=where)(Answering)
    return remote.remote()


def _question(packages: tuple[str, ...]) -> Callable[[], Any]:
    """A function that is sent to the nodes whole."""

    def ask() -> Any:
        import os
        import platform
        import time
        from importlib import metadata

        versions = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return time.time(), len(os.sched_getaffinity(0)), versions

    return ask
