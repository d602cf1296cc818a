"""Processes that are measured, or measure: started one at a time, and ended with all they start."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from distsgd.data.system import wait_for_exit, whole_environment

__all__ = ["ONE_THREAD", "Finished", "run_process"]

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
) -> Finished:
    """Run a command to its end.

    Args:
        command: what to run. Its stdin stays open, and closes when this process ends.
        limit: seconds after which it is ended, with its process group.
        environment: variables besides this process's own and `ONE_THREAD`.
        leave: seconds that it gets to end by itself, once it is asked to.
    """
    variables = whole_environment(**ONE_THREAD, **(environment or {}))
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
