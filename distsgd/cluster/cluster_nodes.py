"""What a Ray cluster consists of."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.cluster.connection import joined_cluster

__all__ = ["ClusterNode", "cluster_nodes"]


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """A node.

    Attributes:
        address: at which it listens.
        head: whether it is the head.
        state: "alive" or "dead".
        cpus: that it offers.
        free: of them.
    """

    address: str
    head: bool
    state: str
    cpus: float
    free: float


def cluster_nodes(address: str) -> list[ClusterNode]:
    """The nodes, the head first.

    Raises:
        UsageError: see `joined_cluster`.
        RuntimeFailure: see `joined_cluster`.
    """
    import ray

    with joined_cluster(address):
        free = ray._private.state.available_resources_per_node()
        found = [
            ClusterNode(
                address=node["NodeManagerAddress"],
                head="node:__internal_head__" in node["Resources"],
                state="alive" if node["Alive"] else "dead",
                cpus=node["Resources"].get("CPU", 0.0),
                free=free.get(node["NodeID"], {}).get("CPU", 0.0),
            )
            for node in ray.nodes()
        ]
    return sorted(found, key=lambda node: (not node.head, node.state, node.address))
