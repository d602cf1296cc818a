"""Train with `--chaos`, and compare each run with the same run without faults.

A case has a seeded policy (half of them `bsp`), 1 to 4 workers, 1 to 3 servers, a channel, and
faults; every third is such that its workers are a team. Some lose their driver too, and `distsgd
resume` continues with another fleet under the same chaos. With `bsp` W must have the SHA-256 of the
run without faults; with the other policies the test accuracy must be within half a point (2.5
points on the sample's 400 images) of that of a simulated fleet of as many workers without faults.
The audit must hold and the replay must give the bits of the run. A case takes about 15 seconds on
two cores; a run that fails is kept.

With `--one-ray` the trainings whose driver survives run in this process on one Ray, without the
seconds in which each starts its own. The quickest: `chaos 50 --one-ray --dataset sample --epochs
100`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from distsgd.data.find import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.errors import DistsgdError
from distsgd.on_ray.session import ray_session
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.training import train
from harness.cases import Verdict, add_arguments, play
from harness.kill import CHANNELS
from harness.processes import Failure, finish, result, start

POLICIES = ("ssp", "asp", "backup", "local")
HANGS = 180.0  # seconds
WITHIN = 0.005  # of test accuracy, with 10,000 test images
MOST_ACTORS = 7  # 4 workers and 3 servers
OF_PUSHES = ("drop-push", "dup-push", "delay")


def chaos_of(random: Random, updates: int, *, pushes: bool = True) -> str:
    """One to four faults, as a user would write them; not of pushes where there are none."""

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
    chosen = random.sample(faults if pushes else faults[:3], random.randint(1, 4 if pushes else 3))
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
    def within(self) -> float:
        """How far test accuracies may differ: by more where there are few test images."""
        return WITHIN * math.sqrt(10_000 / read_manifest(find_dataset(self.data[1])).rows("test"))

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
    one_ray: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verdict:
        random, began = Random(self.number), time.monotonic()
        policy = "bsp" if self.number % 2 == 0 else POLICIES[self.number // 2 % len(POLICIES)]
        fleet = {
            "workers": random.randint(1, 4),
            "servers": random.randint(1, 3),
            "channel": CHANNELS[self.number % len(CHANNELS)],
        }
        team = self.number % 3 == 0
        if team:
            policy = policy if policy in ("bsp", "asp", "local") else "bsp"
            fleet |= {"servers": 1, "channel": "auto"}
        updates = int(self.without.trained["steps"])
        # Replicas are averaged after 8 steps.
        moments = updates // 8 if policy == "local" else updates
        chaos = ["--chaos", chaos_of(random, moments, pushes=not team)]
        fault = ""
        try:
            flags = [word for name, value in fleet.items() for word in (f"--{name}", value)]
            arguments = ["--consistency", policy, "--run-dir", self.folder, *flags, *chaos]
            place = random.randrange(1, updates) if random.random() < 0.2 else 0
            if self.one_ray and not place:
                answer = self._trained_here(policy, fleet, chaos[1])
            else:
                training = self._start("train", *self.without.data, *arguments)
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

    def _trained_here(self, policy: str, fleet: dict[str, Any], chaos: str) -> dict[str, Any]:
        """Train in this process, on the Ray that it has."""
        _, dataset, _, epochs = self.without.data

        def hangs(*_: object) -> None:
            raise Failure("it hangs")

        signal.signal(signal.SIGALRM, hangs)
        signal.alarm(int(HANGS))
        try:
            return asdict(
                train(dataset, epochs=int(epochs), consistency=policy, run_dir=self.folder,
                      chaos=chaos, **fleet)
            )  # fmt: skip
        except DistsgdError as error:
            raise Failure(str(error)) from error
        finally:
            signal.alarm(0)

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
            if abs(answer["test_accuracy"] - accuracy) > self.without.within:
                raise Failure(
                    f"test accuracy {answer['test_accuracy']:.2%}, {accuracy:.2%} without faults"
                )
        if not audit(self.folder).complete:
            raise Failure("the audit misses examples")
        if replay(self.folder).weights_sha256 != sha:
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
    parser.add_argument("--one-ray", action="store_true", help="trainings share one Ray")


def main(given: argparse.Namespace) -> int:
    home = Path(tempfile.mkdtemp(prefix="distsgd-chaos-"))
    data = ("--dataset", given.dataset, "--epochs", str(given.epochs))
    without = Undisturbed(home / "home", data)
    with ray_session(cpus=MOST_ACTORS) if given.one_ray else nullcontext():
        code = play(lambda n: DisturbedRun(n, home / f"run-{n}", without, given.one_ray), given)
    if not code:
        shutil.rmtree(home, ignore_errors=True)
    return code
