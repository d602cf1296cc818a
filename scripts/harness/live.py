"""Read a run in loops while it trains: no false alarm, and no resume that is refused.

One training after another, each with other settings (policy, compression, journal, checkpoints), is
stopped at random moments, by Ctrl-C or SIGKILL, and resumed until its half minute is over. Six
processes meanwhile do nothing but `audit`, `replay`, `evaluate`, `runs show`, `runs list`, and read
the status of the run. Any fault that they find is a false alarm; a resume that is refused because
the run "is running" is one too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from distsgd.errors import DistsgdError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import checkpoint_versions
from distsgd.runs.folder import RunFolder
from distsgd.training.evaluation import evaluate
from harness.processes import ENDLESS, Failure, result, start
from harness.tables import Table

SECONDS = 30.0
"""Of one training with all its resumes; twice as many on Ray."""


def list_runs() -> None:
    for row in result("runs", "list")["runs"]:
        if row["dataset"] is None:
            raise Failure(f"{row['run']} is listed without its settings")


READERS: dict[str, Callable[[Path], Any]] = {
    "audit": audit,
    "replay": replay,
    "evaluate": evaluate,
    "runs show": lambda run: result("runs", "show", run),
    "runs list": lambda run: list_runs(),
    "status": lambda run: RunFolder(run).status(),
}
CHOICES = {
    "journal": ("keep", "keep", "bounded"),
    "consistency": ("bsp", "bsp", "ssp", "asp", "local"),
    "keep_checkpoints": (None, "2", "5"),
    "compress": ("none", "none", "fp16", "topk:0.01", "onebit"),
}


def read_in_a_loop(name: str, pointer: Path, pipe: Any) -> None:
    """Read the run that the pointer names until the pipe says stop; send faults, and the count."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reads = 0
    while not pipe.poll():
        run = Path(pointer.read_text())
        try:
            READERS[name](run)
            reads += 1
        except (DistsgdError, Failure) as error:
            pipe.send(f"{run.name}: {error}")
    pipe.send(reads)


def start_in_session(command: str, *arguments: object, log: Path) -> subprocess.Popen[str]:
    """Start a command that takes Ctrl-C however this script was started."""
    with log.open("ab") as out:
        return start(
            command, *arguments, stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def settings(random: Random) -> list[str]:
    """Settings that go together."""
    chosen = {name: random.choice(values) for name, values in CHOICES.items()}
    if chosen["journal"] == "bounded":
        chosen["compress"] = "none"
    pairs = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    return [part for pair in pairs for part in ("--set", pair)]


def train_and_resume(random: Random, run: Path, workers: int, pointer: Path) -> Counter[str]:
    """One training, stopped and resumed until its time is over; counts what happened."""
    counted, log = Counter[str](), run.with_suffix(".log")
    until = time.monotonic() + SECONDS * (1 + bool(workers))
    chosen = settings(random)
    print(run.name, "workers", workers, *chosen, flush=True)
    arguments = ["--dataset", "sample", "--workers", workers, "--epochs", ENDLESS]
    training = start_in_session("train", *arguments, "--run-dir", run, *chosen, log=log)
    while not checkpoint_versions(run / "checkpoints"):
        if training.poll() is not None:
            counted["failed"] += 1
            print(log.read_text()[-500:], file=sys.stderr)
            return counted
        time.sleep(0.01)
    point_to(run, pointer)
    while True:
        try:
            code = training.wait(random.uniform(0.5, 6.0))
            if code not in (0, 130, -signal.SIGKILL):
                refused = "is running" in log.read_text()
                counted["refused" if refused else "failed"] += 1
                print(f"{run.name}: exit code {code}\n{log.read_text()[-500:]}", file=sys.stderr)
                return counted
        except subprocess.TimeoutExpired:
            how = random.choice([signal.SIGINT, signal.SIGKILL])
            training.send_signal(how)
            training.wait()
            counted[how.name] += 1
        if time.monotonic() > until:
            return counted
        counted["resumes"] += 1
        training = start_in_session("resume", run, log=log)


def point_to(run: Path, pointer: Path) -> None:
    """Make this the run that is read."""
    beside = pointer.with_suffix(".new")
    beside.write_text(str(run))
    beside.replace(pointer)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("minutes", nargs="?", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", type=float, default=0.25, metavar="SHARE",
                        help="of the trainings that have two workers on Ray")  # fmt: skip


def main(given: argparse.Namespace) -> int:
    random, counted, spawn = (
        Random(given.seed),
        Counter[str](),
        multiprocessing.get_context("spawn"),
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTSGD_HOME"] = folder
        pointer, first = Path(folder) / "pointer", Path(folder) / "runs" / "first"
        result("train", "--dataset", "sample", "--workers", 0, "--epochs", 2, "--run-dir", first)
        point_to(first, pointer)
        readers = {}
        for name in READERS:
            here, there = spawn.Pipe()
            process = spawn.Process(target=read_in_a_loop, args=(name, pointer, there))
            process.start()
            readers[name] = here, process
        until, number = time.monotonic() + given.minutes * 60, 0
        while time.monotonic() < until:
            workers = 2 if random.random() < given.ray else 0
            run = Path(folder) / "runs" / f"run{number}"
            counted += train_and_resume(random, run, workers, pointer)
            number += 1
        found = {name: stop_reader(*reader) for name, reader in readers.items()}
    table = Table("reader", "reads", "false alarms", "the first of them")
    for name, (reads, alarms) in found.items():
        table.row(name, reads, len(alarms), "; ".join(alarms[:3]))
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(counted.items())))
    alarms = sum(len(alarms) for _, alarms in found.values())
    return int(bool(counted["refused"] + counted["failed"] + alarms))


def stop_reader(pipe: Any, process: Any) -> tuple[int, list[str]]:
    """How often it has read the run, and the faults that it found."""
    pipe.send("stop")
    alarms = []
    while isinstance(message := pipe.recv(), str):
        alarms.append(message)
    process.join()
    return message, alarms
