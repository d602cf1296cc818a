"""Compare what `distsgd advise` predicts with what is measured, and its choices with the best.

    python scripts/advice_bars.py rates [MODEL ...] [--rounds N] [--keep FILE]
    python scripts/advice_bars.py policies [SCENARIO ...] [--rounds N] [--keep FILE]

"rates": images a second of ten settings, none of which is a trial. Each round measures the machine
as `distsgd advise` does, and then the settings on Ray, so that a drift of the machine meets both.
The ratio is of the medians over all rounds.

"policies": in each scenario, seconds of steps until the loss of the minibatches, smoothed, has
come down to a target, by each policy; and which policy was predicted to be first.

With --keep, rounds are added to those of the file, so that they can be measured a few at a time.
The machine should be idle otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from harness.tables import Table, print_environment

from distsgd.advice.machine import Machine, Trial, trial_of
from distsgd.advice.measuring import Effort, measure_machine
from distsgd.advice.prediction import Predictor, Setting
from distsgd.bench.processes import busy_loop
from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import best_products, one_blas_thread
from distsgd.engine.events import Event, Progress
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.on_ray.driver import train_on_ray
from distsgd.on_ray.session import ray_session
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.virtual_training import Simulation
from distsgd.training.chaos import chaos_from

DATASET = "cifar10"
EFFORT = Effort(rounds=1, seconds=0.12, start=False)
SECONDS = 0.6
"""Of steps that count."""

QUIET_AFTER = 1.5
"""Seconds until Ray, which has started processes, computes no more than it usually does."""

HELD_OUT: dict[str, list[dict[str, Any]]] = {
    "linear": [
        {"workers": 0, "batch_size": 512},
        {"workers": 1, "batch_size": 256},
        {"workers": 2, "batch_size": 256},
        {"workers": 2, "batch_size": 256, "consistency": "ssp"},
        {"workers": 2, "batch_size": 512, "consistency": "asp"},
        {"workers": 3, "batch_size": 512},
        {"workers": 2, "batch_size": 256, "compress": "topk:0.01"},
    ],
    "mlp:100": [
        {"workers": 2, "batch_size": 512},
        {"workers": 2, "batch_size": 256, "consistency": "local"},
        {"workers": 2, "batch_size": 256, "consistency": "asp", "channel": "tcp"},
    ],
}


def measured(model: str, settings: dict[str, Any]) -> float:
    """Images a second of a training on Ray, or in this process."""
    config = TrainConfig(dataset=DATASET, model=model, epochs=100_000, log_every=10, **settings)
    job = make_job(config, open_dataset(DATASET), best_products())
    seen: list[Progress] = []
    quiet = QUIET_AFTER if config.workers else 0.3

    def over() -> bool:
        counted = [one for one in seen if one.seconds >= quiet]
        return len(counted) > 1 and counted[-1].seconds - counted[0].seconds >= SECONDS

    for event in steps(job, config, over):
        if isinstance(event, Progress):
            seen.append(event)
    counted = [one for one in seen if one.seconds >= quiet]
    first, last = counted[0], counted[-1]
    return (last.examples_seen - first.examples_seen) / (last.seconds - first.seconds)


def steps(job: Job, config: TrainConfig, over: Callable[[], bool]) -> Iterator[Event]:
    """The events of a training."""
    start = Snapshot(0, first_weights(config, job), {})
    with one_blas_thread():
        if config.workers:
            yield from train_on_ray(job, start, config.workers, over, config.channel)
        else:
            yield from train_inline(job, start, over)


def merged(machines: list[Machine]) -> Machine:
    """The medians of the trials of several rounds, of all."""
    values: dict[str, list[Trial]] = defaultdict(list)
    for machine in machines:
        for name, trial in machine.trials.items():
            values[name].append(trial)
    trials = {
        name: trial_of([one.value for one in found], [one.details for one in found])
        for name, found in values.items()
    }
    return replace(machines[-1], trials=trials, rounds=len(machines))


def rates(models: list[str], rounds: int, keep: Path | None) -> None:
    """The first bar."""
    kept: list[dict[str, Any]] = json.loads(keep.read_text()) if keep and keep.exists() else []
    with ray_session(cpus=4):
        for _ in range(rounds):
            for model in models:
                began = time.time()
                machine = measure_machine(TrainConfig(dataset=DATASET, model=model), EFFORT)
                there = time.time()
                found = [measured(model, dict(one)) for one in HELD_OUT[model]]
                print(
                    f"{model}: {there - began:.0f} s of trials, {time.time() - there:.0f} s of "
                    "trainings", flush=True,
                )  # fmt: skip
                machine = replace(machine, bandwidth=1e30)
                kept.append({"model": model, "machine": asdict(machine), "found": found})
                if keep:
                    keep.write_text(json.dumps(kept))
    table = Table("model", "setting", "measured", "predicted", "ratio", "doubt", "rounds")
    within = total = 0
    for model, settings in HELD_OUT.items():
        those = [one for one in kept if one["model"] == model]
        if not those:
            continue
        machine = merged([_machine(one["machine"]) for one in those])
        predictor = Predictor(machine)
        for number, setting in enumerate(settings):
            real = median(one["found"][number] for one in those)
            rate = predictor.rate(Setting(**setting))
            ratio = rate.images_per_second / real
            within, total = within + (abs(ratio - 1) <= 0.15), total + 1
            said = " ".join(f"{value}" for value in setting.values())
            table.row(
                model, said, f"{real:,.0f}", f"{rate.images_per_second:,.0f}", f"{ratio:.2f}",
                f"{rate.doubt:.0%}", len(those),
            )  # fmt: skip
    print(f"{within} of {total} within 15 %")


def _machine(content: dict[str, Any]) -> Machine:
    trials = {name: Trial(**one) for name, one in content["trials"].items()}
    return Machine(**{**content, "trials": trials})


POLICIES = ("bsp", "ssp", "asp", "local")
RECIPE = {"schedule": "constant", "learning_rate": 0.0004, "epochs": 200}
TARGET, MOST_SECONDS = 1.85, 6.0
DELAY = 0.005


@dataclass(frozen=True)
class Scenario:
    """A situation in which one policy is the best.

    Attributes:
        settings: of the training.
        busy: whether another program computes all the time.
        slow: how many times slower than the other the first worker is.
        delay: seconds by which every push is late.
    """

    settings: dict[str, Any]
    busy: bool = False
    slow: float = 1.0
    delay: float = 0.0


SCENARIOS = {
    "plain": Scenario({"workers": 2, "batch_size": 256}),
    "small minibatch": Scenario({"workers": 2, "batch_size": 64}),
    "slow link": Scenario({"workers": 2, "batch_size": 256, "channel": "shm"}, delay=DELAY),
    "more workers than cores": Scenario({"workers": 4, "batch_size": 256}),
    "busy neighbour": Scenario({"workers": 2, "batch_size": 256}, busy=True),
    "slow worker": Scenario({"workers": 2, "batch_size": 256}, slow=4.0),
}
"""Slow links and slow workers are made: by `--chaos delay`, and by stopping a process for three
quarters of the time."""


def settings_of(scenario: Scenario, policy: str) -> TrainConfig:
    """All settings of a scenario's training by a policy."""
    rounds = 2 if policy == "local" else 16  # of which a record of the metrics is made
    return TrainConfig(
        dataset=DATASET, consistency=policy, log_every=rounds, checkpoint_seconds=0,
        **RECIPE, **scenario.settings,
    )  # fmt: skip


