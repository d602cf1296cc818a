"""Simulated training: what a consistency policy costs on a fleet of any size and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import DivergedError, UsageError
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.probe import Measuring
from distsgd.simulation.results import Comparison, SimulationResult, summary
from distsgd.simulation.scenario import policy_settings
from distsgd.simulation.simulated_run import SimulatedRun
from distsgd.spelling import spelled
from distsgd.training.interrupts import NEVER, Stopping

__all__ = ["compare", "compare_with", "policy_configs", "simulate", "simulate_with"]


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
        fleet: the simulated workers; None for 8 equal ones. `fleet_from` makes one from
            expressions such as "1:4".
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
    """As `simulate`, with the settings as one object, and what may stop it early."""
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

    A training that diverges does not end the comparison; its row counts it.

    Args:
        policies: such as "bsp,ssp:3,asp,backup:4,local:8".
        dataset: as for `simulate`.
        loss: as for `simulate`.
        seeds: number of seeds, from the setting ``seed`` upward.
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
    """The settings of each policy.

    Args:
        policies: such as "bsp,ssp:3,asp".
        make: from the settings that a policy names itself to all settings.
    """
    return {name: make(own) for name, own in policy_settings(policies)}


def compare_with(
    configs: dict[str, TrainConfig],
    fleet: Fleet,
    measuring: Measuring,
    seeds: int = 1,
    progress: Callable[[str, int], None] = lambda policy, seed: None,
) -> Comparison:
    """As `compare`, with the settings of each policy as one object.

    Args:
        configs: name of a policy -> settings.
        fleet: the simulated workers.
        measuring: when to measure, on what, and when to stop.
        seeds: number of seeds.
        progress: called with the policy and the seed before each training.
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
        rows=[summary(name, results) for name, results in runs.items()],
        runs=[result for results in runs.values() for result in results],
    )
