"""On which nodes of a cluster servers and workers run.

No placement group: it is all or nothing, while a run begins with the workers there is room for,
and takes others as nodes join.
"""

from __future__ import annotations

from typing import Any

__all__ = ["place_of_servers", "place_of_workers"]


def _several_nodes() -> bool:
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


def place_of_servers(placement: str) -> dict[str, Any]:
    """Options of the servers' actors.

    Args:
        placement: "near", on the driver's node if there is room, or "spread", on as many nodes
            as there are.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not _several_nodes():
        return {}
    if placement == "spread":
        return {"scheduling_strategy": "SPREAD"}
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


def place_of_workers() -> dict[str, Any]:
    """Options of a worker's actor: on as many nodes as there are."""
    return {"scheduling_strategy": "SPREAD"} if _several_nodes() else {}
