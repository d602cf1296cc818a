"""Simulated training: what a policy costs and brings, on fleets that nobody has to own.

One simulated training, measured on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.core.messages import Diverged
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.events import Ended, Updated
from distsgd.engine.job import Snapshot
from distsgd.errors import DivergedError, UsageError
from distsgd.runs.checkpoint import weights_sha256
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.probe import Measuring, Probe
from distsgd.simulation.results import Comparison, CurvePoint, SimulationResult, summary
from distsgd.simulation.scenario import policy_name, policy_settings
from distsgd.simulation.virtual_training import Simulation
from distsgd.spelling import spelled
from distsgd.training.interrupts import NEVER, Stopping
from distsgd.training.limits import check_sizes

__all__ = ["compare", "compare_with", "policy_configs", "simulate", "simulate_with"]


class SimulatedRun:
    """One simulated training: follows its events and measures on the way."""

    def __init__(
        self,
        config: TrainConfig,
        fleet: Fleet,
        measuring: Measuring,
        dataset: Dataset,
        stop: Callable[[], bool],
    ) -> None:
        # The setting is the number of replicas for local steps.
        self._config = replace(config, workers=fleet.workers)
        self._fleet, self._measuring, self._stop = fleet, measuring, stop
        check_sizes(config, dataset)
        job = self._job = make_job(replace(self._config, verify=0.0), dataset)
        start = Snapshot(0, first_weights(self._config, job), {})
        self._simulation = Simulation(job, start, fleet, config.seed)
        self._probe = Probe(job, dataset, measuring.examples)
        self._curve: list[CurvePoint] = []
        self._to_loss: float | None = None
        self._to_accuracy: float | None = None
        self.diverged: Diverged | None = None

    def result(self) -> SimulationResult:
        """Train, and say what came of it."""
        self._measure()
        every = self._measuring.interval(self._job.plan.steps_per_epoch)
        ended: Ended | None = None
        for event in self._simulation.events(self._over):
            if isinstance(event, Updated):
                # One push may lead to several updates at once; W is that after the last.
                if self._simulation.version // every > self._curve[-1].update // every:
                    self._measure()
            elif isinstance(event, Ended):
                ended = event
        assert ended is not None
        self.diverged = ended.diverged
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
        """Whether there are targets, and all have been reached."""
        wanted = (self._measuring.target_loss, self._measuring.target_accuracy)
        found = (self._to_loss, self._to_accuracy)
        pairs = [(at, when) for at, when in zip(wanted, found, strict=True) if at is not None]
        return bool(pairs) and all(when is not None for _, when in pairs)

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
            gradient_ages={str(age): count for age, count in sorted(ages.items())},
            mean_gradient_age=sum(age * n for age, n in ages.items()) / max(1, ages.total()),
            dropped=statistics.dropped,
            requeued=statistics.requeued,
            bytes_per_update=statistics.bytes_pushed / max(1, ended.snapshot.version),
            train_loss=self._curve[-1].train_loss,
            test_accuracy=self._probe.test_accuracy(weights),
            weights_sha256=weights_sha256(job.architecture.unpad(weights)),
        )


def simulate(
    dataset: str = "cifar10",
    loss: str = "softmax",
    *,
    fleet: Fleet | None = None,
    measuring: Measuring | None = None,
    **settings: Any,
) -> SimulationResult:
    """Train on a virtual clock, with real data and real gradients.

    Args:
        dataset: "cifar10", "sample", or the path of a dataset folder.
        loss: "softmax" or "svm".
        fleet: the simulated workers; None for 8 equal ones. `fleet_from`
            makes one from expressions such as "1:4".
        measuring: when to measure, on what, and when to stop.
        **settings: further settings, see `distsgd.config.settings.TrainConfig`; ``workers`` is the
            fleet's, and the seed is also that of its random slowness.

    Raises:
        UsageError: a setting cannot be used.
        DivergedError: the loss of an update was not finite.
        RuntimeFailure: all workers failed.
    """
    config = config_from({"dataset": dataset, "loss": loss, **settings})
    return simulate_with(config, fleet or Fleet(), measuring or Measuring())


def simulate_with(
    config: TrainConfig, fleet: Fleet, measuring: Measuring, stopping: Stopping = NEVER
) -> SimulationResult:
    """See `simulate`; takes the settings as one object, and what may end it early."""
    with one_blas_thread():
        dataset = _opened(config)
        with stopping as stop:
            run = SimulatedRun(config, fleet, measuring, dataset, stop)
            result = run.result()
    if run.diverged is not None:
        rate = run.diverged.learning_rate
        remedy = config.spelling.given("learning_rate", float(f"{rate / 10:.3g}"))
        raise DivergedError(run.diverged.step, run.diverged.loss, rate, remedy)
    return result


def _opened(config: TrainConfig) -> Dataset:
    dataset = open_dataset(config.dataset, cache_limit=config.cache_limit, stream=config.streams)
    dataset.verify()
    return dataset


def compare(
    policies: str | Sequence[str],
    dataset: str = "cifar10",
    loss: str = "softmax",
    *,
    seeds: int = 1,
    fleet: Fleet | None = None,
    measuring: Measuring | None = None,
    **settings: Any,
) -> Comparison:
    """Simulate several policies on the same fleet, with the same settings and seeds.

    A training that diverges does not end the comparison; it is counted in its row.

    Args:
        policies: such as "bsp,ssp:3,asp,backup:4,local:8".
        dataset: as for `simulate`.
        loss: as for `simulate`.
        seeds: how many seeds, counted up from the setting ``seed``.
        fleet: as for `simulate`.
        measuring: as for `simulate`.
        **settings: as for `simulate`, without those of the policies.
    """
    given = {"dataset": dataset, "loss": loss, **settings}
    configs = policy_configs(policies, lambda policy: config_from({**given, **policy}))
    return compare_with(configs, fleet or Fleet(), measuring or Measuring(), seeds)


def policy_configs(
    policies: str | Sequence[str], make: Callable[[dict[str, Any]], TrainConfig]
) -> dict[str, TrainConfig]:
    """The settings for each policy, made from those that are the policy's own."""
    return {name: make(own) for name, own in policy_settings(policies)}


def compare_with(
    configs: dict[str, TrainConfig],
    fleet: Fleet,
    measuring: Measuring,
    seeds: int = 1,
    progress: Callable[[str, int], None] = lambda policy, seed: None,
) -> Comparison:
    """See `compare`; takes the settings of each policy as one object.

    Args:
        configs: name of a policy -> settings.
        fleet: who trains.
        measuring: when to measure, on what, and when to stop.
        seeds: how many.
        progress: told policy and seed before each training.
    """
    if seeds < 1:
        raise UsageError(f"{spelled('seeds')} cannot be {seeds}", "Give 1 or more")
    first = next(iter(configs.values()))
    numbers = list(range(first.seed, first.seed + seeds))
    runs: dict[str, list[SimulationResult]] = {}
    with one_blas_thread():
        dataset = _opened(first)
        for name, config in configs.items():
            runs[name] = []
            for seed in numbers:
                progress(name, seed)
                one = replace(config, seed=seed)
                run = SimulatedRun(one, fleet, measuring, dataset, lambda: False)
                runs[name].append(run.result())
    return Comparison(
        seeds=numbers,
        target_loss=measuring.target_loss,
        target_accuracy=measuring.target_accuracy,
        rows=[summary(name, found) for name, found in runs.items()],
        runs=[run for found in runs.values() for run in found],
    )
