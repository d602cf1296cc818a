"""A command on a run multiplies as the run did: it starts again with that kernel of OpenBLAS.

The kernel is chosen before numpy is loaded, and which run a command means is known only later. To
replay, resume or evaluate with the same bits what another machine computed, or this one before it
chose by itself, the process replaces itself, once and at its very beginning.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from distsgd.engine.core_type import VARIABLE, chosen, runs_here
from distsgd.errors import DistsgdError

__all__ = ["multiply_as"]


def multiply_as(run: str) -> None:
    """Start this command line again with the core type of a run, if this process has another.

    Not if the user has set one, if several computed the run, or if this processor cannot do it:
    then the command says what differs. Called before anything is opened or printed.

    Args:
        run: its path, its name or "latest".
    """
    if chosen() is None or not sys.executable:
        return
    from distsgd.engine.blas import blas_kernel, core_type_of
    from distsgd.runs.folder import find_run, kernels_of

    with suppress(DistsgdError, KeyError):  # the command finds the same, and reports it
        first, *others = map(core_type_of, kernels_of(find_run(run)))
        if first not in (None, core_type_of(blas_kernel())) and not others and runs_here(first):
            with suppress(OSError):
                os.execve(
                    sys.executable, [sys.executable, *sys.orig_argv[1:]],
                    {**os.environ, VARIABLE: first},
                )  # fmt: skip
