"""Train with `--chaos`, and compare each run with the same run without faults.

A case has a seeded policy (half of them `bsp`), 1 to 4 workers, 1 to 3 servers, a channel, and
faults. Some lose their driver too, and `distsgd resume` continues with another fleet under the same
chaos. With `bsp` W must have the SHA-256 of the run without faults; with the other policies the
test accuracy must be within half a point of that of a simulated fleet of as many workers without
faults. The audit must hold and the replay must give the bits of the run. A case takes about 15
seconds on two cores; a run that fails is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from harness.cases import Verdict, add_arguments, play
from harness.kill import CHANNELS
from harness.processes import Failure, finish, result, start

POLICIES = ("ssp", "asp", "backup", "local")
HANGS = 180.0  # seconds
WITHIN = 0.005  # of test accuracy
OF_PUSHES = ("drop-push", "dup-push", "delay")


def chaos_of(random: Random, updates: int) -> str:
    """One to four faults, as a user would write them."""

    def moment() -> str:
        at, every = random.randrange(1, updates), random.randrange(updates // 8, updates)
        return random.choice((f"at={at}", f"every={every}"))

    faults = [
        f"kill-worker:{moment()}",
        f"kill-server:at={random.randrange(1, updates)}",
        f"stop-worker:{moment()}:for={random.choice(('500ms', '2s', '4s'))}",
        f"drop-push:p={random.choice((0.0005, 0.002))}:for={random.choice(('100ms', '1.5s'))}",
        f"dup-push:p={random.choice((0.01, 0.1))}",
        f"delay:p=0.01:for={random.choice((5, 20, 100))}ms",
    ]
    chosen = random.sample(faults, random.randint(1, 4))
    return ",".join([*chosen, f"seed={random.randrange(1000)}"])


class Undisturbed:
    """What runs give without faults.

    Args:
        home: where the runs are kept.
        data: the options that name the dataset and the epochs.
    """

    def __init__(self, home: Path, data: tuple[str, ...]) -> None:
        self.environment, self.data = {"DISTSGD_HOME": str(home)}, data
        self._accuracies: dict[tuple[str, int], float] = {}

    def result(self, *arguments: object) -> dict[str, Any]:
        return result(*arguments, env=self.environment, seconds=HANGS)

    @cached_property
    def trained(self) -> dict[str, Any]:
        return self.result("train", *self.data, "--workers", 0)

    def accuracy(self, policy: str, workers: int) -> float:
        """The test accuracy of a simulated fleet."""
        if (policy, workers) not in self._accuracies:
            simulated = ("simulate", *self.data, "--consistency", policy, "--workers", workers)
            self._accuracies[policy, workers] = float(self.result(*simulated)["test_accuracy"])
        return self._accuracies[policy, workers]


@dataclass
class DisturbedRun:
    """A training under chaos."""

    number: int
    folder: Path
    without: Undisturbed
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verdict:
        random, began = Random(self.number), time.monotonic()
        policy = "bsp" if self.number % 2 == 0 else POLICIES[self.number // 2 % len(POLICIES)]
        fleet = {
            "workers": random.randint(1, 4),
            "servers": random.randint(1, 3),
            "channel": CHANNELS[self.number % len(CHANNELS)],
        }
        updates = int(self.without.trained["steps"])
        # Replicas are averaged after 8 steps.
        chaos = ["--chaos", chaos_of(random, updates // 8 if policy == "local" else updates)]
        fault = ""
        try:
            flags = [word for name, value in fleet.items() for word in (f"--{name}", value)]
            arguments = ["--consistency", policy, "--run-dir", self.folder, *flags, *chaos]
            training = self._start("train", *self.without.data, *arguments)
            place = random.randrange(1, updates) if random.random() < 0.2 else 0
            if place and self._killed(training, place):
                self.counts["kill-driver"] += 1
                others = ["--workers", random.randint(1, 4), "--servers", random.randint(1, 3)]
                training = self._start("resume", self.folder, *others, *chaos)
            answer = finish(training, HANGS)
            pushes = answer["chaos"]["faults"].items()
            self.counts.update({name: count for name, count in pushes if name in OF_PUSHES})
            self._check(answer, policy, int(fleet["workers"]))
        except Failure as failure:
            fault = f"{failure} (kept in {self.folder})"
        self.counts += process_faults(self.folder)
        if not fault:
            shutil.rmtree(self.folder)
        return Verdict(
            number=self.number,
            line=" ".join([policy, "{workers} x {servers} {channel}".format(**fleet), chaos[1]]),
            faults=(fault,) if fault else (),
            counts=self.counts,
            rows=(f"policy {policy}", *(f"{name} {value}" for name, value in fleet.items())),
            seconds=time.monotonic() - began,
        )

    def _start(self, *arguments: object) -> subprocess.Popen[str]:
        pipe, env = subprocess.PIPE, self.without.environment
        return start(*arguments, "--json", env=env, stdout=pipe, stderr=pipe)

    def _killed(self, driver: subprocess.Popen[str], place: int) -> bool:
        """Kill the driver after this many updates; False if it ends before."""
        until = time.monotonic() + HANGS
        while driver.poll() is None and time.monotonic() < until:
            with suppress(OSError):
                if (self.folder / "journal.jsonl").read_bytes().count(b'"v"') >= place:
                    driver.kill()
                    driver.communicate()
                    return True
            time.sleep(0.005)
        return False

    def _check(self, answer: dict[str, Any], policy: str, workers: int) -> None:
        sha = answer["weights_sha256"]
        if policy == "bsp" and sha != self.without.trained["weights_sha256"]:
            raise Failure("the bits of W differ from those without faults")
        if policy != "bsp":
            accuracy = self.without.accuracy(policy, workers)
            if abs(answer["test_accuracy"] - accuracy) > WITHIN:
                raise Failure(
                    f"test accuracy {answer['test_accuracy']:.2%}, {accuracy:.2%} without faults"
                )
        if not self.without.result("audit", self.folder)["complete"]:
            raise Failure("the audit misses examples")
        if self.without.result("replay", self.folder)["weights_sha256"] != sha:
            raise Failure("the replay has other bits")


def process_faults(folder: Path) -> Counter[str]:
    """The faults of processes, in all sessions of a run."""
    path = folder / "chaos.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Counter(found["fault"] for found in map(json.loads, lines) if "fault" in found)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, cases=50)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=5)


def main(given: argparse.Namespace) -> int:
    home = Path(tempfile.mkdtemp(prefix="distsgd-chaos-"))
    data = ("--dataset", given.dataset, "--epochs", str(given.epochs))
    without = Undisturbed(home / "home", data)
    code = play(lambda n: DisturbedRun(n, home / f"run-{n}", without), given)
    if not code:
        shutil.rmtree(home, ignore_errors=True)
    return code
