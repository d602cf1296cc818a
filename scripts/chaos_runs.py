"""Runs that are disturbed at random, against the same run left in peace.

    python scripts/chaos_runs.py [RUNS=50] [--first SEED]

Each run has a seeded number of workers (1 to 4) and servers (1 to 3), a channel and a policy, and
is disturbed at seeded numbers of updates: SIGKILL of a worker, of a server, or of the driver
(which `distsgd resume` then goes on from, with another fleet), SIGSTOP of a worker for a while.
With `bsp` the SHA-256 of W must be that of the run in peace; with every policy the audit must
hold and the replay must give the bits of the run. Prints a line a run and a table; exit code 1 if
one of them fails. Takes about 15 seconds a run on two cores.
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
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

EPOCHS = 250
UPDATES = EPOCHS * 6  # of the sample, in minibatches of 256
POLICIES = ("bsp", "bsp", "bsp", "bsp", "ssp", "asp", "backup", "local")
PROCESSES = {"worker": "ray::WorkerProc", "server": ("ray::ServerProc", "ray::FollowerPr")}
SECONDS = 180.0
STOPPED_SECONDS = 3.0


def awaken(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "distsgd", *map(str, arguments)]


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    if done.returncode != 0:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    found: dict[str, object] = json.loads(done.stdout)
    return found


@dataclass
class Disturbed:
    """One run, and what is done to it."""

    seed: int
    home: Path
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.policy = self.random.choice(POLICIES)
        self.run = self.home / f"run-{self.seed}"
        # Found in the environment of every process of this run.
        self.environment = {**os.environ, "DISTSGD_HOME": str(self.home / str(self.seed))}

    def fleet(self) -> list[object]:
        channel = self.random.choice(("auto", "auto", "tcp", "ray"))
        workers, servers = self.random.randint(1, 4), self.random.randint(1, 3)
        return ["--workers", workers, "--servers", servers, "--channel", channel]

    def disturb(self) -> dict[str, object]:
        """Returns the result of the run."""
        events = self.random.randint(1, 3)
        places = sorted(self.random.randrange(20, UPDATES - 300) for _ in range(events))
        what = ["train", "--dataset", "sample", "--epochs", EPOCHS, "--run-dir", self.run]
        arguments = [*what, "--consistency", self.policy, *self.fleet()]
        while True:
            process = subprocess.Popen(
                command(*arguments, "--json"), env=self.environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            until = time.monotonic() + SECONDS
            killed = False
            while places and process.poll() is None and not killed:
                if time.monotonic() > until:
                    process.kill()
                    raise RuntimeError("it hangs")
                if self.updates() >= places[0]:
                    places.pop(0)
                    killed = self.strike(process)
                time.sleep(0.005)
            try:
                out, error = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError("it hangs") from None
            if not killed:
                done = subprocess.CompletedProcess(arguments, process.returncode, out, error)
                return result_of(done)
            arguments = ["resume", self.run, *self.fleet()]

    def strike(self, driver: subprocess.Popen[str]) -> bool:
        """Do something to one of its processes; returns whether that was the driver."""
        kind = self.random.choice(("worker", "worker", "server", "stop", "driver"))
        if kind == "driver":
            driver.kill()
            self.done[kind] += 1
            return True
        found = self.processes(PROCESSES["worker" if kind == "stop" else kind])
        if not found:
            return False
        chosen = self.random.choice(found)
        self.done[kind] += 1
        with suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        if kind == "stop":
            threading.Timer(STOPPED_SECONDS, awaken, (chosen,)).start()
        return False

    def processes(self, names: str | tuple[str, ...]) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "comm").read_text().startswith(names):
                    wanted = self.environment["DISTSGD_HOME"].encode()
                    if wanted + b"\0" in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)

    def updates(self) -> int:
        with suppress(OSError):
            return (self.run / "journal.jsonl").read_bytes().count(b'"v"')
        return 0

    def check(self, result: dict[str, object], peace: object) -> None:
        if self.policy == "bsp" and result["weights_sha256"] != peace:
            raise RuntimeError("the bits of W differ from those of the run in peace")
        for what in ("audit", "replay"):
            done = subprocess.run(
                command(what, self.run, "--json"), env=self.environment, capture_output=True,
                text=True,
            )  # fmt: skip
            found = result_of(done)
            if what == "audit" and not found["complete"]:
                raise RuntimeError("the audit misses examples")
            if what == "replay" and found["weights_sha256"] != result["weights_sha256"]:
                raise RuntimeError("the replay has other bits")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int, nargs="?", default=50)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="distsgd-chaos-"))
    inline = ("train", "--dataset", "sample", "--epochs", EPOCHS, "--workers", 0, "--json")
    peace = result_of(
        subprocess.run(
            command(*inline, "--run-dir", home / "peace"), capture_output=True, text=True,
            env={**os.environ, "DISTSGD_HOME": str(home / "peace-home")},
        )
    )["weights_sha256"]  # fmt: skip
    held, total, done = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.runs):
        run, began = Disturbed(seed, home), time.monotonic()
        total[run.policy] += 1
        try:
            run.check(run.disturb(), peace)
            held[run.policy] += 1
            said = "holds"
        except RuntimeError as error:
            said = f"FAILS: {error} (kept in {run.run})"
        done += run.done
        blows = ", ".join(f"{name} {count}" for name, count in sorted(run.done.items()))
        print(f"{seed} {run.policy}: {said}; {blows}; {time.monotonic() - began:.0f} s", flush=True)
    print("\n| policy | runs | hold |\n| --- | ---: | ---: |")
    for policy in sorted(total):
        print(f"| {policy} | {total[policy]} | {held[policy]} |")
    print(f"\nstruck: {dict(done)}")
    if held == total:
        shutil.rmtree(home, ignore_errors=True)
    return int(held != total)


if __name__ == "__main__":
    sys.exit(main())
