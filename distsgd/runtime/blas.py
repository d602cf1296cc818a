"""Which kernel multiplies matrices here: the bits of a product depend on it."""

from __future__ import annotations

import numpy  # noqa: F401 - it brings the BLAS that is asked about
from threadpoolctl import threadpool_info

__all__ = ["SAME_BLAS", "blas_kernel"]

SAME_BLAS = "OPENBLAS_CORETYPE, the same everywhere before Python starts, makes them the same"
"""What to do about two kernels: OpenBLAS chooses by processor, unless that variable is set."""


def blas_kernel() -> str:
    """The BLAS of numpy and the kind of processor it computes for.

    Returns:
        as "openblas 0.3.31 (SkylakeX)", or "unknown".
    """
    for library in threadpool_info():
        if library["user_api"] == "blas":
            kind = library.get("architecture") or "unknown kind of CPU"
            return f"{library['internal_api']} {library['version']} ({kind})"
    return "unknown"
