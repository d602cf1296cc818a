"""A node that somebody stands by: ended when told to, joined again when it falls out."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from distsgd.errors import DistsgdError, RuntimeFailure
from distsgd.runtime.local_node import Node, stop_node

__all__ = ["guard_node"]

_SECONDS_TO_RETURN = 600.0
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
_log = logging.getLogger("distsgd")


def guard_node(
    node: Node, join: Callable[[], Node] | None = None, seconds: float = _SECONDS_TO_RETURN
) -> None:
    """Return when SIGTERM or SIGINT comes, having ended the node, or when `stop_node` has.

    Ray takes a node that was cut off for a few seconds for dead, and ends it when it is back.

    Args:
        node: of this machine.
        join: joins it to its cluster again when it has ended by itself; None for a head, whose
            cluster has ended with it.
        seconds: for how long that is tried.

    Raises:
        DistsgdError: it has ended by itself, and cannot be joined again.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda found, _: asked.append(found))
    while True:
        while node.lives and not asked:
            time.sleep(_POLL_SECONDS)
        if stop_node() is None or asked:
            return
        if join is None:
            raise RuntimeFailure(f"the head {node.node_ip} has ended by itself", "Start it again")
        _log.warning("the node %s has fallen out of its cluster; joining again", node.node_ip)
        if (found := _joined(join, asked, seconds)) is None:
            return
        node = found
        _log.warning("the node %s is back", node.node_ip)


def _joined(join: Callable[[], Node], asked: list[int], seconds: float) -> Node | None:
    """The node, once its head takes it; None if it is asked to end in the meantime."""
    until = time.monotonic() + seconds
    while not asked:
        try:
            return join()
        except DistsgdError:
            if time.monotonic() > until:
                raise
        time.sleep(_PAUSE_SECONDS)
    return None
