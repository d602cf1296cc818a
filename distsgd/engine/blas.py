"""The BLAS of this process: which kernel multiplies, and by how many threads.

The bits of a product depend on both. The number of threads belongs to the whole process, so
everyone who computes here shares one limit: the first to come sets it, the last to leave restores
what was there before.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy  # noqa: F401 - it brings the BLAS that is asked about

from distsgd.core.model import SMALL_PRODUCTS, WHOLE_PRODUCTS
from distsgd.engine import core_type
from distsgd.errors import RuntimeFailure

_without = "KMP_DUPLICATE_LIB_OK" not in os.environ
from threadpoolctl import ThreadpoolController, threadpool_info  # noqa: E402

if _without:  # threadpoolctl sets it, and the environment is the caller's
    os.environ.pop("KMP_DUPLICATE_LIB_OK", None)

__all__ = [
    "SAME_BLAS", "best_products", "blas_kernel", "check_blas_threads", "core_type_of",
    "keep_one_blas_thread", "one_blas_thread", "same_core_type",
]  # fmt: skip

SAME_BLAS = "OPENBLAS_CORETYPE, the same everywhere before Python starts, makes them the same"
"""What to do about two kernels; who chooses otherwise: `distsgd.engine.core_type`."""


def blas_kernel() -> str:
    """The BLAS of numpy and the kind of processor it computes for.

    Returns:
        as "openblas 0.3.31 (SkylakeX)", or "unknown".
    """
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    if not found:
        return "unknown"
    library = min(found, key=lambda one: "numpy" not in one["filepath"])  # scipy has its own
    kind = library.get("architecture") or "unknown kind of CPU"
    return f"{library['internal_api']} {library['version']} ({kind})"


def core_type_of(kernel: str) -> str | None:
    """The core type of OpenBLAS in what `blas_kernel` says; None if it is another BLAS."""
    found = re.fullmatch(r"openblas \S+ \((\w+)\)", kernel)
    return None if found is None else found[1]


_WITHOUT_SMALL_KERNELS = {"Haswell", "Zen"}


def best_products() -> str:
    """How slots are multiplied fastest by the BLAS of this process, see `SMALL_PRODUCTS`.

    It decides bits, so a run remembers it (``versions.products`` in its config.json).
    """
    whole = core_type_of(blas_kernel()) in _WITHOUT_SMALL_KERNELS
    return WHOLE_PRODUCTS if whole else SMALL_PRODUCTS


def same_core_type() -> dict[str, str]:
    """Variables with which a process of this machine multiplies as this one does.

    None if the user has set the core type, or OpenBLAS picks it without the variable.
    """
    loaded = core_type_of(blas_kernel())
    if loaded is None or core_type.VARIABLE in os.environ or not core_type.runs_here(loaded):
        return {}
    return {core_type.VARIABLE: loaded}


Limits = list[tuple[Any, int]]
"""Libraries, as threadpoolctl controls them, each with the number of threads it had before."""


class _Limit:
    """One BLAS thread while at least one holder is inside.

    OpenBLAS on threads of its own, as in numpy's wheels, has one number for the whole process. MKL,
    BLIS and whatever stands on OpenMP have one for each thread that calls them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[int, int] = {}  # thread -> how often it is inside
        self._libraries: list[Any] = []
        self._shared: Limits = []
        self._own: dict[int, Limits] = {}  # thread -> its own
        self._known: tuple[int, list[Any]] = (0, [])

    def enter(self) -> None:
        here = threading.get_ident()
        with self._lock:
            if not self._holders:
                self._libraries = found = self._loaded()
                self._shared = _limited([one for one in found if _for_all_threads(one)])
            if here not in self._holders:
                own = [one for one in self._libraries if not _for_all_threads(one)]
                self._own[here] = _limited(own)
            self._holders[here] = self._holders.get(here, 0) + 1

    def _loaded(self) -> list[Any]:
        """The BLAS libraries of this process, which are looked for anew after an import: that
        takes 0.2 ms, more than a prediction."""
        modules = len(sys.modules)
        if self._known[0] != modules:
            found = ThreadpoolController().select(user_api="blas").lib_controllers
            self._known = modules, list(found)
        return self._known[1]

    def leave(self) -> None:
        here = threading.get_ident()
        with self._lock:
            self._holders[here] -= 1
            if not self._holders[here]:
                del self._holders[here]
                _restore(self._own.pop(here))
            self._restore_shared()

    def _restore_shared(self) -> None:
        if not self._holders:
            _restore(self._shared)
            self._libraries, self._shared = [], []

    def threads(self) -> int:
        """The largest number of threads of a library; less than a microsecond."""
        return max((int(library.num_threads) for library in self._libraries), default=1)

    def after_fork(self) -> None:
        """In a child there is one thread: what the others held is let go of."""
        self._lock = threading.Lock()
        here, held = threading.get_ident(), bool(self._holders)
        self._holders = {thread: n for thread, n in self._holders.items() if thread == here}
        self._own = {thread: limits for thread, limits in self._own.items() if thread == here}
        if held:
            self._restore_shared()


def _for_all_threads(library: Any) -> bool:
    """Whether a library has one number of threads for the whole process."""
    return bool(library.internal_api == "openblas" and library.threading_layer != "openmp")


def _set(library: Any, threads: int) -> None:
    # Newer threadpoolctl lets one thread set the number of the whole process, the first that does,
    # and ignores all others while that one lives, unless it is cleared.
    clear = getattr(library, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
    library.set_num_threads(threads)
    if clear is not None:
        clear(force=True)


def _limited(libraries: Sequence[Any]) -> Limits:
    """Set libraries to one thread."""
    before = [(library, int(library.num_threads)) for library in libraries]
    for library, threads in before:
        if threads != 1:
            _set(library, 1)
    return before


def _restore(limits: Limits) -> None:
    """Undo `_limited`; a number set by another thread meanwhile stays."""
    for library, threads in limits:
        if threads != 1 and library.num_threads == 1:
            _set(library, threads)


_limit = _Limit()
os.register_at_fork(after_in_child=_limit.after_fork)


@contextmanager
def one_blas_thread(*, check_at_end: bool = True) -> Iterator[None]:
    """Compute with one BLAS thread; any number of threads may be inside at once.

    Args:
        check_at_end: whether to call `check_blas_threads` at the end of a block that raises
            nothing. A block that checks while it computes needs no other check.
    """
    _limit.enter()
    try:
        yield
        if check_at_end:
            check_blas_threads()
    finally:
        _limit.leave()


def keep_one_blas_thread() -> None:
    """Compute with one BLAS thread until this process ends, one that does nothing else."""
    _limit.enter()


def check_blas_threads() -> None:
    """Check, inside `one_blas_thread`, that no other code has changed the number of threads.

    Raises:
        RuntimeFailure: it has been; what was computed meanwhile may have other bits.
    """
    if (threads := _limit.threads()) != 1:
        raise RuntimeFailure(
            f"the BLAS of this process was set to {threads} threads during a computation whose "
            "bits depend on them",
            "Call threadpool_limits and the like before or after it, or in another process; "
            "`distsgd resume` continues a training",
        )
