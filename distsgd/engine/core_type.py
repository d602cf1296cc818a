"""Which kernels OpenBLAS multiplies by in the processes that we start: the processor decides.

OpenBLAS has kernels for each core type (SkylakeX, Haswell, ...) and picks one by who made the
processor and by its model number: on AMD it takes Haswell kernels where SkylakeX ones are 1.8 times
as fast, and on models newer than itself it may take those of 2004 (0.3.21 on Intel's of 2023).
Kernels round products differently, so that choice decides the bits, too. The rule here has one
answer for all processors that can do the same, and these clauses:

1. ``OPENBLAS_CORETYPE`` that is set, be it to nothing, is the user's, and is never changed.
2. The command line sets it for itself before numpy is loaded (`choose_core_type`): SkylakeX where
   there is AVX-512, else Haswell where there are AVX2 and FMA; else, and on other processors than
   x86-64, nothing is set. All that it starts inherits the choice, but for the peers of `bench`,
   which multiply as for anyone else (`without_choice`).
3. A Python program that calls us is left alone: its numpy is loaded, and its environment is its
   own. The processes that we start for it, on its machine, take the core type that its own BLAS has
   loaded (`distsgd.engine.blas.same_core_type`), so that driver and workers multiply alike.
4. A node of a cluster decides by its own processor: `distsgd cluster start` is a command line. On a
   Ray that others have started, a worker of a command line decides the same in its own process, as
   nobody has loaded numpy there (`distsgd.on_ray`).
5. To replay, resume or evaluate a run that was computed by another core type, the command line
   starts itself again with that one, if the choice was its own and this processor can do it
   (`runs_here`).

Who multiplies by what is in the run (`distsgd.engine.blas.blas_kernel`, ``versions.blas`` in its
config.json, kernels.json), and a worker whose kernel is not the driver's is reported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["VARIABLE", "best_core_type", "choose_core_type", "chosen", "runs_here",
           "without_choice"]  # fmt: skip

VARIABLE = "OPENBLAS_CORETYPE"

_AVX2 = {"avx2", "fma"}
_AVX512 = {*_AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}

_BEST = {"SkylakeX": _AVX512, "Haswell": _AVX2}
"""Core types to choose from, best first, and the flags of Linux for what their kernels need."""

_NEEDS = {
    **_BEST,
    "SapphireRapids": {*_AVX512, "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16"},
    "Cooperlake": {*_AVX512, "avx512_bf16"},
    "Zen": _AVX2,
    "Sandybridge": {"avx"},
    "Nehalem": {"sse4_2"},
    "Prescott": {"pni"},
}

_PROCESSORS = Path("/proc/cpuinfo")

_chosen: str | None = None


def best_core_type() -> str | None:
    """The core type for what this processor can do; None if that is left to OpenBLAS."""
    flags = _flags()
    return next((name for name, needs in _BEST.items() if needs <= flags), None)


def runs_here(core_type: str) -> bool:
    """Whether this processor can execute the kernels of a core type."""
    needs = _NEEDS.get(core_type)
    return needs is not None and needs <= _flags()


def choose_core_type() -> None:
    """Set the core type for this process and its children, unless it is set or numpy is loaded.

    For a process that is ours: nobody else's environment is changed.
    """
    global _chosen
    if VARIABLE in os.environ or "numpy" in sys.modules:
        return
    _chosen = best_core_type()
    if _chosen is not None:
        os.environ[VARIABLE] = _chosen


def chosen() -> str | None:
    """The core type that `choose_core_type` has set in this process, if it has."""
    return _chosen if os.environ.get(VARIABLE) == _chosen else None


def without_choice(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without our choice, as the user has it."""
    ours = chosen() is not None
    return {name: value for name, value in environment.items() if not (ours and name == VARIABLE)}


def _flags() -> frozenset[str]:
    """What the first processor can do, in the words of Linux; empty on other than x86-64.

    The file is written while it is read, one processor after another: it is not read to its end.
    """
    if os.uname().machine != "x86_64":
        return frozenset()
    try:
        with _PROCESSORS.open(encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())