def seconds_to_target(scenario: Scenario, policy: str, folder: Path) -> float:
    """Seconds of steps until the target, in a training on Ray."""
    config = settings_of(scenario, policy)
    job = make_job(config, open_dataset(DATASET), best_products())
    if scenario.delay:
        chaos = chaos_from(f"delay:p=1:for={scenario.delay * 1000:g}ms", 0, config.workers)
        job = replace(job, chaos=chaos, tally=str(folder / "tally"))
    last = [Progress(0, 0, 9.0, 0.0, 0.0, 0, 0.0)]
    slowed = Slowed(scenario.slow)
    try:
        for event in steps(job, config, lambda: _over(last[0])):
            if isinstance(event, Progress) and not _over(last[0]):
                last[0] = event
                slowed.begin()
    finally:
        slowed.end()
    found = last[0]
    return found.seconds if found.loss <= TARGET else float("inf")


def _over(last: Progress) -> bool:
    return last.loss <= TARGET or last.seconds > MOST_SECONDS


class Slowed:
    """Stops the first worker of the latest training most of the time, so that it is slow.

    Args:
        factor: how many times slower it becomes; 1 for no change.
    """

    def __init__(self, factor: float) -> None:
        self._factor, self._over = factor, threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Idempotent."""
        if self._factor > 1 and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(_workers()[0],))
            self._thread.start()

    def end(self) -> None:
        """Leave it running."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, pid: int) -> None:
        slice_seconds = 0.002
        with suppress(ProcessLookupError):
            while not self._over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(slice_seconds * (self._factor - 1))
                os.kill(pid, signal.SIGCONT)
                time.sleep(slice_seconds)


