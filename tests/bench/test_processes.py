"""Processes that are measured end, with what they started, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from support import PATIENCE, processes_with, wait_for

from distsgd.bench.benchmark import _take
from distsgd.bench.environment import Measurement
from distsgd.bench.processes import busy_loop, parse_results, run_process

SLEEP = "import time; time.sleep({})"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_output_and_the_last_complaint_are_kept() -> None:
    code = "import sys; print('one'); print('a', file=sys.stderr); sys.exit('b')"
    finished = run_process(python(code), 30)
    assert (finished.code, finished.output, finished.complaint) == (1, "one\n", "b")


def test_one_blas_thread() -> None:
    found = run_process(python("import os; print(os.environ['OMP_NUM_THREADS'])"), 30)
    assert found.output == "1\n"


def test_what_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    inner = SLEEP.format(2 * PATIENCE)
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    finished = run_process(python(code, str(tmp_path)), 1)
    assert finished.code is None
    wait_for(lambda: not processes_with(str(tmp_path)))


def test_a_measuring_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = "from distsgd.bench.processes import task_from_arguments as f; f(); print(flush=True); "
    task = json.dumps({"dataset": str(tmp_path), "seconds": 1, "runs": []})
    child = subprocess.Popen(
        python(code + SLEEP.format(2 * PATIENCE), task),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"\n" and child.poll() is None
    child.stdin.close()
    assert child.wait(PATIENCE) != 0
    child.stdout.close()


def test_a_busy_loop_ends_with_its_block_and_with_its_process(tmp_path: Path) -> None:
    with busy_loop():
        wait_for(lambda: busy_loops(os.getpid()))
        (loop,) = busy_loops(os.getpid())
        assert os.getsid(loop) == loop and os.getpriority(os.PRIO_PROCESS, loop) == os.nice(0)
    assert not busy_loops(os.getpid())
    code = "from distsgd.bench.processes import busy_loop; import time\n"
    code += f"with busy_loop(): print(flush=True); time.sleep({2 * PATIENCE})"
    parent = subprocess.Popen(python(code), stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"\n"
    wait_for(lambda: busy_loops(parent.pid))
    parent.kill()
    parent.communicate()
    wait_for(lambda: not busy_loops(parent.pid))


def busy_loops(parent: int) -> list[int]:
    """Those that say they belong to this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = entry.joinpath("cmdline").read_bytes()
            if b"while os.getppid()" in line and line.endswith(f"\0{parent}\0".encode()):
                found.append(int(entry.name))
    return found


def test_a_failure_is_a_row_and_not_an_end(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    task = {"dataset": str(tmp_path), "seconds": 1, "runs": [{"name": "numpy", "kernel": ""}]}
    module = "distsgd.bench.peers.numpy_loop"
    finished = run_process([sys.executable, "-m", module, json.dumps(task)], 30, environment)
    (said,) = parse_results(finished.output)
    assert "no dataset" in said["error"]
    measurement = Measurement(name="numpy")
    _take(measurement, said, finished, 0)
    assert measurement.median is None and "no dataset" in measurement.skipped
