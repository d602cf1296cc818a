"""Simulated training: what a consistency policy costs on a fleet of any size and speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distsgd.config.settings import TrainConfig
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
from distsgd.training.limits import check_cache

__all__ = ["compare", "policy_configs", "simulate"]

_USUAL_FLEET, _USUAL_MEASURING = Fleet(), Measuring()


_MOST_SEEDS = 10_000


def simulate(
    config: TrainConfig,
    fleet: Fleet = _USUAL_FLEET,
    measuring: Measuring = _USUAL_MEASURING,
    stopping: Stopping = NEVER,
) -> SimulationResult:
    """Train on a virtual clock, with real data and real gradients.

    Args:
        config: the settings; ``workers`` is the fleet's, and the seed is also that of its random
            slowness.
        fleet: the simulated workers; 8 equal ones if it is not given. `fleet_from` makes one from
            expressions such as "1:4".
        measuring: when to measure, on what, and when to stop.
        stopping: what may end the simulation early.

    Raises:
        UsageError: a setting cannot be used.
        DivergedError: the loss of an update was not finite.
        RuntimeFailure: all workers failed.
    """
    with one_blas_thread():
        dataset = _opened(config)
        with stopping as stop:
            run = SimulatedRun(config, fleet, measuring, dataset, stop)
            result = run.result()
    if run.diverged is not None:
        rate = run.diverged.learning_rate
        remedy = config.spelling.given("learning_rate", float(f"{rate / 10:.3g}"))
        raise DivergedError(run.diverged.step, run.diverged.loss, rate, remedy, run.exceeded_bound)
    return result


def _opened(config: TrainConfig) -> Dataset:
    dataset = open_dataset(config.dataset, cache_limit=config.cache_limit, stream=config.streams)
    check_cache(config, dataset)
    dataset.verify()
    return dataset


def policy_configs(
    policies: str | Sequence[str], make: Callable[[dict[str, Any]], TrainConfig]
) -> dict[str, TrainConfig]:
    """The settings of each policy.

    Args:
        policies: such as "bsp,ssp:3,asp".
        make: from the settings that a policy names itself to all settings.
    """
    return {name: make(own) for name, own in policy_settings(policies)}


def compare(
    configs: Mapping[str, TrainConfig],
    fleet: Fleet = _USUAL_FLEET,
    measuring: Measuring = _USUAL_MEASURING,
    seeds: int = 1,
    progress: Callable[[str, int], None] = lambda policy, seed: None,
) -> Comparison:
    """Simulate several policies on the same fleet with the same seeds.

    A training that diverges does not end the comparison; it is counted in its row.

    Args:
        configs: name of a policy -> settings; see `policy_configs`.
        fleet: as for `simulate`.
        measuring: as for `simulate`.
        seeds: how many seeds, counted up from that of the settings.
        progress: called with policy and seed before each training.

    Raises:
        UsageError: a setting cannot be used.
        RuntimeFailure: all workers failed.
    """
    if not 1 <= seeds <= _MOST_SEEDS:
        raise UsageError(
            f"{spelled('seeds')} cannot be {seeds}", f"Give a number from 1 to {_MOST_SEEDS:,}"
        )
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
