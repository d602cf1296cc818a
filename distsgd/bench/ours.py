"""Ours, measured: throughput of the steps, without start-up. A process of its own; see `child`.

The steps are those of `distsgd train`, driven by the same runtimes; nobody evaluates, writes a
journal or a checkpoint meanwhile, as none of the peers does. With the word "whole", all of
`distsgd train` is measured, from the first step to the result. With "busy", another program
computes without end on the same machine.
"""

from __future__ import annotations

import gc
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from distsgd.bench.environment import busy_cores, check_kernel
from distsgd.bench.processes import (
    WARM_UP,
    Measured,
    Task,
    busy_loop,
    serve,
    task_from_arguments,
)
from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import best_products, one_blas_thread
from distsgd.engine.events import Connected, Ended, Progress
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RuntimeFailure
from distsgd.training.preparation import train_with
from distsgd.training.results import Reporter

__all__ = ["WORDS", "Window", "main", "measure"]

_EPOCHS = 100_000
"""More than there is time for."""

_WHOLE_EPOCHS = 20
"""Of a whole training, for each second: its end must not count for much."""

WORDS = ("name", "kernel", "whole", "busy")
"""What a run says beside settings of a training."""

_SETTLED, _PATIENCE = 0.2, 5.0
"""Busy cores of a Ray that has started, and seconds to wait for that."""


class Window:
    """Images a second between two reports of progress: the first after a warm-up, and the last.

    Args:
        seconds: how long the window is open.
    """

    def __init__(self, seconds: float) -> None:
        self._warm_up, self._until = min(WARM_UP, seconds), min(WARM_UP, seconds) + seconds
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def add(self, seconds: float, images: int) -> None:
        """Report the images and the seconds of steps since the start."""
        if self._first is None and seconds >= self._warm_up:
            self._first = (seconds, images)
        self._last = (seconds, images)

    def over(self) -> bool:
        """Whether it has been open for long enough."""
        return self._last[0] >= self._until

    def rate(self) -> float:
        """Images a second.

        Raises:
            RuntimeFailure: there was too little to see.
        """
        if self._first is None or self._last[0] <= self._first[0]:
            raise RuntimeFailure("training ended before it could be measured")
        spent, images = (b - a for a, b in zip(self._first, self._last, strict=True))
        return images / spent


def measure(task: Task, run: dict[str, Any]) -> Measured:
    """Measure one form of ours."""
    check_kernel(run["kernel"])
    settings = {key: value for key, value in run.items() if key not in WORDS}
    with busy_loop() if run.get("busy") else nullcontext():
        if run.get("whole"):
            return _whole(task, settings)
        config = TrainConfig(dataset=task.dataset, epochs=_EPOCHS, **settings)
        job = make_job(config, open_dataset(config.dataset), best_products())
        with one_blas_thread():
            return _steps(job, config, Window(task.seconds))


def _steps(job: Job, config: TrainConfig, window: Window) -> Measured:
    first = first_weights(config, job)
    start, details = Snapshot(0, first, {}), dict[str, Any]()
    if config.workers == 0:
        from distsgd.engine.inline import train_inline

        events = train_inline(job, start, window.over)
    else:
        from distsgd.on_ray.driver import train_on_ray

        events = train_on_ray(job, start, config.workers, window.over, config.channel)
    for event in events:
        if isinstance(event, Connected):
            details["channel"] = "+".join(sorted(set(event.channels)))
        elif isinstance(event, Progress):
            window.add(event.seconds, event.examples_seen)
        elif isinstance(event, Ended):
            busy = event.statistics.busy_seconds / (event.seconds or 1.0)
            details.update({"server_busy": busy} if busy else {})
    return Measured(window.rate(), details)


def _whole(task: Task, settings: dict[str, Any]) -> Measured:
    """As the user runs it, for some epochs; the time is that of the clock, after start-up.

    The clock of the steps would not do: it stands still while one process evaluates, but runs on
    while workers compute beside the evaluation.
    """
    epochs = max(1, round(_WHOLE_EPOCHS * task.seconds))
    config = TrainConfig(dataset=task.dataset, epochs=epochs, **settings)
    with tempfile.TemporaryDirectory() as folder:
        result = train_with(config, Path(folder) / "run", Reporter())
    busy = result.server_busy_share
    details = {"channel": result.channel, **({"server_busy": busy} if busy else {})}
    spent = result.wall_seconds - result.startup_seconds
    return Measured(result.step_examples / spent, details)


def main() -> None:
    """Measure the runs of a task, in one Ray session if any needs one."""
    task = task_from_arguments()
    workers = max(run["workers"] for run in task.runs)
    gc.freeze()  # as the command line does
    if workers == 0:
        session: Any = nullcontext()
    else:
        from distsgd.on_ray.session import ray_session

        session = ray_session(cpus=workers + 1)
    with session:
        if workers:
            _settle()
        serve(task, measure)


def _settle() -> None:
    """Wait while Ray starts what it starts in the background, or somebody else computes."""
    until = perf_counter() + _PATIENCE
    while busy_cores() > _SETTLED and perf_counter() < until:
        pass


if __name__ == "__main__":
    main()
