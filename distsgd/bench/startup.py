"""Whole processes, from their start to their end. A process of its own; see `child`."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from distsgd.bench.contenders import TARGET
from distsgd.bench.processes import (
    Finished,
    Measured,
    Task,
    run_process,
    serve,
    task_from_arguments,
)
from distsgd.data.system import python_module, whole_environment
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.session_guard import clear_session, mark_folder, session_mark

__all__ = ["Started", "bare_start", "measure", "our_start"]

_LIMIT = 80.0
_LEAVE = 3.0
"""Seconds that a process gets to end; twice this is less than what this process itself gets."""

_EPOCHS, _LEARNING_RATE = 3, 0.03
"""What brings a minibatch of 512 to the target with something to spare."""

_RAY = "import ray; ray.init({}); ray.shutdown()"
_ACTORS = {"ray-1-actor": 1, "ray-3-actors": 3}
"""Contenders -> actors of a bare Ray."""

_PRIVATE = {
    "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback address alone; see `ray_session`
}  # fmt: skip

_MARK = "DISTSGD_STARTUP"

_SAY = "import os, time; say = lambda: os.write({}, b'%.6f\\n' % time.perf_counter())\n"
"""Says on a descriptor when the moment has come; the clock is that of the whole machine."""

_OURS = """
import sys
import distsgd.cli
from distsgd.training.results import Stages
end = Stages.end
def ended(self):
    if self._stage == "workers":
        say()
    end(self)
Stages.end = ended
sys.argv[0] = "distsgd"
from distsgd.cli.start import run_process
run_process()
"""

_BARE = """
import ray
ray.init(
    num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
    _node_ip_address="127.0.0.1",
)
class One:
    def call(self):
        return 1
ones = [ray.remote(One).options(num_cpus=0).remote() for _ in range({})]
ray.get([one.call.remote() for one in ones])
say()
ray.shutdown()
"""

_FIRST = ["train", "--workers", "2", "--epochs", "1", "--batch-size", "512", "--json"]


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
    if name == "first-step":
        return _measured(our_start(task.dataset))
    if name in _ACTORS:
        return _measured(bare_start(_ACTORS[name]))
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
    with _as_it_comes() as environment:
        return Measured(_seconds(command, environment).seconds, {})


@contextmanager
def _as_it_comes() -> Iterator[dict[str, str]]:
    """The environment of a Ray as it comes, but for its privacy, and gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="distsgd-bare-", dir="/tmp"))
    os.close(mark_folder(folder))
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder)}
    try:
        yield {**_PRIVATE, **token, **session_mark(folder)}
    finally:
        clear_session(folder, _LEAVE)


class Started(NamedTuple):
    """A start: its wall time and processor time in seconds, and how long each stage took."""

    wall: float
    processor: float
    stages: dict[str, float]


def _start(program: str, arguments: list[str], environment: dict[str, str]) -> Started:
    """Run a program that says when it has started."""
    mark = secrets.token_hex(8)
    read, write = os.pipe()
    command = [sys.executable, "-P", "-c", _SAY.format(write) + program, *arguments]
    variables = whole_environment(**environment, **{_MARK: mark})
    with tempfile.TemporaryFile() as output:
        began = perf_counter()
        process = subprocess.Popen(
            command, env=variables, pass_fds=[write], stdout=output, stderr=subprocess.DEVNULL
        )
        os.close(write)
        try:
            with os.fdopen(read) as said:
                moment = said.readline()
            spent = _processor_seconds(mark)
            process.wait(_LIMIT)
        finally:
            process.kill()
        if process.wait() != 0 or not moment:
            raise RuntimeFailure(f"a start failed with exit code {process.returncode}")
        output.seek(0)
        text = output.read()
    stages = json.loads(text)["startup_stages"] if text.lstrip().startswith(b"{") else {}
    return Started(float(moment) - began, spent, stages)


def _processor_seconds(mark: str) -> float:
    """Of all living processes with a mark in their environment, and of the children they reaped."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{_MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def our_start(dataset: str = "cifar10") -> Started:
    """The start of a training with two workers, until they have connected and steps begin."""
    with tempfile.TemporaryDirectory() as home:
        return _start(_OURS, [*_FIRST, "--dataset", dataset], {"DISTSGD_HOME": home})


def bare_start(actors: int) -> Started:
    """The start of a Ray as it comes, until each of some actors has answered a call."""
    with _as_it_comes() as environment:
        return _start(_BARE.format(actors), [], environment)


def _measured(started: Started) -> Measured:
    return Measured(started.wall, {"processor_seconds": started.processor, **started.stages})


if __name__ == "__main__":
    serve(task_from_arguments(), measure)
