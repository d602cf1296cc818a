"""What is checked before the command line is loaded: streams, Python, packages, memory."""

from __future__ import annotations

import os
import resource
import sys

from distsgd.cli.streams import open_missing_streams, prepare_streams
from distsgd.errors import DistsgdError, missing_package, resource_error, unreadable_module

__all__ = ["main"]

_LEAST_MEMORY = 2**30
"""Bytes of address space; with less, numpy and Arrow end the process while they are imported."""


def main() -> None:
    """Run the command line, if this Python can."""
    open_missing_streams()
    prepare_streams()
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; a screen, or a wrong name, is no matter
    try:
        problem = _problem()
    except KeyboardInterrupt:
        sys.exit(130)
    if problem:
        sys.exit(f"error: {problem}")
    from distsgd.cli.main import main as run

    run()


def _problem() -> str:
    """Why not even the help can be shown; empty if it can."""
    if sys.flags.optimize > 1:
        return (
            "Python runs with -OO, which removes the texts that the help and Ray are made of. "
            "Leave out one O: python -O does no harm, nor does PYTHONOPTIMIZE=1."
        )
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    if memory != resource.RLIM_INFINITY:
        if memory < _LEAST_MEMORY:
            return (
                f"this process may use {memory >> 20} MiB of memory, which is too little for numpy "
                "and Arrow. Raise the limit: ulimit -v unlimited."
            )
        # OpenBLAS reserves memory for each thread, and without it sends the process a SIGINT.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import distsgd.cli.main  # noqa: F401
    except (ImportError, MemoryError, OSError, EOFError) as error:
        known: DistsgdError | None = resource_error(error) or unreadable_module(error)
        if known is None and isinstance(error, ImportError):
            known = missing_package(error)
        if known is None:
            raise
        return str(known)
    return ""
