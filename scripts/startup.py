"""Compare the start of `distsgd train` on a private Ray with that of a bare Ray.

    python scripts/startup.py [ROUNDS]

Ours is the command, from the start of its process until its workers have connected and steps begin.
Beside it, in the same settings but as Ray is: a process that imports Ray, calls `ray.init`, makes
one actor and waits for one call of it; and one with three actors, as many processes as ours has
(a server and two workers). All take turns, so that other work on the machine disturbs all alike.
The processor time is that of all processes together until then. Half a minute a round.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from harness.tables import print_environment

from distsgd.bench.startup import as_it_comes
from distsgd.data.system import whole_environment

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

_TRAIN = ["train", "--workers", "2", "--epochs", "1", "--batch-size", "512", "--json"]


class Started(NamedTuple):
    """A start: its wall time and processor time in seconds, and how long each stage took."""

    wall: float
    processor: float
    stages: dict[str, float]


def start(program: str, arguments: list[str], environment: dict[str, str]) -> Started:
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
        with os.fdopen(read) as said:
            moment = said.readline()
        spent = _processor_seconds(mark)
        if process.wait() != 0 or not moment:
            raise SystemExit(f"a start failed with exit code {process.returncode}")
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


def ours() -> Started:
    """The start of a training."""
    with tempfile.TemporaryDirectory() as home:
        return start(_OURS, _TRAIN, {"DISTSGD_HOME": home})


def bare(actors: int) -> Started:
    """The start of a Ray as it comes."""
    with as_it_comes() as environment:
        return start(_BARE.format(actors), [], environment)


def main(rounds: int) -> None:
    """Print the comparison."""
    print_environment()
    names = ["distsgd train", "bare Ray, 1 actor", "bare Ray, 3 actors"]
    found: dict[str, list[Started]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, one in zip(names, (ours(), bare(1), bare(3)), strict=True):
            found[name].append(one)
            print(f"{name:20} {one.wall:6.2f} s, {one.processor:6.2f} s of processor time",
                  file=sys.stderr)  # fmt: skip
    print(f"\nmedians of {rounds} rounds, seconds\n")
    print("| start | wall | ours over it | processor | ours over it |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        wall = statistics.median(one.wall for one in found[name])
        spent = statistics.median(one.processor for one in found[name])
        shares = [
            statistics.median(
                mine[which] / other[which]
                for mine, other in zip(found[names[0]], found[name], strict=True)
            )
            for which in (0, 1)
        ]
        print(f"| {name} | {wall:.2f} | {shares[0]:.2f} | {spent:.2f} | {shares[1]:.2f} |")
    print("\n| stage of ours | wall |\n| --- | --- |")
    for stage in found[names[0]][0].stages:
        seconds = statistics.median(one.stages[stage] for one in found[names[0]])
        print(f"| {stage} | {seconds:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
