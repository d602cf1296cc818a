"""A pool of worker processes for independent tasks, with results in the order of the tasks.

Results do not depend on the number of workers: each task is a pure function of itself and of a
recipe, and the caller adds results up in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

from distsgd.engine.blas import keep_one_blas_thread, one_blas_thread
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.capacity import check_processes
from distsgd.spelling import spelled, spelling

__all__ = ["Recipe", "TaskPool", "task_pool"]

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)

_AHEAD = 2
"""Tasks that a worker holds at once, so that it need not wait for the next one."""
_MOST_DEATHS = 3
_POLL_SECONDS = 0.25


class Recipe(Protocol[T, R]):
    """What tasks are computed with; picklable."""

    def open(self) -> Callable[[T], R]:
        """Open the data, make the buffers, return the task function; once in every worker."""
        ...


class TaskPool(Protocol):
    """Computes tasks; see `task_pool`."""

    def map(self, recipe: Recipe[T, R], tasks: Iterable[T]) -> Iterator[R]:
        """The results of the tasks, in their order.

        Raises:
            RuntimeFailure: workers die repeatedly, or Ray has died.
            DistsgdError: an error that a task raises.
        """
        ...


@contextmanager
def task_pool(workers: int) -> Iterator[TaskPool]:
    """A pool of workers.

    Args:
        workers: number of processes on Ray, the caller's or a session of our own; 0 computes in
            this process, without Ray. One BLAS thread each.

    Raises:
        UsageError: there are too many.
    """
    if workers < 0:
        raise UsageError(
            f"{spelled('workers')} cannot be {workers}", "Give a whole number, 0 or more"
        )
    check_processes(workers, 0, spelling().given("workers", workers))
    if workers == 0:
        with one_blas_thread():
            yield _InThisProcess()
        return
    from distsgd.on_ray.session import ray_session

    with ray_session(cpus=workers):
        yield _OnRay(workers)


class _InThisProcess:
    def map(self, recipe: Recipe[T, R], tasks: Iterable[T]) -> Iterator[R]:
        return map(recipe.open(), tasks)


class TaskProcess:
    """A worker of a pool; made remote in `_OnRay`."""

    def __init__(self) -> None:
        keep_one_blas_thread()
        self._do: Callable[[Any], Any] | None = None

    def do(self, recipe: Recipe[Any, Any], task: Any) -> Any:
        """Compute one task; the first one opens the recipe, so that its errors are raised here."""
        if self._do is None:
            self._do = recipe.open()
        return self._do(task)


class _OnRay:
    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, recipe: Recipe[T, R], tasks: Iterable[T]) -> Iterator[R]:
        round_ = _Round(recipe, tasks, self._workers)
        try:
            yield from round_.results()
        finally:
            round_.close()


class _Assigned:
    """A task that a worker has been given."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.worker = -1
        self.reference: Any = None


class _Round:
    """The tasks of one call of `map`."""

    def __init__(self, recipe: Any, tasks: Iterable[Any], workers: int) -> None:
        import ray

        from distsgd.on_ray.sharing import owns_ray

        cpus = 0 if owns_ray() else 1  # trainings may share a Ray of our own
        self._remote = ray.remote(num_cpus=cpus, max_restarts=0)(TaskProcess)
        self._recipe = ray.put(recipe)
        self._tasks = iter(tasks)
        self._actors = [self._remote.remote() for _ in range(workers)]
        self._open: deque[_Assigned] = deque()
        self._deaths = 0

    def results(self) -> Iterator[Any]:
        self._assign_all()
        while self._open:
            yield self._wait(self._open[0])
            self._open.popleft()
            self._assign_all()

    def _assign_all(self) -> None:
        """Keep workers busy, with a bounded number of tasks in flight."""
        while len(self._open) < _AHEAD * len(self._actors):
            try:
                given = _Assigned(next(self._tasks))
            except StopIteration:
                return
            load = [0] * len(self._actors)
            for other in self._open:
                load[other.worker] += not self._done(other)
            self._assign(given, load.index(min(load)))
            self._open.append(given)

    def _done(self, given: _Assigned) -> bool:
        import ray

        return bool(ray.wait([given.reference], timeout=0, fetch_local=False)[0])

    def _assign(self, given: _Assigned, worker: int) -> None:
        given.worker = worker
        given.reference = self._actors[worker].do.remote(self._recipe, given.task)

    def _wait(self, given: _Assigned) -> Any:
        import ray

        from distsgd.on_ray.health import DEAD, cause_of, check_ray

        while True:
            try:
                check_ray()
                return ray.get(given.reference, timeout=_POLL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as error:
                raise cause_of(error) from error
            except DEAD as error:
                self._replace(given.worker, error)

    def _replace(self, worker: int, error: Exception) -> None:
        """Replace a worker that has died; the new one recomputes its unfinished tasks."""
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            from distsgd.on_ray.health import why_dead

            raise RuntimeFailure(
                f"workers die repeatedly: {why_dead(error)}",
                f"Look for a lack of memory, or use fewer: {spelling().given('workers', 1)}",
            ) from error
        self._actors[worker] = self._remote.remote()
        for given in self._open:
            if given.worker == worker:
                self._assign(given, worker)

    def close(self) -> None:
        """Kill the workers, to free their CPUs at once."""
        import ray

        for actor in self._actors:
            with suppress(Exception):  # Ray may be gone
                ray.kill(cast(Any, actor))