def _workers() -> list[int]:
    """The processes of workers of this script's Ray, the first first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::WorkerProcess"):
                environment = (folder / "environ").read_bytes()
                if f"{MARK}={os.getpid()}".encode() in environment:
                    found.append(int(folder.name))
    return sorted(found)


MARK = "ADVICE_BARS"
"""In the environment of this script and of the Ray that it starts."""


def updates_to_target(scenario: Scenario, policy: str) -> int | None:
    """Updates until the same target on the virtual clock."""
    config = settings_of(scenario, policy)
    job = make_job(config, open_dataset(DATASET), best_products())
    start = Snapshot(0, first_weights(config, job), {})
    slow = ((1, scenario.slow),) if scenario.slow > 1 else ()
    fleet = Fleet(workers=config.workers, slow=slow, latency=scenario.delay / 2)
    with one_blas_thread():
        for event in Simulation(job, start, fleet, 0).events(lambda: False):
            if isinstance(event, Progress) and event.loss <= TARGET:
                return event.step
    return None


def policies(names: list[str], rounds: int, keep: Path | None) -> None:
    """The second bar."""
    kept: list[dict[str, Any]] = json.loads(keep.read_text()) if keep and keep.exists() else []
    os.environ[MARK] = str(os.getpid())
    with tempfile.TemporaryDirectory() as folder, ray_session(cpus=6):
        for _ in range(rounds):
            usual: Machine | None = None
            for name in names:
                scenario = SCENARIOS[name]
                with busy_loop() if scenario.busy else nullcontext():
                    if scenario.busy or usual is None:
                        machine = measure_machine(TrainConfig(dataset=DATASET), EFFORT)
                        usual = usual if scenario.busy else machine
                    else:
                        machine = usual
                    found = {p: seconds_to_target(scenario, p, Path(folder)) for p in POLICIES}
                print(f"{name}: {found}", flush=True)
                content = asdict(replace(machine, bandwidth=1e30))
                kept.append({"scenario": name, "machine": content, "found": found})
                if keep:
                    keep.write_text(json.dumps(kept))
    table = Table("scenario", *(f"{p}: s, predicted" for p in POLICIES), "best", "predicted")
    right = 0
    for name, scenario in SCENARIOS.items():
        those = [one for one in kept if one["scenario"] == name]
        if not those:
            continue
        machine = merged([_machine(one["machine"]) for one in those])
        if scenario.delay:
            machine = replace(machine, latency=scenario.delay / 2)
        real = {p: median(one["found"][p] for one in those) for p in POLICIES}
        predicted = {p: _predicted(machine, scenario, p) for p in POLICIES}
        best, guess = min(real, key=real.__getitem__), min(predicted, key=predicted.__getitem__)
        right += best == guess
        table.row(name, *(f"{real[p]:.2f}, {predicted[p]:.2f}" for p in POLICIES), best, guess)
    print(f"{right} predicted rightly")


def _predicted(machine: Machine, scenario: Scenario, policy: str) -> float:
    updates = updates_to_target(scenario, policy)
    if updates is None:
        return float("inf")
    # A channel that is delayed has no teams.
    slow = (scenario.slow,) if scenario.slow > 1 else ()
    setting = Setting(consistency=policy, slow=slow, **scenario.settings)
    return updates * Predictor(machine).rate(setting).update_seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bar", choices=("rates", "policies"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    print_environment()
    if given.bar == "rates":
        rates(given.names or list(HELD_OUT), given.rounds, given.keep)
    else:
        policies(given.names or list(SCENARIOS), given.rounds, given.keep)
