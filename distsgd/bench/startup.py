"""Whole processes, from their start to their end. A process of its own; see `child`."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsgd.bench.contenders import TARGET
from distsgd.bench.processes import (
    Finished,
    Measured,
    Task,
    run_process,
    serve,
    task_from_arguments,
)
from distsgd.data.system import python_module
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.session_guard import clear_session, mark_folder, session_mark

__all__ = ["as_it_comes", "measure"]

_LIMIT = 80.0
_LEAVE = 3.0
"""Seconds that a process gets to end; twice this is less than what this process itself gets."""

_EPOCHS, _LEARNING_RATE = 3, 0.03
"""What brings a minibatch of 512 to the target with something to spare."""

_RAY = "import ray; ray.init({}); ray.shutdown()"
_PRIVATE = {
    "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback address alone; see `ray_session`
}  # fmt: skip


def measure(task: Task, run: dict[str, Any]) -> Measured:
    """Seconds of the process that a run names."""
    ours = python_module("distsgd")
    python = [sys.executable, "-P", "-c"]
    train = [*ours, "train", "--dataset", task.dataset, "--workers", "2", "--json"]
    name = run["name"]
    if name == "import":
        return Measured(_seconds([*python, "import distsgd"]).seconds, {})
    if name == "help":
        return Measured(_seconds([*ours, "--help"]).seconds, {})
    if name == "ray":
        return _bare_ray([*python, _RAY.format("")])
    if name == "ray-light":
        return _bare_ray([*python, _RAY.format("include_dashboard=False")])
    if name == "train-1-epoch":
        return Measured(_train([*train, "--epochs", "1"])[0], {})
    if name == "accuracy":
        more = ["--batch-size", "512", "--set", f"learning_rate={_LEARNING_RATE}"]
        return _reached(*_train([*train, "--epochs", str(_EPOCHS), *more]))
    script = python_module("distsgd.bench.peers.torch_sgd", task.dataset)
    finished = _seconds([*script, str(_EPOCHS), str(_LEARNING_RATE)])
    return _reached(finished.seconds, float(finished.output))


def _seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    finished = run_process(command, _LIMIT, environment, _LEAVE)
    if finished.code != 0:
        why = finished.complaint or f"exit code {finished.code}"
        raise RuntimeFailure("it took too long" if finished.code is None else why)
    return finished


def _train(command: Sequence[str]) -> tuple[float, float]:
    """Seconds, and test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        finished = _seconds(command, {"DISTSGD_HOME": folder})
    return finished.seconds, json.loads(finished.output)["test_accuracy"]


def _reached(seconds: float, accuracy: float) -> Measured:
    if accuracy < TARGET:
        raise RuntimeFailure(f"it reached {accuracy:.1%} only".replace("%", " %"))
    return Measured(seconds, {"test_accuracy": accuracy})


def _bare_ray(command: Sequence[str]) -> Measured:
    with as_it_comes() as environment:
        return Measured(_seconds(command, environment).seconds, {})


@contextmanager
def as_it_comes() -> Iterator[dict[str, str]]:
    """The environment of a Ray as it comes, but for its privacy, and gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="distsgd-bare-", dir="/tmp"))
    os.close(mark_folder(folder))
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder)}
    try:
        yield {**_PRIVATE, **token, **session_mark(folder)}
    finally:
        clear_session(folder, _LEAVE)


if __name__ == "__main__":
    serve(task_from_arguments(), measure)
