"""Everything that reads a run, in loops beside its training: no false alarm, no refused resume.

    python scripts/live_runs.py [MINUTES=10] [--seed SEED] [--workers SHARE]

One training after the other, each with other settings (policy, compression, journal, checkpoints),
is stopped at random moments, by Ctrl-C or SIGKILL, and resumed until its half minute is over. Six
processes meanwhile do nothing but `audit`, `replay`, `evaluate`, `runs show`, `runs list` and ask
for its status. Whatever one of them says is wrong with the run is a false alarm; a resume that is
refused, since the run "is running", is one too. Exit code 1 if there is any. SHARE of the trainings
have two workers on Ray.
"""

from __future__ import annotations

import argparse
import json
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

SECONDS, LONGEST = 30.0, 100_000
"""Of one training with all its resumes; epochs, more than it can do in that time."""


def command(*arguments: str) -> None:
    """Run a command that reads runs."""
    found = subprocess.run(
        [sys.executable, "-m", "distsgd", *arguments, "--json"], capture_output=True, text=True
    )
    if found.returncode:
        raise DistsgdError(found.stderr.strip(), "")
    for row in json.loads(found.stdout).get("runs", ()):
        if row["dataset"] is None:
            raise DistsgdError(f"{row['run']} is listed without its settings", "")


LOOKS: dict[str, Callable[[Path], Any]] = {
    "audit": audit,
    "replay": replay,
    "evaluate": evaluate,
    "runs show": lambda run: command("runs", "show", str(run)),
    "runs list": lambda run: command("runs", "list"),
    "status": lambda run: RunFolder(run).status(),
}
CHOICES = {
    "journal": ("keep", "keep", "bounded"),
    "consistency": ("bsp", "bsp", "ssp", "asp", "local"),
    "keep_checkpoints": (None, "2", "5"),
    "compress": ("none", "none", "fp16", "topk:0.01", "onebit"),
}


def look(name: str, pointer: Path, told: Any) -> None:
    """Look again and again at the run that the file names; send the number of looks, and faults."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    looks = 0
    while not told.poll():
        run = Path(pointer.read_text())
        try:
            LOOKS[name](run)
            looks += 1
        except DistsgdError as error:
            told.send(f"{run.name}: {error}")
    told.send(looks)


def begin(command: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a command of distsgd, which takes Ctrl-C however this script was started."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "distsgd", command, *arguments],
            stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def settings(random: Random) -> list[str]:
    """Some settings that go together."""
    chosen = {name: random.choice(values) for name, values in CHOICES.items()}
    if chosen["compress"] != "none" and chosen["journal"] == "bounded":
        chosen["compress"] = "none"
    pairs = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    return [part for pair in pairs for part in ("--set", pair)]


def train_and_resume(random: Random, run: Path, workers: int, pointer: Path) -> Counter[str]:
    """One training, stopped and resumed until its time is over; counts what happened."""
    counted, log = Counter[str](), run.with_suffix(".log")
    end = time.monotonic() + SECONDS * (1 + bool(workers))
    chosen = settings(random)
    print(run.name, "workers", workers, *chosen, flush=True)
    arguments = ["--dataset", "sample", "--workers", str(workers), "--epochs", str(LONGEST)]
    training = begin("train", *arguments, "--run-dir", str(run), *chosen, log=log)
    while not checkpoint_versions(run / "checkpoints"):
        if training.poll() is not None:
            counted["failed"] += 1
            print(log.read_text()[-500:], file=sys.stderr)
            return counted
    beside = pointer.with_suffix(".new")
    beside.write_text(str(run))
    beside.replace(pointer)
    while True:
        try:
            code = training.wait(random.uniform(0.5, 6.0))
            if code not in (0, 130, -signal.SIGKILL):
                refused = "is running" in log.read_text()
                counted["refused" if refused else "failed"] += 1
                print(f"{run.name}: exit code {code}\n{log.read_text()[-500:]}", file=sys.stderr)
                return counted
        except subprocess.TimeoutExpired:
            way = random.choice([signal.SIGINT, signal.SIGKILL])
            os.kill(training.pid, way)
            training.wait()
            counted[way.name] += 1
        if time.monotonic() > end:
            return counted
        counted["resumes"] += 1
        training = begin("resume", str(run), log=log)


def main() -> None:
    """Train and look for so many minutes, and show what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("minutes", nargs="?", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=float, default=0.25, metavar="SHARE")
    options = parser.parse_args()
    random, counted, number = Random(options.seed), Counter[str](), 0
    looks: dict[str, int] = {}
    alarms: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTSGD_HOME"] = folder
        pointer, spawn = Path(folder) / "which", multiprocessing.get_context("spawn")
        ends, end = {}, time.monotonic() + options.minutes * 60
        while time.monotonic() < end:
            workers = 2 if random.random() < options.workers else 0
            run = Path(folder) / "runs" / f"run{number}"
            counted += train_and_resume(random, run, workers, pointer) if ends else Counter()
            if not ends:  # the first training is for the readers to have something to read
                pointer.write_text(str(run))
                subprocess.run(
                    [sys.executable, "-m", "distsgd", "train", "--dataset", "sample", "--workers",
                     "0", "--epochs", "2", "--run-dir", str(run)],
                    check=True, capture_output=True,
                )  # fmt: skip
                for name in LOOKS:
                    here, there = spawn.Pipe()
                    process = spawn.Process(target=look, args=(name, pointer, there))
                    process.start()
                    ends[name] = (here, process)
            number += 1
        for name, (here, process) in ends.items():
            here.send("enough")
            alarms[name] = []
            while isinstance(word := here.recv(), str):
                alarms[name].append(word)
            looks[name] = word
            process.join()
    print(f"\n{'':10} {'looks':>8} {'false alarms':>12}")
    for name, count in looks.items():
        print(f"{name:10} {count:8} {len(alarms[name]):12}", *alarms[name][:3], sep="\n    ")
    print(json.dumps(counted))
    wrong = counted["refused"] + counted["failed"] + sum(map(len, alarms.values()))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
