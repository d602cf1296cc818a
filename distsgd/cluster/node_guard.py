"""A node that somebody stands by: ended when told to, joined again when it falls out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from distsgd.cluster.node import Node, alone, last_node, stop_node
from distsgd.data.system import pause
from distsgd.errors import DistsgdError, RuntimeFailure

__all__ = ["guard_node"]

_SECONDS_TO_RETURN = 600.0
_MOST_FALLS = 5
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
_log = logging.getLogger("distsgd")


def guard_node(
    node: Node,
    stop: Callable[[], bool],
    join: Callable[[], Node] | None = None,
    seconds: float = _SECONDS_TO_RETURN,
) -> None:
    """Return when asked to, having ended the node, or when `stop_node` has.

    Ray takes a node that was cut off for a few seconds for dead, and ends it when it is back.

    Args:
        node: of this machine.
        stop: asked twice a second whether to end the node.
        join: joins it to its cluster again when it has ended by itself; None for a head, whose
            cluster has ended with it.
        seconds: for how long that is tried.

    Raises:
        DistsgdError: it has ended by itself, and cannot be joined again.
    """
    falls: deque[float] = deque(maxlen=_MOST_FALLS)
    found: Node | None = node
    while found is not None:
        node = found
        _watch(node, stop)
        if stop() or not _is_last(node):
            break
        falls.append(time.monotonic())
        try:
            _check_worth_it(node, join, falls, seconds)
            assert join is not None
            found = _joined(node, join, stop, seconds)
        except DistsgdError:
            stop_node(node.folder)
            raise
    stop_node(node.folder)


def _check_worth_it(
    node: Node, join: Callable[[], Node] | None, falls: deque[float], seconds: float
) -> None:
    """See whether to join again, after these falls."""
    if join is None:
        raise RuntimeFailure(f"the head {node.node_ip} has ended by itself", "Start it again")
    if len(falls) == _MOST_FALLS and falls[-1] - falls[0] < seconds:
        raise RuntimeFailure(
            f"the node {node.node_ip} has fallen out of its cluster {_MOST_FALLS} times",
            "Look at the machine and at its network",
        )


def _watch(node: Node, stop: Callable[[], bool]) -> None:
    """Return when it has ended, looked at twice, or a stop is asked for."""
    missed = 0
    while missed < 2 and not stop():
        pause(_POLL_SECONDS)
        missed = 0 if node.lives else missed + 1


def _is_last(node: Node) -> bool:
    """Whether nobody has stopped it: whoever is about to do so is waited for."""
    with alone():
        return last_node() == node


def _joined(
    node: Node, join: Callable[[], Node], stop: Callable[[], bool], seconds: float
) -> Node | None:
    """The node, once its head takes it; None if it is to end instead."""
    _log.warning("the node %s has fallen out of its cluster; joining again", node.node_ip)
    until = time.monotonic() + seconds
    while not stop():
        try:
            with alone():  # a `cluster stop` beside it comes before, or after
                if last_node() != node:
                    return None
                found = join()
            _log.warning("the node %s is back", node.node_ip)
            return found
        except DistsgdError:
            if time.monotonic() > until:
                raise
        pause(_PAUSE_SECONDS)
    return None
