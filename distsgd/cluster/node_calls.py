"""Calls of functions on each node of a cluster, by a process on every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distsgd.cluster.connection import joined_cluster
from distsgd.engine.blas import keep_one_blas_thread
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.health import cause_of

__all__ = ["NodeCalls", "calls_on_nodes"]

_START_SECONDS = 60.0


class CallProcess:
    """A process on a node; made remote in `calls_on_nodes`."""

    def __init__(self) -> None:
        keep_one_blas_thread()

    def machine(self) -> str:
        """The machine that the node is on: nodes of one machine say the same."""
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it here."""
        return function(*arguments)


class NodeCalls:
    """A node on which functions can be called.

    Attributes:
        address: at which it listens.
        machine: nodes of the same machine have the same.
    """

    def __init__(self, address: str, actor: Any, machine: str) -> None:
        self.address, self.machine, self._actor = address, machine, actor

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Callable[[float], Any]:
        """Call a function there; several run at once if they are begun before they are awaited.

        Args:
            function: of a module that the node has too; picklable, as its arguments are.
            *arguments: of it.

        Returns:
            A function of a time limit in seconds, which returns the result of the call. It
            raises DistsgdError if that was raised there, or the node does not answer.
        """
        reference = self._actor.call.remote(function, *arguments)
        return lambda seconds: _answer(reference, self.address, seconds)


def _answer(reference: Any, address: str, seconds: float) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise RuntimeFailure(
            f"the node at {address} does not answer: {type(error).__name__}",
            "See `distsgd cluster status` and `distsgd doctor --address HOST:PORT`",
        ) from None


@contextmanager
def calls_on_nodes(address: str) -> Iterator[list[NodeCalls]]:
    """Join a cluster, and start a process on each of its nodes that offers processors.

    Args:
        address: see `joined_cluster`.

    Yields:
        The nodes: the one of this process first, the others by address.

    Raises:
        UsageError: see `joined_cluster`.
        RuntimeFailure: likewise, or a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with joined_cluster(address):
        here = ray.get_runtime_context().get_node_id()
        living = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
        living.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
        actors = [
            ray.remote(CallProcess)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote()
            for node in living
        ]
        try:
            asked = [actor.machine.remote() for actor in actors]
            yield [
                NodeCalls(where, actor, _answer(reference, where, _START_SECONDS))
                for where, actor, reference in zip(
                    [node["NodeManagerAddress"] for node in living], actors, asked, strict=True
                )
            ]
        finally:
            for actor in actors:
                with suppress(Exception):  # Ray may be gone
                    ray.kill(actor)
