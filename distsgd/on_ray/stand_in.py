"""Stands in for an agent of a Ray node: it does nothing, and ends with the node.

A node of Ray cannot be without its two agents. One serves the dashboard and metrics, the other
prepares runtime environments; a session has none of these, and each agent takes a second of a core
to start, which everything else waits for. A node ends when an agent of its own ends.

Run as a program by a node, without the package and without site-packages:

    python -I -S stand_in.py FOLDER

FOLDER, that of the session, is not used: by it the process is known as one of the session's.
"""

from __future__ import annotations

import os
import select
import stat

__all__ = ["wait"]

_SECONDS = 1.0


def wait(node: int, stdin: int = 0) -> None:
    """Wait until a node closes the pipe that it has given us, or is gone.

    Args:
        node: its process id, as our parent.
        stdin: the descriptor of the pipe; anything else is not read.
    """
    pipes = [stdin] if stat.S_ISFIFO(os.fstat(stdin).st_mode) else []
    while os.getppid() == node:
        if select.select(pipes, [], [], _SECONDS)[0] and not os.read(stdin, 1024):
            return


if __name__ == "__main__":
    wait(os.getppid())
