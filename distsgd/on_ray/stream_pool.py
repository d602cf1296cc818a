"""A pool of worker processes for tasks that give one result after another.

Results come as they are made. A task whose worker dies is begun again by another process, from
where it was after its last result. Workers stay for the next tasks, with what they have opened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

from distsgd.engine.blas import keep_one_blas_thread
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.capacity import check_processes
from distsgd.spelling import spelled, spelling

__all__ = ["StreamPool", "Streamed", "stream_pool"]

R = TypeVar("R")

_MOST_DEATHS = 3
"""Workers that may die one after the other without a result between."""

_POLL_SECONDS = 0.25


class Streamed(Protocol[R]):
    """A task that gives results one after another; picklable."""

    def open(self) -> Iterator[R]:
        """Begin, and compute the results; none is None."""
        ...

    def after(self, result: R) -> Streamed[R]:
        """What is left of this task after a result."""
        ...


class StreamPool(Protocol):
    """Computes tasks; see `stream_pool`."""

    def results(self, tasks: Sequence[Streamed[R]]) -> Iterator[tuple[int, R]]:
        """The number of a task and its next result, as they come; in order for each task.

        A worker has one task at a time, the first ones first.

        Raises:
            RuntimeFailure: workers die repeatedly, or Ray has died.
            DistsgdError: an error that a task raises.
        """
        ...


@contextmanager
def stream_pool(
    workers: int, cluster: AbstractContextManager[None] | None = None
) -> Iterator[StreamPool]:
    """A pool of workers.

    Args:
        workers: number of processes on Ray, the caller's or a session of our own; 0 computes in
            this process, without Ray. One BLAS thread each.
        cluster: joins the cluster to compute on, if it is another.

    Raises:
        UsageError: there are too many.
    """
    if workers < 0:
        raise UsageError(
            f"{spelled('workers')} cannot be {workers}", "Give a whole number, 0 or more"
        )
    if workers == 0:
        yield _InThisProcess()
        return
    if cluster is None:
        check_processes(workers, 0, spelling().given("workers", workers))
        from distsgd.on_ray.session import ray_session

        cluster = ray_session(cpus=workers)
    with cluster:
        pool = _OnRay(workers)
        try:
            yield pool
        finally:
            pool.close()


class _InThisProcess:
    def results(self, tasks: Sequence[Streamed[R]]) -> Iterator[tuple[int, R]]:
        for number, task in enumerate(tasks):
            for result in task.open():
                yield number, result


class StreamProcess:
    """A worker of a pool; made remote in `_OnRay`."""

    def __init__(self) -> None:
        keep_one_blas_thread()
        self._results: Iterator[Any] = iter(())

    def next(self, begin: Streamed[Any] | None = None) -> Any:
        """The next result, of a task that begins or of the one begun before; None at its end."""
        if begin is not None:
            self._results = begin.open()
        return next(self._results, None)


class _OnRay:
    def __init__(self, workers: int) -> None:
        import ray

        from distsgd.on_ray.sharing import owns_ray

        cpus = 0 if owns_ray() else 1  # trainings may share a Ray of our own
        self._remote = ray.remote(num_cpus=cpus, max_restarts=0)(StreamProcess)
        self._actors = [self._remote.remote() for _ in range(workers)]
        self._deaths = 0

    def results(self, tasks: Sequence[Streamed[R]]) -> Iterator[tuple[int, R]]:
        """See `StreamPool.results`."""
        left = dict(enumerate(tasks))
        waiting = deque(left)
        running: dict[Any, tuple[int, int]] = {}  # reference -> (worker, task)

        def begin(worker: int) -> None:
            if waiting:
                task = waiting.popleft()
                running[self._actors[worker].next.remote(left[task])] = worker, task

        try:
            for worker in range(len(self._actors)):
                begin(worker)
            while running:
                reference = self._any_of(list(running))
                if reference is None:
                    continue
                worker, task = running.pop(reference)
                result = self._result(reference, worker)
                if isinstance(result, _Died):
                    waiting.appendleft(task)
                    begin(worker)
                elif result is None:
                    del left[task]
                    begin(worker)
                else:
                    self._deaths = 0
                    left[task] = left[task].after(result)
                    running[self._actors[worker].next.remote()] = worker, task
                    yield task, result
        finally:
            for worker, _ in running.values():  # they are in the middle of a task
                self._replace(worker)

    def _any_of(self, references: list[Any]) -> Any:
        """One that is there; None if there is none yet."""
        import ray

        from distsgd.on_ray.health import check_ray

        check_ray()
        ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS, fetch_local=False)
        return ready[0] if ready else None

    def _result(self, reference: Any, worker: int) -> Any:
        import ray

        from distsgd.on_ray.health import DEAD, cause_of, why_dead

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from error
        except DEAD as error:
            self._deaths += 1
            if self._deaths > _MOST_DEATHS:
                raise RuntimeFailure(
                    f"workers die repeatedly: {why_dead(error)}",
                    f"Look for a lack of memory, or use fewer: {spelling().given('workers', 1)}",
                ) from error
            self._replace(worker)
            return _Died()

    def _replace(self, worker: int) -> None:
        import ray

        with suppress(Exception):  # it, or Ray, may be gone
            ray.kill(cast(Any, self._actors[worker]))
        with suppress(Exception):
            self._actors[worker] = self._remote.remote()

    def close(self) -> None:
        """Kill the workers, to free their CPUs at once."""
        import ray

        for actor in self._actors:
            with suppress(Exception):
                ray.kill(cast(Any, actor))


class _Died:
    """In place of a result: the worker has died."""
