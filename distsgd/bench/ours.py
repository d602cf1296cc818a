"""Ours, measured: throughput of the steps, without start-up. A process of its own; see `child`.

The steps are those of `distsgd train`, driven by the same runtimes; nobody evaluates, writes a
journal or a checkpoint meanwhile, as none of the peers does. With the setting "whole", all of
`distsgd train` is measured.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from distsgd.bench.processes import WARM_UP, Measured, Task, serve, task_from_arguments
from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.events import Connected, Ended, Progress
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import RuntimeFailure
from distsgd.training.preparation import train_with
from distsgd.training.results import Reporter

__all__ = ["Window", "main", "measure"]

_EPOCHS = 100_000
"""More than there is time for."""


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
    settings = {key: value for key, value in run.items() if key not in ("name", "whole")}
    if run.get("whole"):
        return _whole(task, settings)
    config = TrainConfig(dataset=task.dataset, epochs=_EPOCHS, **settings)
    job = make_job(config, open_dataset(config.dataset))
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
    """As the user runs it, for some epochs."""
    config = TrainConfig(dataset=task.dataset, epochs=max(1, round(5 * task.seconds)), **settings)
    with tempfile.TemporaryDirectory() as folder:
        result = train_with(config, Path(folder) / "run", Reporter())
    busy = result.server_busy_share
    details = {"channel": result.channel, **({"server_busy": busy} if busy else {})}
    return Measured(result.examples_per_second, details)


def main() -> None:
    """Measure the runs of a task, in one Ray session if any needs one."""
    task = task_from_arguments()
    workers = max(run["workers"] for run in task.runs)
    if workers == 0:
        session: Any = nullcontext()
    else:
        from distsgd.on_ray.session import ray_session

        session = ray_session(cpus=workers + 1)
    with session:
        serve(task, measure)


if __name__ == "__main__":
    main()
