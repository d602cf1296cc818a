"""Simulated trainings for Python programs: fleet, measuring and settings by name."""

from __future__ import annotations

from typing import Any

from distsgd.simulation.probe import Measuring
from distsgd.simulation.results import SimulationResult
from distsgd.simulation.scenario import fleet_from, simulated_config
from distsgd.simulation.simulate import simulate as simulated
from distsgd.training.interrupts import FirstCtrlC

__all__ = ["simulate"]


def simulate(
    dataset: str | None = None,
    *,
    workers: int | None = None,
    speed: float | None = None,
    slow: str | None = None,
    jitter: str | None = None,
    latency: float | None = None,
    bandwidth: float | None = None,
    fail: str | None = None,
    rejoin: str | None = None,
    measure_every: int | None = None,
    measure_examples: int = 2000,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
    **settings: Any,
) -> SimulationResult:
    """Train on a virtual clock, with any number of workers of any speed; as `distsgd simulate`.

    Args:
        dataset: what is trained on.
        workers: simulated workers; 8 if not given.
        speed: examples a second that a usual worker computes; 250,000 if not given.
        slow: "COUNT:FACTOR,...": COUNT workers are FACTOR times slower, such as "1:4".
        jitter: "lognormal:SIGMA", "pareto:ALPHA" or "pause:CHANCE:FACTOR".
        latency: seconds that a message takes.
        bandwidth: bytes a second of each worker's link.
        fail: "WORKER@SECONDS,...": this worker fails at that time.
        rejoin: likewise, when it comes back.
        measure_every: updates between two measurements; None for about 20 an epoch.
        measure_examples: of each split, to measure on.
        target_loss: training loss to stop at.
        target_accuracy: test accuracy to stop at, from 0 to 1.
        settings: any setting of a training that is simulated, such as ``consistency="ssp"``.

    Returns:
        The curve, the virtual time, and what the policy cost.

    Raises:
        UsageError: a setting or an argument cannot be used.
        DivergedError: the loss of an update was not finite.
        RuntimeFailure: all workers failed.
    """
    fleet = {
        "workers": workers, "speed": speed, "slow": slow, "jitter": jitter, "latency": latency,
        "bandwidth": bandwidth, "fail": fail, "rejoin": rejoin,
    }  # fmt: skip
    measuring = Measuring(
        every=measure_every, examples=measure_examples, target_loss=target_loss,
        target_accuracy=target_accuracy,
    )  # fmt: skip
    given = settings if dataset is None else {"dataset": dataset, **settings}
    stop = FirstCtrlC()
    result = simulated(
        simulated_config({}, given, {}),
        fleet_from(fleet),
        measuring,
        stop,
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result
