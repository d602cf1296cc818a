"""Measure how soon training continues after a kill, and how soon it stops when asked to.

The times are the product's own. `workers`: from the SIGKILL of a worker to the next update on the
timelines of the server and of the worker that survives, and the longest pause between updates
there in the 3 s after it. `servers`: from the SIGKILL of a server to the next update that the
driver hears of (up to 0.25 s after it was applied). `stops`: from Ctrl-C to the last checkpoint in
its place, and to the end of the command. Two workers, one node, CIFAR-10; a minute for each group
on two cores.

`codecs` is run only when named: what compression costs a resume and the recovery of a server after
36,000 updates. For each codec a training in one process is killed after that many updates. Then
come the seconds in which a resume finds where to continue and recomputes the updates after the
checkpoint, the number of those, and the seconds from the start of `distsgd resume` to its first
update. Then a training with two workers loses its server after as many updates. Five minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.engine.events import Ended, Progress, Track
from distsgd.engine.job import Snapshot
from distsgd.proof.replayer import records_of
from distsgd.runs.opened_run import open_run
from distsgd.training import train
from distsgd.training.recovery import find_tail
from distsgd.training.results import Reporter
from harness.processes import ENDLESS, descendants, end, start, wait_for
from harness.tables import Table

WINDOW, SOON = 3.0, 0.1
WORKER, SERVER = "ray::WorkerProc", "ray::ServerProc"
Row = tuple[str, list[float]]


def worker_deaths(tries: int) -> Iterator[Row]:
    from distsgd.on_ray.driver import train_on_ray

    config = TrainConfig(epochs=ENDLESS, schedule="constant", log_every=20, batch_size=512)
    job = replace(make_job(config, open_dataset(config.dataset)), trace=True)
    kills: list[int] = []
    survivor = 0
    last = [time.perf_counter()]

    def over() -> bool:
        return len(kills) == tries and time.perf_counter() - last[0] > WINDOW

    for event in train_on_ray(job, Snapshot(0, first_weights(config, job), {}), 2, over):
        if isinstance(event, Progress) and time.perf_counter() - last[0] > WINDOW:
            workers = descendants(os.getpid(), WORKER)
            if len(workers) == 2 and len(kills) < tries:
                survivor = survivor or workers[0]  # one keeps its timeline
                kills.append(time.perf_counter_ns())
                end(pid for pid in workers if pid != survivor)
                last[0] = time.perf_counter()
    assert isinstance(event, Ended)
    nexts, pauses = [], []
    for kill in kills:
        near = updates_after(kill, event.tracks) or [kill + int(WINDOW * 1e9)]
        nexts.append((near[0] - kill) / 1e9)
        pauses.append(max(after - before for before, after in pairwise([kill, *near])) / 1e9)
    yield "worker SIGKILL to the next update", nexts
    yield "longest pause between updates in the 3 s after it", pauses


def updates_after(kill: int, tracks: Iterable[Track]) -> list[int]:
    """When updates were applied within the window after a kill, in nanoseconds.

    What a member of a team applies is an update once all have applied their parts. A member that
    survives may still apply its part of one with the dead; that one is left out, like the first
    part of a member of the next team. All others are updates.
    """
    found: list[int] = []
    for track in tracks:
        ends = [
            stop for name, _, stop in track.spans
            if name == "update" and kill <= stop <= kill + WINDOW * 1e9
        ]  # fmt: skip
        found += ends if track.name.startswith("server") else ends[1:]
    return sorted(found)


class KillsServers(Reporter):
    """Kills a server some times, from a number of updates on, and then ends the training."""

    def __init__(self, tries: int, updates: int = 0) -> None:
        self.tries, self.waits, self._updates = tries, list[float](), updates
        self._killed: float | None = None
        self._next = time.perf_counter() + (0 if updates else WINDOW)

    def progress(self, progress: Progress) -> None:
        now = time.perf_counter()
        if self._killed is not None and self._recovered:
            self.waits.append(now - self._killed)
            self._killed, self._next = None, now + WINDOW
        if self._killed is None and len(self.waits) == self.tries:
            os.kill(os.getpid(), signal.SIGINT)
            self.tries = -1
        elif (
            self._killed is None and now > self._next and self.tries > 0
            and progress.step >= self._updates and (servers := descendants(os.getpid(), SERVER))
        ):  # fmt: skip
            self._recovered = False
            self._killed = time.perf_counter()
            end(servers[:1])

    def notice(self, text: str) -> None:
        self._recovered = True  # later updates are the new server's


def recovery_seconds(
    tries: int, updates: int = 0, dataset: str = "cifar10", **settings: str
) -> list[float]:
    """Seconds from the death of a server to the next update that the driver hears of."""
    home = Path(tempfile.mkdtemp(prefix="distsgd-times-"))
    reporter = KillsServers(tries, updates)
    with suppress(KeyboardInterrupt):
        train(dataset, epochs=ENDLESS, workers=2, run_dir=home / "run", reporter=reporter,
              keep_checkpoints=2, **settings)  # fmt: skip
    shutil.rmtree(home)
    return reporter.waits


def server_deaths(tries: int) -> Iterator[Row]:
    yield "server SIGKILL to the next update", recovery_seconds(tries, schedule="constant")


def stop_once(how: str, number: int) -> tuple[float, float]:
    """Seconds to the last checkpoint, and to the end of the command."""
    home = Path(tempfile.mkdtemp(prefix="distsgd-times-"))
    run, journal = home / "run", home / "run" / "journal.jsonl"
    process = start("train", "--epochs", ENDLESS, "--run-dir", run, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: journal.exists() and journal.stat().st_size > 200_000)
        if how == "after a death":
            end(descendants(process.pid, WORKER)[:1])
            time.sleep(0.4 * (number % 5))  # also while the new one starts
        began, wall = time.perf_counter(), time.time()
        wanted = signal.SIGTERM if how == "sigterm" else signal.SIGINT
        process.send_signal(wanted)
        if how == "twice":
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        took = time.perf_counter() - began
        assert process.returncode == 128 + wanted, (process.returncode, errors[-500:])
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


def updates_of(run: Path) -> int:
    """How many updates the metrics of a run record."""
    try:
        record = json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return 0
    return int(record.get("step", record.get("version", 0)))


def train_until(run: Path, codec: str, dataset: str, updates: int) -> None:
    """Kill a training in one process after so many updates."""
    process = start("train", "--dataset", dataset, "--workers", 0, "--epochs", ENDLESS,
                    "--compress", codec, "--run-dir", run)  # fmt: skip
    try:
        wait_for(lambda: updates_of(run) >= updates or process.poll() is not None)
        assert process.poll() is None, "the training has ended early"
    finally:
        process.kill()
        process.wait()


def resume_seconds(run: Path) -> tuple[float, float, int, int]:
    """Seconds of a resume up to the last update, on the clock and of the processor.

    And how many updates it recomputes, and how many there are.
    """
    with one_blas_thread():
        began, processor = time.perf_counter(), time.process_time()
        opened = open_run(run)
        tail = find_tail(opened, print)
        found = tail.start(opened)
        took, busy = time.perf_counter() - began, time.process_time() - processor
    recomputed = sum(record.version > tail.model.version for record in records_of(tail.entries))
    return took, busy, recomputed, found.snapshot.version


def first_update_seconds(run: Path) -> float:
    """Seconds from the start of `distsgd resume` to the first update in the metrics."""
    before, began = updates_of(run), time.perf_counter()
    process = start("resume", run)
    try:
        wait_for(lambda: updates_of(run) > before or process.poll() is not None)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def codecs(names: list[str], dataset: str, updates: int) -> None:
    table = Table(
        "compression", "updates", "s of a resume", "of CPU", "recomputed", "s to the first update",
        "s of a server's recovery",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="distsgd-resumes-") as home:
        for codec in names:
            run = Path(home) / codec.replace(":", "-")
            train_until(run, codec, dataset, updates)
            took, busy, recomputed, version = resume_seconds(run)
            first = first_update_seconds(run)
            (recovery,) = recovery_seconds(1, updates, dataset, compress=codec)
            table.row(codec, version, took, busy, recomputed, first, recovery)


GROUPS = {"workers": (worker_deaths, 20), "servers": (server_deaths, 5), "stops": (stops, 5)}


def arguments(parser: argparse.ArgumentParser) -> None:
    groups = "workers, servers, stops, codecs; default: the first three"
    parser.add_argument("groups", nargs="*", metavar="GROUP", default=list(GROUPS), help=groups)
    parser.add_argument("--tries", type=int, help="default: 20 of workers, 5 of the others")
    parser.add_argument("--updates", type=int, default=36_000, help="before a kill of `codecs`")
    parser.add_argument("--dataset", default="cifar10", help="of `codecs`")
    parser.add_argument("--codecs", default="none,topk:0.01,onebit,fp16")


def main(given: argparse.Namespace) -> int:
    if groups := [name for name in given.groups if name != "codecs"]:
        table = Table("seconds from ...", "median", "worst", "tries", f"within {SOON:g} s")
        for name in groups:
            measure, tries = GROUPS[name]
            for row, found in measure(given.tries or tries):
                soon = sum(seconds <= SOON for seconds in found)
                table.row(row, statistics.median(found), max(found), len(found), soon)
    if "codecs" in given.groups:
        codecs(given.codecs.split(","), given.dataset, given.updates)
    return 0
