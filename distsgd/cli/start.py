"""The process of the command line: streams, Python, packages and memory are checked first.

And the kernels that it multiplies by are chosen, while numpy is not loaded.
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
from contextlib import suppress

from distsgd.cli.streams import open_missing_streams, prepare_streams
from distsgd.engine.core_type import choose_core_type
from distsgd.errors import DistsgdError, missing_package, resource_error, unreadable_module

__all__ = ["main", "run_process"]

_LEAST_MEMORY = 2**30
"""Bytes of address space; with less, importing numpy and Arrow kills the process."""


class _End:
    """Exits this process at its very end, if it has loaded Ray.

    gRPC waits at the end of a process for threads that the system may never have started, and no
    signal interrupts that.
    """

    def __init__(self) -> None:
        self.code = 1
        self._process = os.getpid()

    def __call__(self) -> None:
        if "ray" not in sys.modules or os.getpid() != self._process:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # `main` has reported problems of stdout
                stream.flush()
        os._exit(self.code)


def run_process() -> None:
    """Run the command line in a process of its own, and exit."""
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
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever the backend
    choose_core_type()
    try:
        problem = _problem()
    except KeyboardInterrupt:
        sys.exit(130)
    if problem:
        sys.exit(f"error: {problem}")
    from distsgd.cli.main import main as run

    run()


def _problem() -> str:
    """Why not even the help can be shown; "" if it can."""
    if sys.flags.optimize > 1:
        return (
            "Python runs with -OO, which removes the docstrings that the help and Ray need. "
            "Use python -O or PYTHONOPTIMIZE=1 instead."
        )
    memory = resource.getrlimit(resource.RLIMIT_AS)[0]
    if memory != resource.RLIM_INFINITY:
        if memory < _LEAST_MEMORY:
            return (
                f"this process may use {memory >> 20} MiB of memory, too little for numpy and "
                "Arrow. Raise the limit: ulimit -v unlimited."
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
