"""Many settings over the worker processes of a machine or a cluster, in stacks.

    with stack_pool(workers=2) as pool:
        tasks = stack_tasks(configs, dataset, workers=2, until=3)
        for epoch in pool.train(tasks):         # as they end, of whichever stack
            ...                                  # epoch.results, epoch.states
        best = ...                               # places of the settings to go on with
        states = {place: newest[place] for place in best}
        for epoch in pool.train(stack_tasks(configs, dataset, workers=2, states=states)):
            ...

Each setting ends with the bits of its own training, whatever stack and worker it was in. A stack
whose worker is killed goes on in another process from its last epoch; no result comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.model import make_architecture
from distsgd.data.dataset import Dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.job import Job
from distsgd.engine.worker import dataset_of
from distsgd.on_ray.stream_pool import StreamPool, stream_pool
from distsgd.tuning.stacked import EpochResult, SettingState, StackedTraining, stacks

__all__ = ["StackPool", "StackTask", "StackedEpoch", "stack_pool", "stack_tasks"]


@dataclass(frozen=True, eq=False)
class StackedEpoch:
    """An epoch of the settings of one stack.

    Attributes:
        results: of each setting, those that have diverged included; `EpochResult.setting` is its
            place in the settings that `stack_tasks` was given.
        states: of each setting that is still trained, by the same numbers, after the epoch.
    """

    results: tuple[EpochResult, ...]
    states: Mapping[int, SettingState]


@dataclass(frozen=True, eq=False)
class StackTask:
    """Settings that are trained together, and how far; see `stack_tasks`.

    Attributes:
        numbers: of the settings, as `stack_tasks` was given them.
        configs: the settings.
        job: of the first of them: what they are trained on.
        until: epochs after which it is done; None for all.
        states: where they begin, by number; None for the start.
    """

    numbers: tuple[int, ...]
    configs: tuple[TrainConfig, ...]
    job: Job
    until: int | None = None
    states: Mapping[int, SettingState] | None = None

    def open(self) -> Iterator[StackedEpoch]:
        """Train, and give every epoch."""
        places = {number: place for place, number in enumerate(self.numbers)}
        states = self.states and {places[n]: state for n, state in self.states.items()}
        if states == {}:
            return
        training = StackedTraining(self.configs, _dataset(self.job), states, self.until)
        for results in training:
            own = tuple(replace(one, setting=self.numbers[one.setting]) for one in results)
            after = {self.numbers[place]: state for place, state in training.state().items()}
            yield StackedEpoch(own, after)

    def after(self, result: StackedEpoch) -> StackTask:
        """What is left after an epoch."""
        return replace(self, states=result.states)


_datasets: dict[str, Dataset] = {}
"""Of this process, by digest: the last one."""


def _dataset(job: Job) -> Dataset:
    found = _datasets.get(job.digest)
    if found is None:
        found = dataset_of(job)
        _datasets.clear()
        _datasets[job.digest] = found
    return found


def stack_tasks(
    configs: Sequence[TrainConfig],
    dataset: Dataset,
    *,
    workers: int = 1,
    most: int = 16,
    until: int | None = None,
    states: Mapping[int, SettingState] | None = None,
) -> list[StackTask]:
    """Group settings into stacks that keep workers equally busy.

    Args:
        configs: the settings, any: those that cannot be trained together come into stacks of
            their own.
        dataset: what they are trained on.
        workers: of the pool.
        most: settings of a stack.
        until: epochs after which they pause; None for all of them.
        states: where each begins, by place in ``configs``; only these settings are trained. None:
            all, from the start.

    Raises:
        UsageError: a setting cannot be trained so, see `stacks`.
    """
    chosen = [n for n in range(len(configs)) if states is None or n in states]
    # Settings that have been trained for different numbers of epochs are in different stacks.
    by_epoch: dict[int, list[int]] = {}
    for number in chosen:
        by_epoch.setdefault(0 if states is None else states[number].epoch, []).append(number)
    tasks = []
    classes, features = len(dataset.manifest.classes), dataset.manifest.features
    largest = max(
        (make_architecture(name, features, classes).parameters
         for name in {configs[n].model for n in chosen}), default=0,
    )  # fmt: skip
    for numbers in by_epoch.values():
        for part in stacks([configs[n] for n in numbers], most, workers, largest):
            own = tuple(numbers[place] for place in part)
            with one_blas_thread():
                job = make_job(configs[own[0]], dataset)
            begin = None if states is None else {n: states[n] for n in own}
            tasks.append(StackTask(own, tuple(configs[n] for n in own), job, until, begin))
    return tasks


class StackPool:
    """Worker processes that train stacks; see `stack_pool`."""

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool

    def train(self, tasks: Sequence[StackTask]) -> Iterator[StackedEpoch]:
        """Train stacks; gives each epoch of each stack when it ends.

        May be called again, with other tasks; workers keep what they have opened. If it is not
        iterated to its end, what was being trained is given up.

        Raises:
            RuntimeFailure: workers die repeatedly, or Ray has died.
            DistsgdError: whatever a training raises.
        """
        for _, epoch in self._pool.results(tasks):
            yield epoch


@contextmanager
def stack_pool(workers: int, address: str | None = None) -> Iterator[StackPool]:
    """A pool of worker processes, which end with it.

    Args:
        workers: processes on Ray: the caller's, or a session of our own; 0 trains in this process.
        address: of the Ray cluster to train on, see `distsgd.train`; None for this machine.

    Raises:
        UsageError: there are too many workers for this machine, or no such cluster.
        RuntimeFailure: Ray does not start.
    """
    cluster = None
    if address is not None and workers:
        from distsgd.cluster.connection import joined_cluster

        cluster = joined_cluster(address)
    with stream_pool(workers, cluster) as pool:
        yield StackPool(pool)
