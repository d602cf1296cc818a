"""Where the steps of a training are computed: in this process, or by workers on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Event
from distsgd.engine.job import Job, Snapshot
from distsgd.on_ray.capacity import FollowedCapacity
from distsgd.runs import RunFolder, WantedWorkers

if TYPE_CHECKING:
    from distsgd.on_ray.chaos_kills import ChaosKills

__all__ = ["NeedsRestart", "Processes"]


class NeedsRestart(Exception):
    """The number of workers changes while they have residuals, which a restart redistributes.

    Args:
        workers: how many from here on.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.problem = workers, f"{workers} workers from here on"
        super().__init__(self.problem)


class Processes:
    """Starts the processes of a training, one generation after another, on one Ray.

    Args:
        config: the settings.
        run: the run folder, where `distsgd.scale` leaves another number of workers.
        address: of the Ray cluster to train on; None for a Ray of our own.
        resized: called with a new number of workers before any of them works.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, address: str | None,
        resized: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._config, self._address, self._resized = config, address, resized
        self.workers = config.workers
        self._requested = WantedWorkers(run)
        self._wanted = FollowedCapacity(self._requested, config.servers, config.elastic)

    def in_one_process(self, job: Job, start: Snapshot) -> bool:
        """Whether no Ray is needed: there are no workers, or no steps are left."""
        position = start.position
        left = position is None or position.holes or position.step < job.plan.total_steps
        return self._config.workers == 0 or not left

    def session(self) -> AbstractContextManager[None]:
        """One Ray for all generations, within which `events` is called."""
        if self._address is not None:
            from distsgd.cluster.connection import joined_cluster

            return joined_cluster(self._address)
        from distsgd.on_ray.session import ray_session

        return ray_session(cpus=self._config.workers + self._config.servers)

    def restart(self, workers: int) -> None:
        """The number of workers to restart with, unless `scale` has asked for another since."""
        self.workers = workers
        self._requested.again()

    def events(
        self,
        job: Job,
        start: Snapshot,
        stop: Callable[[], bool],
        faults: Callable[[], ChaosKills | None],
    ) -> Iterator[Event]:
        """The events of a generation of processes; see `train_inline` and `train_on_ray`.

        Raises:
            NeedsRestart: another number of workers is wanted, and they have residuals.
        """
        if self.in_one_process(job, start):
            from distsgd.engine.inline import train_inline

            return train_inline(job, start, stop)
        from distsgd.on_ray.driver import train_on_ray

        config = self._config
        return train_on_ray(
            job, start, self.workers, stop, config.channel, lambda: self._workers_wanted(job),
            config.wait_seconds, faults(),
        )  # fmt: skip

    def _workers_wanted(self, job: Job) -> int | None:
        """A new number of workers, if there is one; it is in the journal before they start."""
        wanted = self._wanted()
        if wanted and job.has_residuals and wanted != self.workers:
            raise NeedsRestart(wanted)
        if wanted is not None:
            self._resized(wanted)
        return wanted
