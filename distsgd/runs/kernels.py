"""Which kernels have multiplied the matrices of a run: its bits are theirs, see `engine.blas`."""

from __future__ import annotations

from distsgd.runs.folder import RunFolder
from distsgd.engine.blas import SAME_BLAS, blas_kernel

__all__ = ["add_kernel", "kernels_of", "other_kernels"]

_NAME = "kernels.json"


def kernels_of(run: RunFolder) -> list[str]:
    """The one that began the run, then those of workers and resumes that had others."""
    begun = run.read("config.json")["versions"]["blas"]
    later = run.read(_NAME)["kernels"] if (run.path / _NAME).exists() else []
    return [begun, *later]


def add_kernel(run: RunFolder, kernel: str) -> None:
    """Remember one, unless it is known.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    known = kernels_of(run)
    if kernel not in known:
        run.write(_NAME, {"kernels": [*known[1:], kernel]})


def other_kernels(run: RunFolder) -> str:
    """What there is to say if not all of the run was computed as it is here."""
    known, here = kernels_of(run), blas_kernel()
    if set(known) <= {here}:
        return ""
    return (
        f"the run was computed by {' and '.join(known)}, and this machine has {here}, which rounds "
        f"otherwise; {SAME_BLAS}"
    )
