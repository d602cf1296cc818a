"""Measures a machine: the trials, in interleaved rounds, and the start of Ray."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distsgd.advice.machine import Machine, trial_of
from distsgd.bench.environment import busy_cores, environment
from distsgd.bench.processes import Finished, parse_results, run_process
from distsgd.bench.startup import our_start
from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.data.system import python_module
from distsgd.engine.blas import best_products, blas_kernel
from distsgd.errors import RuntimeFailure

__all__ = ["CODECS", "LOCAL_STEPS", "Effort", "measure_machine", "trials_for"]

CODECS = ("fp16", "topk:0.01", "onebit")
LOCAL_STEPS = 8
_FEW, _SOME, _MANY = 1, 4, 16
"""Slots that each worker of a trial has."""

_TIMES_CROWDED = 3
"""A team of more members than cores is measured longer: it takes a while until some rest."""

_MOST_WORKERS = 8
_FLOPS = 4e9
_LIMIT = 60.0
_START_SECONDS = 5.0
"""What a start of Ray is taken for if it is not measured."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: of all trials.
        seconds: of each in a round.
        start: whether to measure the start of Ray.
    """

    rounds: int = 2
    seconds: float = 0.2
    start: bool = True


QUICK, _USUAL = Effort(rounds=1, seconds=0.1, start=False), Effort()


def trials_for(cores: int, slot_size: int, examples: int) -> list[dict[str, Any]]:
    """What `distsgd.advice.trials` is to measure.

    Names end with the examples of a minibatch::

        kernel K B    a lease of B examples, by each of K processes at once
        inline B      an update with workers=0
        team K B      an update by a team of K; bsp
        turns K B     the same; asp
        local K B     a round of local steps by a team of K
        shm K B       an update through the server; bsp. Likewise tcp K B
        shm-ahead K B the same with ssp
        shm-CODEC K B the same with compressed gradients; bsp
        codec NAME    to encode a gradient

    Args:
        cores: of the machine.
        slot_size: examples of a slot.
        examples: of the training set: no minibatch is larger.
    """
    pair = min(2, cores)
    most = min(cores, _MOST_WORKERS)
    runs: list[dict[str, Any]] = [{"name": "memory", "kind": "memory"}]

    def add(name: str, kind: str, batch: int, **more: Any) -> None:
        if batch <= examples and (full := f"{name} {batch}") not in [run["name"] for run in runs]:
            runs.append({"name": full, "kind": kind, "batch_size": batch, **more})

    def fleet(name: str, workers: int, slots: int, channel: str, **more: Any) -> None:
        batch = workers * slots * slot_size
        add(f"{name} {workers}", "fleet", batch, workers=workers, channel=channel, **more)

    for processes in sorted({1, pair, most}):
        for slots in (_FEW, 2 * _SOME):
            more = {"slots": slots, "processes": processes}
            add(f"kernel {processes}", "kernel", slots * slot_size, **more)
    for slots in (_FEW, _SOME, _MANY):
        add("inline", "inline", slots * slot_size, workers=0)
        for workers in sorted({1, pair, most}):
            if workers > 1 or slots != _SOME:
                fleet("team", workers, slots, "team")
    for slots in (_FEW, 2 * _SOME):
        fleet("turns", pair, slots, "team", consistency="asp")
        fleet("local", pair, slots, "team", consistency="local", local_steps=LOCAL_STEPS)
    fleet("team", cores + 1, _SOME, "team", times=_TIMES_CROWDED)
    for channel in ("shm", "tcp"):
        fleet(channel, 1, _FEW, channel)
        for slots in (_FEW, 2 * _SOME):
            fleet(channel, pair, slots, channel)
        fleet(f"{channel}-ahead", pair, _SOME, channel, consistency="ssp")
    for name in CODECS:
        for slots in (_FEW, _SOME):
            fleet(f"shm-{name}", pair, slots, "shm", compress=name)
    runs += [
        {"name": f"codec {name}", "kind": "codec", "workers": 2, "compress": name}
        for name in CODECS
    ]
    return runs


def measure_machine(
    config: TrainConfig, effort: Effort = _USUAL, tell: Callable[[str], None] = lambda _: None
) -> Machine:
    """Measure this machine with the data, the model, the loss and the slots of some settings.

    Args:
        config: the settings.
        effort: how long.
        tell: called with messages about progress.

    Raises:
        RuntimeFailure: nothing could be measured.
    """
    dataset = open_dataset(config.dataset)
    job = make_job(config, dataset, best_products())
    cores = len(os.sched_getaffinity(0))
    trials = trials_for(cores, config.slot_size, len(dataset.train))
    for run in trials:
        if run["kind"] != "memory":
            batch = run.get("batch_size", config.slot_size)
            every = int(_FLOPS / (4 * job.parameters * batch))
            run.update(
                model=config.model, loss=config.loss, slot_size=config.slot_size,
                log_every=min(20, max(1, every // run.get("local_steps", 1))),
            )  # fmt: skip
    rounds = [trials[:: -1 if number % 2 else 1] for number in range(effort.rounds)]
    others = busy_cores()
    tell(f"measuring {len(trials)} short trainings, {effort.rounds} times each")
    values, details, why = _run(config.dataset, effort.seconds, [r for rs in rounds for r in rs])
    if "inline" not in {name.split()[0] for name in values}:
        raise RuntimeFailure(f"the machine could not be measured: {why or 'no trial came back'}")
    start = _START_SECONDS
    if effort.start:
        tell("measuring the start of Ray")
        start = our_start(config.dataset).wall
    known = environment()
    return Machine(
        cores=cores,
        name=known.get("cpu", ""),
        kernel=blas_kernel(),
        model=config.model,
        loss=config.loss,
        slot_size=config.slot_size,
        examples=len(dataset.train),
        parameters=job.parameters,
        vector_bytes=job.vector_bytes,
        trials={name: trial_of(found, details[name]) for name, found in values.items()},
        start_seconds=start,
        rounds=effort.rounds,
        others=others,
        dataset=config.dataset,
    )


def _run(
    dataset: str, seconds: float, runs: Sequence[dict[str, Any]]
) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]], str]:
    """Run the trials in a process of their own; values and details by name, and a complaint."""
    task = json.dumps({"dataset": dataset, "seconds": seconds, "runs": list(runs)})
    finished: Finished = run_process(
        python_module("distsgd.advice.trials", task), _LIMIT + len(runs) * (4 * seconds + 1)
    )
    values: dict[str, list[float]] = defaultdict(list)
    details: dict[str, list[dict[str, float]]] = defaultdict(list)
    why = finished.complaint
    for said in parse_results(finished.output):
        if "error" in said:
            why = said["error"]
            continue
        values[said["name"]].append(said["value"])
        details[said["name"]].append(said["details"])
    return values, details, why
