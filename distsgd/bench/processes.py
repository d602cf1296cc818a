"""Processes that are measured or measure: run one at a time, and ended with all their children.

A measuring process reads a task, prints results, and ends with its parent.

It is run as ``python -m MODULE JSON``, with an object that has

    dataset   name or path
    seconds   how long to measure each run
    runs      objects with a name and the settings of a contender

and prints one line a run on stdout: RESULT and an object with name, value and details, or error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from distsgd.data.system import pause, wait_for_exit, whole_environment
from distsgd.engine.core_type import without_choice
from distsgd.errors import DistsgdError

__all__ = [
    "WARM_UP",
    "Finished",
    "Measured",
    "Task",
    "busy_loop",
    "parse_results",
    "rate",
    "run_process",
    "serve",
    "task_from_arguments",
]


ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "BLIS")}
"""One BLAS thread a process, in the environment: for ours as for all others."""


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        code: its exit code; negative if a signal ended it, None if it took too long.
        output: of stdout.
        complaint: the last line of stderr.
        seconds: from its start to its end.
    """

    code: int | None
    output: str
    complaint: str
    seconds: float


def run_process(
    command: Sequence[str],
    limit: float,
    environment: Mapping[str, str] | None = None,
    leave: float = 12.0,
    *,
    peer: bool = False,
) -> Finished:
    """Run a command to its end.

    Args:
        command: what to run. Its stdin stays open, and closes when this process ends.
        limit: seconds after which it is ended, with its process group.
        environment: variables besides this process's own and `ONE_THREAD`.
        leave: seconds that it gets to end by itself, once it is asked to.
        peer: whether it multiplies as for a user of its own: by the BLAS kernel that this processor
            gets without our choice.
    """
    variables = whole_environment(**ONE_THREAD)
    if peer:
        variables = without_choice(variables)
    variables.update(environment or {})
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = perf_counter()
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=output, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = wait_for_exit(process, limit)
            seconds = perf_counter() - began
        finally:
            _end(process, leave)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    complaints = [line.strip() for line in texts[1].splitlines() if line.strip()]
    return Finished(code, texts[0], complaints[-1] if complaints else "", seconds)


def _end(process: subprocess.Popen[bytes], leave: float) -> None:
    """End the process if it runs, and what it left in its group: by request, then by force."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        wait_for_exit(process, leave)
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


_MARK = "RESULT "
WARM_UP = 0.5
"""Seconds of steps before those that count."""

_SECONDS_TO_LEAVE = 15.0


@dataclass(frozen=True)
class Task:
    """The task of a measuring process.

    Attributes:
        dataset: name or path.
        seconds: how long to measure each run.
        runs: objects with a name and the settings of a contender.
    """

    dataset: str
    seconds: float
    runs: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """The result of one run.

    Attributes:
        value: in the contender's unit.
        details: what else there is to say.
    """

    value: float
    details: dict[str, Any]


def task_from_arguments() -> Task:
    """The task on this process's command line. From now on it ends when its parent does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    content = json.loads(sys.argv[1])
    return Task(content["dataset"], content["seconds"], content["runs"])


def _leave_with_parent() -> None:
    """The parent holds the other end of stdin, and says nothing."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    pause(_SECONDS_TO_LEAVE)
    os._exit(1)


def serve(task: Task, measure: Callable[[Task, dict[str, Any]], Measured]) -> None:
    """Measure every run of the task and say what was found; one that fails says why."""
    for run in task.runs:
        try:
            found = measure(task, run)
            said = {"name": run["name"], "value": found.value, "details": found.details}
        except DistsgdError as error:
            said = {"name": run["name"], "error": error.problem}
        except Exception as error:  # of a peer, of any kind: it is a row of the table
            said = {"name": run["name"], "error": f"{type(error).__name__}: {error}"}
        print(_MARK + json.dumps(said), flush=True)


def parse_results(output: str) -> list[dict[str, Any]]:
    """What was said by `serve`, among whatever else was printed."""
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    return [json.loads(line.removeprefix(_MARK)) for line in lines]


def rate(step: Callable[[], int], seconds: float) -> float:
    """Images a second of a training loop, after a warm-up.

    Args:
        step: makes one step, and returns how many images it used.
        seconds: how long to count.
    """
    until = perf_counter() + min(WARM_UP, seconds)
    while perf_counter() < until:
        step()
    images, began = 0, perf_counter()
    while (now := perf_counter()) < began + seconds:
        images += step()
    return images / (now - began)


_BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6):
        pass
"""


@contextmanager
def busy_loop() -> Iterator[None]:
    """Within it, a process that computes without end runs beside this one.

    It is as another program of the user would be: a session of its own, no other niceness, on
    whatever core the system gives it. It ends with this process, however that ends.
    """
    command = [sys.executable, "-I", "-S", "-c", _BUSY, str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()
