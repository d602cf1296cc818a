"""What compression costs a resume and the recovery of a server, after how many updates.

    python scripts/compressed_resume.py [--updates N] [--dataset NAME] [--codecs none,onebit,...]
        [--no-servers]

For each codec a training in one process is killed (SIGKILL) after so many updates. Then come the
seconds in which a resume finds where to go on (run, dataset, checkpoint, residuals, journal) and
computes the updates after the checkpoint anew: all that it does beyond starting up. Beside them
stands how many updates those were, and the seconds from the start of `distsgd resume` to its first
step. Then a training with two workers loses its server (SIGKILL) after so many updates, and there
are the seconds to the next update that the driver hears of. Prints one table; with 36,000 updates,
five minutes a codec on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from recovery_times import KillsServers, processes

from distsgd.engine.blas import one_blas_thread
from distsgd.engine.events import Progress
from distsgd.proof.recovery import find_tail
from distsgd.proof.replayer import records_of
from distsgd.runs.opened_run import open_run
from distsgd.training import train

ENDLESS = 1_000_000


def updates_of(run: Path) -> int:
    """How many updates the metrics of a run tell of."""
    try:
        last = (run / "metrics.jsonl").read_bytes().splitlines()[-1]
        record = json.loads(last)
    except (OSError, IndexError, ValueError):
        return 0
    return int(record.get("step", record.get("version", 0)))


def killed_run(home: Path, codec: str, dataset: str, updates: int) -> Path:
    """A run whose process was killed after so many updates."""
    run = home / codec.replace(":", "-")
    command = [
        sys.executable, "-m", "distsgd", "train", "--dataset", dataset, "--workers", "0",
        "--epochs", str(ENDLESS), "--compress", codec, "--run-dir", str(run),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while updates_of(run) < updates:
            if process.poll() is not None:
                raise SystemExit("the training has ended early")
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return run


def resume_seconds(run: Path) -> tuple[float, float, int, int]:
    """Seconds to the server after the last update, on the clock and of the processor.

    And how many updates were computed anew, and how many there are.
    """
    with one_blas_thread():
        began, processor = time.perf_counter(), time.process_time()
        opened = open_run(run)
        tail = find_tail(opened, print)
        found = tail.recovered(opened)
        took, busy = time.perf_counter() - began, time.process_time() - processor
    anew = sum(record.version > tail.model.version for record in records_of(tail.entries))
    return took, busy, anew, found.snapshot.version


def first_step_seconds(run: Path) -> float:
    """Seconds from the start of `distsgd resume` to the first update that the metrics tell of."""
    before, began = updates_of(run), time.perf_counter()
    command = [sys.executable, "-m", "distsgd", "resume", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while updates_of(run) <= before and process.poll() is None:
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


class KillsOneServer(KillsServers):
    """Kills the server after so many updates, and ends the training after the next."""

    def __init__(self, updates: int) -> None:
        super().__init__(1)
        self._updates = updates

    def progress(self, progress: Progress) -> None:
        if self._killed is None and not self.waits:
            if progress.step >= self._updates and (
                there := processes("ray::ServerProc", os.getpid())
            ):
                self._recovered, self._killed = False, time.perf_counter()
                os.kill(there[0], signal.SIGKILL)
            return
        super().progress(progress)


def recovery_seconds(home: Path, codec: str, dataset: str, updates: int) -> float:
    """Seconds from the death of a server to the next update."""
    reporter, run = KillsOneServer(updates), home / f"server-{codec.replace(':', '-')}"
    with suppress(KeyboardInterrupt):
        train(dataset, workers=2, epochs=ENDLESS, compress=codec, run_dir=run, reporter=reporter)
    return reporter.waits[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=36_000)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--codecs", default="none,topk:0.01,onebit,fp16")
    parser.add_argument("--no-servers", action="store_true")
    arguments = parser.parse_args()
    print(
        "| compression | updates | s of resume (of CPU) | anew | s to first step | s of recovery |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    home = Path(tempfile.mkdtemp(prefix="distsgd-resumes-"))
    try:
        for codec in arguments.codecs.split(","):
            given = home, codec, arguments.dataset, arguments.updates
            run = killed_run(*given)
            took, busy, anew, version = resume_seconds(run)
            first = first_step_seconds(run)
            recovery = "" if arguments.no_servers else f"{recovery_seconds(*given):.2f}"
            resumed = f"{took:.2f} ({busy:.2f})"
            row = [codec, f"{version:,}", resumed, str(anew), f"{first:.2f}", recovery]
            print(f"| {' | '.join(row)} |", flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
