"""How soon training goes on after a kill, and how soon it stops when asked to.

    python scripts/recovery_times.py [workers] [servers] [stops] [--tries N]

Times are those of the product: of a worker's death, from the SIGKILL to the next update on the
server's own timeline, and the longest pause between updates there in the 3 s that follow; of a
server's, to the next update that the driver hears of (up to 0.25 s after it was applied); of
Ctrl-C, to the last checkpoint in its place, and to the end of the command. Two workers, one node,
CIFAR-10. Prints one table; about a minute for each group on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.events import Ended, Progress
from distsgd.engine.job import Snapshot
from distsgd.training import train
from distsgd.training.results import Reporter

WINDOW = 3.0
Row = tuple[str, list[float]]


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def processes(name: str, ancestor: int) -> list[int]:
    """The live processes of this name below another."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = above = int(entry.name)
        try:
            if not (entry / "comm").read_text().startswith(name):
                continue
        except OSError:
            continue
        while above > 1 and above != ancestor:
            above = parent_of(above)
        if above == ancestor:
            found.append(pid)
    return sorted(found)


def worker_deaths(tries: int) -> Iterator[Row]:
    from distsgd.on_ray.driver import train_on_ray

    config = TrainConfig(epochs=100_000, schedule="constant", log_every=20)
    dataset = open_dataset(config.dataset)
    job = make_job(config, dataset)
    job = replace(job, trace=True)
    first = first_weights(config, job)
    kills: list[int] = []
    last = [time.perf_counter()]

    def over() -> bool:
        return len(kills) == tries and time.perf_counter() - last[0] > WINDOW

    events = train_on_ray(job, Snapshot(0, first, {}), 2, over)
    for event in events:
        if isinstance(event, Progress) and time.perf_counter() - last[0] > WINDOW:
            there = processes("ray::WorkerProc", os.getpid())
            if len(there) == 2 and len(kills) < tries:
                kills.append(time.perf_counter_ns())
                os.kill(there[len(kills) % 2], signal.SIGKILL)
                last[0] = time.perf_counter()
    assert isinstance(event, Ended)
    (server,) = (track for track in event.tracks if track.name == "server 0")
    ends = [end for name, _, end in server.spans if name == "update"]
    nexts, pauses = [], []
    for kill in kills:
        near = [end for end in ends if kill <= end <= kill + WINDOW * 1e9]
        nexts.append((near[0] - kill) / 1e9)
        pauses.append(max(after - before for before, after in pairwise([kill, *near])) / 1e9)
    yield "worker SIGKILL to the next update", nexts
    yield "longest pause between updates in the 3 s after it", pauses


class KillsServers(Reporter):
    def __init__(self, tries: int) -> None:
        self.tries, self.waits = tries, list[float]()
        self._killed: float | None = None
        self._next = time.perf_counter() + WINDOW

    def progress(self, progress: Progress) -> None:
        now = time.perf_counter()
        if self._killed is not None and self._recovered:
            self.waits.append(now - self._killed)
            self._killed, self._next = None, now + WINDOW
        if self._killed is None and len(self.waits) == self.tries:
            os.kill(os.getpid(), signal.SIGINT)
            self.tries = -1
        elif self._killed is None and now > self._next and self.tries > 0:
            there = processes("ray::ServerProc", os.getpid())
            if there:
                self._recovered = False
                self._killed = time.perf_counter()
                os.kill(there[0], signal.SIGKILL)

    def notice(self, text: str) -> None:
        self._recovered = True  # what comes from now on comes from the new server


def server_deaths(tries: int) -> Iterator[Row]:
    home = Path(tempfile.mkdtemp(prefix="distsgd-times-"))
    reporter = KillsServers(tries)
    with suppress(KeyboardInterrupt):
        train(epochs=100_000, workers=2, run_dir=home / "run", reporter=reporter,
              schedule="constant", keep_checkpoints=2)  # fmt: skip
    shutil.rmtree(home)
    yield "server SIGKILL to the next update", reporter.waits


def stop_once(how: str, number: int, *settings: str) -> tuple[float, float]:
    """Seconds to the checkpoint, and to the end of the command."""
    home = Path(tempfile.mkdtemp(prefix="distsgd-times-"))
    run = home / "run"
    command = [
        sys.executable,
        "-m",
        "distsgd",
        "train",
        "--epochs",
        "100000",
        "--run-dir",
        str(run),
    ]
    command += ["--run-dir", str(run), *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journal = run / "journal.jsonl"
    try:
        while not (journal.exists() and journal.stat().st_size > 200_000):
            time.sleep(0.05)
        if how == "after a death":
            os.kill(processes("ray::WorkerProc", process.pid)[0], signal.SIGKILL)
            time.sleep(0.4 * (number % 5))  # also while the new one starts
        began, wall = time.perf_counter(), time.time()
        process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)
        if how == "twice":
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        took = time.perf_counter() - began
        wanted = 128 + (signal.SIGTERM if how == "sigterm" else signal.SIGINT)
        assert process.returncode == wanted, (process.returncode, told.decode()[-500:])
        newest = max((run / "checkpoints").glob("step-*.npz"))
        return newest.stat().st_mtime - wall, took
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def stops(tries: int) -> Iterator[Row]:
    for how, name in (
        ("sigint", "Ctrl-C"), ("sigterm", "SIGTERM"),
        ("after a death", "Ctrl-C 0 to 1.6 s after a worker's death"), ("twice", "second Ctrl-C"),
    ):  # fmt: skip
        found = [stop_once(how, number) for number in range(tries)]
        if how != "twice":
            yield f"{name} to the last checkpoint", [saved for saved, _ in found]
        yield f"{name} to the end of the command", [ended for _, ended in found]


GROUPS = {"workers": worker_deaths, "servers": server_deaths, "stops": stops}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], default=[])
    parser.add_argument("--tries", type=int)
    arguments = parser.parse_args()
    usual = {"workers": 10, "servers": 5, "stops": 5}
    print("| seconds from ... | median | worst | tries |\n| --- | ---: | ---: | ---: |")
    for group in arguments.groups or GROUPS:
        for name, found in GROUPS[group](arguments.tries or usual[group]):
            median = statistics.median(found)
            print(f"| {name} | {median:.3f} | {max(found):.3f} | {len(found)} |", flush=True)


if __name__ == "__main__":
    main()
