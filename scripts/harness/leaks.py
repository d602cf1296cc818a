"""Train many times in one process, and look at what is left and whether memory grows.

`inline` runs train without Ray, `shared` ones within one session of Ray, `own` ones start a Ray
each; `cli` ones are commands, every fourth of them on Ray. Every second run on Ray is disturbed:
SIGKILL of a worker or a server, or SIGSTOP of a worker; of commands, SIGKILL of the command. The
table has a row for each kind: processes, threads, file descriptors, sockets, files of /dev/shm and
temporary folders that it leaves (none may be left), and the memory of this process (RSS) after a
fifth of the runs and after all of them, which may grow by 5 %. Takes five minutes on two cores.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from distsgd.engine.events import Progress
from distsgd.training import train
from distsgd.training.results import Reporter
from harness.processes import descendants, end, start
from harness.tables import Table

DISTURBANCES = (
    ("ray::WorkerProc", signal.SIGKILL),
    ("ray::ServerProc", signal.SIGKILL),
    ("ray::WorkerProc", signal.SIGSTOP),
)
USUAL = {"inline": 100, "shared": 80, "own": 20, "cli": 20}
MOST_GROWTH = 1.05


def inventory() -> dict[str, int]:
    """How many things there are that a training could leave."""
    gc.collect()
    return {
        "processes": len(descendants(os.getpid())),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "sockets": Path("/proc/net/unix").read_text().count("@distsgd-"),
        "shm": len(list(Path("/dev/shm").iterdir())),
        "folders": len(list(Path(tempfile.gettempdir()).glob("*distsgd-*"))),
    }


def left_since(before: dict[str, int]) -> dict[str, int]:
    """What there is beyond an earlier inventory, once all that is ending has ended."""
    until = time.monotonic() + 15
    while True:
        now = inventory()
        more = {name: now[name] - before[name] for name in now if now[name] > before[name]}
        if not more or time.monotonic() > until:
            return more
        time.sleep(0.2)


def memory() -> float:
    """RSS of this process, in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Disturbs(Reporter):
    """Sends one signal to one process of every second training."""

    def __init__(self, number: int) -> None:
        every = (*DISTURBANCES, None, None, None)
        self._disturbance = every[number % len(every)]
        self.disturbed = 0

    def progress(self, progress: Progress) -> None:
        if self._disturbance is None or progress.step < 5:
            return
        name, number = self._disturbance
        if found := descendants(os.getpid(), name):
            self._disturbance, self.disturbed = None, 1
            with suppress(ProcessLookupError):
                os.kill(found[0], number)


def train_by_command(number: int, run: Path) -> int:
    """A training by command line; every eighth, on Ray, is killed in its second epoch."""
    on_ray, killed = number % 4 == 0, number % 8 == 0
    process = start(
        "train", "--dataset", "sample", "--run-dir", run, "--workers", 2 if on_ray else 0,
        "--epochs", 100_000 if killed else 3, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    if killed:
        rows = iter(process.stdout.readline, "")
        next(row for row in rows if row.lstrip().startswith("2 "))
        end([process.pid])
    process.stdout.read()
    assert process.wait() == (-signal.SIGKILL if killed else 0)
    shutil.rmtree(run)
    return int(killed)


def train_once(kind: str, number: int, home: Path) -> int:
    """Train, and return whether the training was disturbed, as 0 or 1."""
    run = home / f"{kind}-{number}"
    if kind == "cli":
        return train_by_command(number, run)
    reporter, on_ray = Disturbs(number), kind != "inline"
    train(
        "sample", workers=2 if on_ray else 0, epochs=30 if on_ray else 3, run_dir=run,
        log_every=1, hang_seconds=1.5, keep_checkpoints=1, reporter=reporter,
    )  # fmt: skip
    shutil.rmtree(run)
    return reporter.disturbed


def train_often(kind: str, runs: int, home: Path, table: Table) -> bool:
    """Returns whether nothing is left and memory has not grown."""
    from distsgd.on_ray.session import ray_session

    for number in (3, 4):  # what is loaded once, and stays
        train_once(kind, number, home)
    before, began = inventory(), time.monotonic()
    early, disturbed, within, grown = 0.0, 0, before, dict[str, int]()
    with ray_session(cpus=4) if kind == "shared" else nullcontext():
        for number in range(runs):
            disturbed += train_once(kind, number, home)
            print(".", end="", file=sys.stderr, flush=True)
            if number == runs // 5:
                early, within = memory(), inventory()
        if kind == "shared":  # Ray keeps idle processes of its own, but no more for more runs
            grown = {f"{name} within": count for name, count in left_since(within).items()}
        late = memory()
    left = {**left_since(before), **grown}
    table.row(kind, runs, disturbed, left or "nothing", early, late, time.monotonic() - began)
    return not left and late < early * MOST_GROWTH


def arguments(parser: argparse.ArgumentParser) -> None:
    usual = " ".join(f"{kind}={runs}" for kind, runs in USUAL.items())
    parser.add_argument("kinds", nargs="*", metavar="KIND=RUNS", help=f"default: {usual}")


def main(given: argparse.Namespace) -> int:
    wanted = {kind: int(runs) for kind, _, runs in (text.partition("=") for text in given.kinds)}
    home = Path(tempfile.mkdtemp(prefix="leak-runs-"))
    table = Table(
        "runs", "number", "disturbed", "left", "MiB after a fifth", "MiB at the end", "seconds"
    )
    fine = [train_often(kind, runs, home, table) for kind, runs in (wanted or USUAL).items()]
    shutil.rmtree(home)
    return int(not all(fine))
