"""One simulated training, which is measured on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Diverged
from distsgd.data.dataset import Dataset
from distsgd.engine.blas import best_products
from distsgd.engine.events import Ended, Updated
from distsgd.engine.job import Snapshot
from distsgd.runs import weights_sha256
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.probe import Measuring, Probe
from distsgd.simulation.results import CurvePoint, SimulationResult
from distsgd.simulation.scenario import policy_name
from distsgd.simulation.virtual_training import Simulation
from distsgd.training.limits import check_sizes, exceeded_bound

__all__ = ["SimulatedRun"]


class SimulatedRun:
    """Trains on a virtual clock, follows the events and measures W on the way.

    Args:
        config: the settings.
        fleet: the simulated workers.
        measuring: when to measure, on what, and when to stop.
        dataset: of the settings, opened.
        stop: asked between events whether to stop early.

    Attributes:
        diverged: the update whose loss was not finite, if there is one.
    """

    def __init__(
        self,
        config: TrainConfig,
        fleet: Fleet,
        measuring: Measuring,
        dataset: Dataset,
        stop: Callable[[], bool],
    ) -> None:
        # For local steps, this setting is the number of replicas.
        self._config = replace(config, workers=fleet.workers)
        self._fleet, self._measuring, self._stop = fleet, measuring, stop
        check_sizes(config, dataset)
        job = self._job = make_job(replace(self._config, verify=0.0), dataset, best_products())
        start = Snapshot(0, first_weights(self._config, job), {})
        self._simulation = Simulation(job, start, fleet, config.seed)
        self._probe = Probe(job, dataset, measuring.examples)
        self._curve: list[CurvePoint] = []
        self._to_loss: float | None = None
        self._to_accuracy: float | None = None
        self.diverged: Diverged | None = None
        self.exceeded_bound = ""
        self._dataset = dataset

    def result(self) -> SimulationResult:
        """Train, and return the result."""
        self._measure()
        every = self._measuring.interval(self._job.plan.steps_per_epoch)
        ended: Ended | None = None
        for event in self._simulation.events(self._over):
            if isinstance(event, Updated):
                # One push may cause several updates at once; W is that after the last.
                if self._simulation.version // every > self._curve[-1].update // every:
                    self._measure()
            elif isinstance(event, Ended):
                ended = event
        assert ended is not None
        if ended.diverged is not None:
            self.diverged, weights = ended.diverged, ended.snapshot.weights
            self.exceeded_bound = exceeded_bound(self._job, self._dataset, self.diverged, weights)
        if ended.snapshot.version != self._curve[-1].update:
            self._measure()
        return self._result(ended)

    def _measure(self) -> None:
        update = self._simulation.version
        loss, accuracy = self._probe.measure(self._simulation.weights)
        now, measuring = self._simulation.seconds, self._measuring
        self._curve.append(CurvePoint(now, update, loss, accuracy))
        if self._to_loss is None and loss <= (measuring.target_loss or -1):
            self._to_loss = now
        if self._to_accuracy is None and accuracy >= (measuring.target_accuracy or 2):
            self._to_accuracy = now

    def _reached(self) -> bool:
        """Whether there are targets and all are reached."""
        targets = (self._measuring.target_loss, self._measuring.target_accuracy)
        times = (self._to_loss, self._to_accuracy)
        reached = [
            time is not None
            for target, time in zip(targets, times, strict=True)
            if target is not None
        ]
        return bool(reached) and all(reached)

    def _over(self) -> bool:
        return self._reached() or self._stop()

    def _status(self, ended: Ended) -> str:
        if ended.diverged is not None:
            return "diverged"
        if self._reached():
            return "target"
        return "finished" if ended.finished else "interrupted"

    def _result(self, ended: Ended) -> SimulationResult:
        job, weights, statistics = self._job, ended.snapshot.weights, ended.statistics
        waited = statistics.waiting_seconds
        presence = self._simulation.presence()
        ages = statistics.ages
        return SimulationResult(
            status=self._status(ended),
            policy=policy_name(self._config),
            settings=asdict(self._config),
            fleet=asdict(self._fleet),
            seconds=ended.seconds,
            updates=ended.snapshot.version,
            examples_seen=ended.examples_seen,
            curve=self._curve,
            target_loss=self._measuring.target_loss,
            time_to_loss=self._to_loss,
            target_accuracy=self._measuring.target_accuracy,
            time_to_accuracy=self._to_accuracy,
            waiting_share=sum(waited.values()) / (sum(presence) or 1.0),
            waiting_shares=[
                waited.get(worker, 0.0) / (present or 1.0)
                for worker, present in enumerate(presence)
            ],
            staleness={str(age): count for age, count in sorted(ages.items())},
            mean_staleness=sum(age * n for age, n in ages.items()) / max(1, ages.total()),
            dropped=statistics.dropped,
            requeued=statistics.requeued,
            bytes_per_update=statistics.bytes_pushed / max(1, ended.snapshot.version),
            train_loss=self._curve[-1].train_loss,
            test_accuracy=self._probe.test_accuracy(weights),
            weights_sha256=weights_sha256(job.architecture.unpad(weights)),
        )
