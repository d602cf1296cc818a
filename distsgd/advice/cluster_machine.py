"""Measures the machines of a cluster, and the links between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from distsgd.advice.machine import Machine
from distsgd.advice.measuring import Effort, measure_machine
from distsgd.cluster.node_calls import NodeCalls, calls_on_nodes
from distsgd.config.settings import TrainConfig
from distsgd.errors import DistsgdError, RuntimeFailure
from distsgd.transport.link_trial import LinkEcho, link_trial

__all__ = ["measure_cluster", "of_cluster"]

_PATIENCE = 300.0
_SMALLEST_MESSAGE = 2**16
_MOST_LINKS = 8


def measure_cluster(
    address: str, config: TrainConfig, effort: Effort, tell: Callable[[str], None]
) -> Machine:
    """Measure every node with the data, the model, the loss and the slots of some settings.

    Nodes that are machines of their own are measured at the same time, those of one machine one
    after the other. Each opens the dataset by its name or path, as it has it.

    Args:
        address: HOST:PORT of the head, or "auto".
        config: the settings.
        effort: how long; the start of Ray is that of a connection to the cluster.
        tell: called with messages about progress.

    Returns:
        The slowest machine, with the processors of all nodes and the slowest of the links.

    Raises:
        UsageError: it is no address.
        RuntimeFailure: a node does not answer, or could not be measured.
    """
    began = perf_counter()
    with calls_on_nodes(address) as nodes:
        connected = perf_counter() - began
        names = ", ".join(node.address for node in nodes)
        tell(f"measuring {len(nodes)} nodes: {names}")
        found = _measured(nodes, config, replace(effort, start=False))
        tell("measuring the links to the first of them")
        size = max(_SMALLEST_MESSAGE, found[0].vector_bytes)
        links = [_link(nodes[0], node, size) for node in nodes[1 : 1 + _MOST_LINKS]]
    whole = of_cluster(found, links)
    return replace(whole, start_seconds=whole.start_alone_seconds + connected)


def of_cluster(machines: Sequence[Machine], links: Sequence[tuple[float, float]]) -> Machine:
    """What counts of several machines: the slowest, the processors of all, the slowest link.

    Args:
        machines: one a node, at least one.
        links: seconds of a message and bytes a second, of those that were measured.
    """
    slowest = max(machines, key=_seconds)
    whole = replace(slowest, node_cores=tuple(machine.cores for machine in machines))
    if links:
        latency, bandwidth = max(link[0] for link in links), min(link[1] for link in links)
        whole = replace(whole, latency=latency, bandwidth=bandwidth)
    return whole


def _seconds(machine: Machine) -> float:
    """Of a lease while one process computes."""
    return machine.points("kernel 1 ")[-1][1]


def _measured(nodes: Sequence[NodeCalls], config: TrainConfig, effort: Effort) -> list[Machine]:
    """The nodes in their order."""
    waiting: dict[str, list[NodeCalls]] = defaultdict(list)
    for node in nodes:
        waiting[node.machine].append(node)
    found: dict[str, Machine] = {}
    while any(waiting.values()):
        begun = [
            (node, node.begin(measure_machine, config, effort))
            for node in [left.pop(0) for left in waiting.values() if left]
        ]
        for node, answer in begun:
            try:
                found[node.address] = answer(_PATIENCE)
            except DistsgdError as error:
                raise RuntimeFailure(f"node {node.address}: {error.problem}", error.hint) from None
    return [found[node.address] for node in nodes]


def _link(first: NodeCalls, node: NodeCalls, size: int) -> tuple[float, float]:
    """The link from a node to the first one."""
    port, token = first.begin(_listen, first.address)(_PATIENCE)
    latency, bandwidth = node.begin(link_trial, first.address, port, token, size)(_PATIENCE)
    return float(latency), float(bandwidth)


def _listen(host: str) -> tuple[int, bytes]:
    echo = LinkEcho(host)
    return echo.port, echo.token
