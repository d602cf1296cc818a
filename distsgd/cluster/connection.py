"""Connect to a Ray cluster that is running already, and list its nodes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distsgd.cluster.access import known_token
from distsgd.cluster.node import Node, check_head, last_node, read_node
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.init import init_ray
from distsgd.on_ray.private import HEAD_RESOURCE, free_cpus, quiet_output
from distsgd.on_ray.session import is_loopback, ray_environment, shut_down
from distsgd.on_ray.sharing import shared_connection
from distsgd.spelling import spelled, spelling
from distsgd.transport.ray_variables import ADDRESS, LOOPBACK, settings

__all__ = ["address_of", "check_cluster", "cluster_nodes", "joined_cluster"]


def address_of(address: str) -> str:
    """HOST:PORT of the cluster's head.

    Args:
        address: the same, or "auto" for ``$RAY_ADDRESS``, else for the cluster that
            `distsgd cluster start` has joined this machine to.

    Raises:
        UsageError: it is no address, or "auto" and none is known.
    """
    if address == "auto":
        address = os.environ.get(ADDRESS, "auto") or "auto"
    if address == "auto":
        address = _own_cluster()
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UsageError(f"{spelled('address')} cannot be {address}", "Give HOST:PORT, or auto")
    return address


def _own_cluster() -> str:
    """HOST:PORT of the head of the cluster that this machine was joined to."""
    if (node := read_node()) is not None:
        return node.address
    if (node := last_node()) is not None:
        raise UsageError(
            f"{spelling().given('address', 'auto')}: this machine's node of the cluster at "
            f"{node.address} is not running",
            f"Unless it is starting just now: `{_how_to_start(node)}`",
        )
    raise UsageError(
        f"{spelling().given('address', 'auto')}: no cluster is known on this machine",
        "Give HOST:PORT of its head, or start one with `distsgd cluster start`",
    )


def _how_to_start(node: Node) -> str:
    if not node.head:
        return f"distsgd cluster start --join {node.address}"
    port = node.address.rpartition(":")[2]
    return f"distsgd cluster start --head --node-ip {node.node_ip} --port {port}"


def check_cluster(address: str) -> str:
    """See in a moment whether a cluster is there and takes the token; returns HOST:PORT.

    Raises:
        UsageError: see `address_of`.
        RuntimeFailure: nothing answers there, or the token is not the cluster's.
    """
    where = address_of(address)
    check_head(where, known_token())
    return where


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Connect to a cluster, and leave it as it was.

    Args:
        address: see `address_of`. Its token is taken from ``$RAY_AUTH_TOKEN`` or
            ``$RAY_AUTH_TOKEN_PATH``, else from the file of `distsgd cluster start`.

    Raises:
        UsageError: see `address_of`, or the caller is connected to another Ray.
        RuntimeFailure: nothing answers there, or the token is not the cluster's, or see
            `shared_connection`.
    """
    where = check_cluster(address)
    with shared_connection(where, lambda: _connected(where)):
        yield


@contextmanager
def _connected(where: str) -> Iterator[None]:
    variables = {**settings("client"), **known_token()}
    if is_loopback(where.rpartition(":")[0]):
        variables[LOOPBACK] = "0"  # Ray would look for it at an outer address of this machine
    with ray_environment(**variables), quiet_output(also_stderr=True):
        try:
            _connect(where)
            yield
        finally:
            shut_down()


def _connect(address: str) -> None:
    import ray

    try:
        init_ray(
            {}, address=address, log_to_driver=False, logging_level=logging.ERROR,
            configure_logging=False,
        )  # fmt: skip
    except RuntimeFailure:
        raise
    except Exception as error:
        with suppress(Exception):
            ray.shutdown()
        why = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        raise RuntimeFailure(
            f"no connection to the Ray cluster at {address}: {why}",
            "This machine has to be one of its nodes: `distsgd cluster start --join HOST:PORT`",
        ) from error


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
        free = free_cpus()
        found = [
            ClusterNode(
                address=node["NodeManagerAddress"],
                head=HEAD_RESOURCE in node["Resources"],
                state="alive" if node["Alive"] else "dead",
                cpus=node["Resources"].get("CPU", 0.0),
                free=free.get(node["NodeID"], 0.0),
            )
            for node in ray.nodes()
        ]
    return sorted(found, key=lambda node: (not node.head, node.state, node.address))
