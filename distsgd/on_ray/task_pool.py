"""Independent tasks, spread over workers, with results in the order of the tasks.

What is computed must not depend on how many workers there are: each task is a pure function of
itself and of a recipe, and whoever adds results up does so in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

from distsgd.engine.blas import keep_one_blas_thread, one_blas_thread
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.capacity import check_processes

__all__ = ["Recipe", "TaskPool", "task_pool"]

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)

_AHEAD = 2
"""Tasks that a worker has been given at once: the next is there when one is done."""
_MOST_DEATHS = 3
_POLL_SECONDS = 0.25


class Recipe(Protocol[T, R]):
    """What tasks are done with; picklable."""

    def open(self) -> Callable[[T], R]:
        """Called once in every process that works: opens the data, makes the buffers."""
        ...


class TaskPool(Protocol):
    """Does tasks."""

    def map(self, recipe: Recipe[T, R], tasks: Iterable[T]) -> Iterator[R]:
        """The results of the tasks, in their order.

        Raises:
            RuntimeFailure: workers die again and again, or Ray has.
            DistsgdError: what a task raises.
        """
        ...


@contextmanager
def task_pool(workers: int) -> Iterator[TaskPool]:
    """A pool of so many workers.

    Args:
        workers: processes on Ray, the caller's if it is connected to one, else one of our own;
            0 does everything in this process, without Ray. One BLAS thread each.

    Raises:
        UsageError: there is no room for so many.
    """
    if workers < 0:
        raise UsageError(f"--workers cannot be {workers}", "Give a whole number, 0 or more")
    check_processes(workers, 0, f"--workers {workers}")
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
        """Do one task; the first opens the recipe, so that its errors come through."""
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


class _Given:
    """A task in the hands of a worker."""

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
        self._open: deque[_Given] = deque()
        self._deaths = 0

    def results(self) -> Iterator[Any]:
        self._give_out()
        while self._open:
            yield self._wait(self._open[0])
            self._open.popleft()
            self._give_out()

    def _give_out(self) -> None:
        """Keep workers busy: no more than a bounded number of results is waited for."""
        while len(self._open) < _AHEAD * len(self._actors):
            try:
                given = _Given(next(self._tasks))
            except StopIteration:
                return
            load = [0] * len(self._actors)
            for other in self._open:
                load[other.worker] += not self._done(other)
            self._hand(given, load.index(min(load)))
            self._open.append(given)

    def _done(self, given: _Given) -> bool:
        import ray

        return bool(ray.wait([given.reference], timeout=0, fetch_local=False)[0])

    def _hand(self, given: _Given, worker: int) -> None:
        given.worker = worker
        given.reference = self._actors[worker].do.remote(self._recipe, given.task)

    def _wait(self, given: _Given) -> Any:
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
        """A worker has died: another does again what it had not answered."""
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            from distsgd.on_ray.health import why_dead

            raise RuntimeFailure(
                f"workers die again and again: {why_dead(error)}",
                "Look for a lack of memory, or use fewer: --workers 1",
            ) from error
        self._actors[worker] = self._remote.remote()
        for given in self._open:
            if given.worker == worker:
                self._hand(given, worker)

    def close(self) -> None:
        """End the workers; others may need their CPUs at once."""
        import ray

        for actor in self._actors:
            with suppress(Exception):  # Ray may be gone
                ray.kill(cast(Any, actor))
