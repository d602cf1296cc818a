"""A fleet whose workers multiply by kernels of OpenBLAS that differ, as on nodes that differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pytest

from distsgd.engine.core_type import VARIABLE
from distsgd.on_ray import driver, processes

__all__ = ["mixed_kernels"]


class _Choice:
    """Sets the variable of OpenBLAS in a process that unpickles this.

    Ray unpickles the class of an actor first, before anything that loads numpy.

    Args:
        kernel: value of the variable.
    """

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"import os; os.environ[{VARIABLE!r}] = {self._kernel!r}",)


def _worker_by(kernel: str) -> type:
    """The class of workers that load a kernel: one without bases, which would load numpy."""

    def begin(self: Any, *arguments: Any) -> None:
        from distsgd.on_ray.processes import WorkerProcess

        self.inner = WorkerProcess(*arguments)

    def forwarded(name: str) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            return getattr(self.inner, name)(*arguments)

        return call

    methods = inspect.getmembers(processes.WorkerProcess, inspect.isfunction)
    public = {name: forwarded(name) for name, _ in methods if not name.startswith("_")}
    return type("WorkerProcess", (), {**public, "__init__": begin, "kernel": _Choice(kernel)})


@contextmanager
def mixed_kernels(kernels: Sequence[str]) -> Iterator[None]:
    """Start the workers of trainings on Ray with these kernels in turn."""
    turn, make = cycle(kernels), driver._Driver._make_worker

    with pytest.MonkeyPatch.context() as patch:

        def make_worker(self: Any, number: int) -> Any:
            patch.setattr(driver, "WorkerProcess", _worker_by(next(turn)))
            return make(self, number)

        patch.setattr(driver._Driver, "_make_worker", make_worker)
        yield
