"""What is checked before the command line is loaded: streams, Python, packages, memory."""

from __future__ import annotations

import atexit
import os
import resource
import sys
from contextlib import suppress

from distsgd.cli.streams import open_missing_streams, prepare_streams
from distsgd.errors import DistsgdError, missing_package, resource_error, unreadable_module

__all__ = ["main", "run_process"]

_LEAST_MEMORY = 2**30
"""Bytes of address space; with less, numpy and Arrow end the process while they are imported."""


class _End:
    """Ends this process, the last of what it does by itself, if it has loaded Ray.

    gRPC waits at the end of a process for threads that the system may never have started, and no
    signal ends that.
    """

    def __init__(self) -> None:
        self.code = 1
        self._process = os.getpid()

    def __call__(self) -> None:
        if "ray" not in sys.modules or os.getpid() != self._process:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # `main` has said what it had to say of stdout
                stream.flush()
        os._exit(self.code)


def run_process() -> None:
    """Run the command line in a process that is its own, to its end."""
    end = _End()
    atexit.register(end)  # the first to be registered is the last to be called
    try:
        main()
        end.code = 0
    except SystemExit as leaving:
        code = leaving.code
        end.code = code & 0xFF if isinstance(code, int) else int(code is not None)
        raise


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
