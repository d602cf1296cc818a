"""Compare policies on simulated fleets that train on CIFAR-10.

    python scripts/simulation_bars.py [straggler] [staleness] [backup] [thousand]

The settings are the same for all policies of a comparison. Times to a target are virtual seconds:
the mean over the seeds 0 to 4, with the range. The last one is measured in wall time on this
machine. Takes about ten minutes.
"""

from __future__ import annotations

import resource
import sys
import time
from functools import cache
from typing import Any

from harness.tables import Table, print_environment

from distsgd.config.settings import TrainConfig
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.probe import Measuring
from distsgd.simulation.scenario import fleet_from
from distsgd.simulation.simulate import compare, policy_configs, simulate

SEEDS = 5


def rows(title: str, policies: str, fleet: Fleet, measuring: Measuring, **settings: Any) -> None:
    """A row for each policy."""
    configs = policy_configs(policies, lambda own: TrainConfig(**settings, **own))
    found = compare(configs, fleet, measuring, SEEDS)
    for row in found.rows:
        times = row.times_to_loss if measuring.target_loss else row.times_to_accuracy
        known = [at for at in times if at is not None]
        mean = f"{sum(known) / len(known):.3f} ({min(known):.3f}-{max(known):.3f})" if known else ""
        table().row(
            title, row.policy, mean, f"{len(known)}/{len(times)}", f"{row.waiting_share:.1%}",
            row.mean_staleness, row.updates, row.requeued,
        )  # fmt: skip


@cache
def table() -> Table:
    """One for all comparisons."""
    return Table(
        "fleet", "policy", "virtual s to the target", "reached", "waiting", "mean age",
        "updates", "requeued",
    )  # fmt: skip


def straggler(policies: str = "bsp,asp,ssp:0,ssp:1,ssp:2,ssp:3,ssp:4,ssp:8,ssp:16") -> None:
    """Eight workers, one 4 times slower; minibatches of 8 slots of 64; training loss 1.80."""
    for rate in (0.01, 0.005, 0.0025):
        rows(
            f"1 of 8 four times slower, learning rate {rate}", policies,
            fleet_from({"workers": 8, "slow": "1:4"}),
            Measuring(every=2, examples=2000, target_loss=1.80),
            batch_size=512, learning_rate=rate, schedule="constant", regularization=0.001,
            epochs=4,
        )  # fmt: skip


def staleness() -> None:
    """The same with heavy-tailed slowness, where a larger S lets gradients grow older."""
    rows(
        "1 of 8 four times slower, all pareto:1.1, learning rate 0.01",
        "bsp,asp,ssp:0,ssp:1,ssp:2,ssp:4,ssp:8,ssp:16,ssp:32",
        fleet_from({"workers": 8, "slow": "1:4", "jitter": "pareto:1.1"}),
        Measuring(every=2, examples=2000, target_loss=1.80),
        batch_size=512, learning_rate=0.01, schedule="constant", regularization=0.001, epochs=4,
    )  # fmt: skip


def backup() -> None:
    """Chen et al. 2016: n - B of n, heavy tails; minibatches of n slots of 8; 40 % accuracy."""
    for workers, policies in ((100, "bsp,backup:4"), (96, "bsp")):
        rows(
            f"{workers} workers, {workers} slots, pareto:1.5", policies,
            fleet_from({"workers": workers, "jitter": "pareto:1.5"}),
            Measuring(every=4, examples=10000, target_accuracy=0.40),
            batch_size=8 * workers, slot_size=8, learning_rate=0.01, schedule="constant",
            regularization=0.001, epochs=20,
        )  # fmt: skip


def thousand() -> None:
    """1,000 workers, asynchronous, minibatches of 16: pushes a second of wall time, memory."""
    began, spent = time.perf_counter(), time.process_time()
    config = TrainConfig(
        consistency="asp", batch_size=16, slot_size=16, epochs=8, learning_rate=0.0005
    )
    fleet = fleet_from({"workers": 1000, "jitter": "lognormal:0.5"})
    found = simulate(config, fleet, Measuring(every=10**6))
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"1,000 workers, asp: {found.updates} pushes in {wall:.1f} s wall ({cpu:.1f} s CPU): "
        f"{found.updates / wall:.0f} a second of wall time ({found.updates / cpu:.0f} of CPU), "
        f"memory {memory:.2f} GiB, mean age {found.mean_staleness:.0f}, "
        f"test accuracy {found.test_accuracy:.1%}"
    )


BARS = {"straggler": straggler, "staleness": staleness, "backup": backup, "thousand": thousand}

if __name__ == "__main__":
    print_environment()
    for name in sys.argv[1:] or BARS:
        BARS[name]()
