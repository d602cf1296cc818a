"""Runs under `distsgd train --chaos`, against the same run left in peace.

    python scripts/chaos_runs.py [RUNS=50] [--first SEED] [--dataset NAME] [--epochs N]

Each run has a seeded policy (half of them `bsp`), 1 to 4 workers, 1 to 3 servers, a channel, and
faults. Some lose their driver too, and `distsgd resume` goes on with another fleet under the same
chaos. With `bsp` the SHA-256 of W must be that of the run in peace; with the other policies the
test accuracy must be within half a point of that of a simulated fleet in peace, of as many workers.
With all of them the audit must hold and the replay must give the bits of the run. Prints a line a
run and a table, and exits with 1 if one of them fails. Takes about 15 seconds a run on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

POLICIES = ("ssp", "asp", "backup", "local")
CHANNELS = ("shm", "tcp", "ray")
HANGS = 180.0  # seconds
WITHIN = 0.005  # of test accuracy
PUSH = ("drop-push", "dup-push", "delay")


class Failure(Exception):
    """What does not hold."""


def chaos_of(random: Random, updates: int) -> str:
    """One to four faults, as the user would write them."""
    moment = lambda: random.choice(  # noqa: E731
        (f"at={random.randrange(1, updates)}", f"every={random.randrange(updates // 8, updates)}")
    )
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


class Runs:
    """Runs in one temporary folder.

    Args:
        home: the folder.
        dataset: what is trained on.
        epochs: for how long.
    """

    def __init__(self, home: Path, dataset: str, epochs: int) -> None:
        self._home = home
        self._what = ["--dataset", dataset, "--epochs", str(epochs)]
        # Found in the environment of every process of these runs.
        self._environment = {**os.environ, "DISTSGD_HOME": str(home / "home")}
        self._in_peace: dict[tuple[str, int], float] = {}
        found = self.result("train", *self._what, "--workers", 0)
        self.updates, self._peace = int(found["steps"]), found["weights_sha256"]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "distsgd", *map(str, arguments), "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self._environment, text=True, stdout=pipe, stderr=pipe)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, errors = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure("it hangs") from None
        if process.returncode:
            raise Failure((errors or output).strip().splitlines()[-1])
        found: dict[str, Any] = json.loads(output)
        return found

    def result(self, *arguments: object) -> dict[str, Any]:
        return self.finish(self.start(*arguments))

    def accuracy_in_peace(self, policy: str, workers: int) -> float:
        if (policy, workers) not in self._in_peace:
            found = self.result(
                "simulate", *self._what, "--consistency", policy, "--workers", workers
            )
            self._in_peace[policy, workers] = float(found["test_accuracy"])
        return self._in_peace[policy, workers]

    def run(self, seed: int) -> tuple[dict[str, Any], Counter[str], str]:
        """One run: what it was, the faults that came, and what is wrong with it, if anything."""
        random, folder = Random(seed), self._home / f"run-{seed}"
        policy = "bsp" if seed % 2 == 0 else POLICIES[seed // 2 % len(POLICIES)]
        fleet = {
            "workers": random.randint(1, 4),
            "servers": random.randint(1, 3),
            "channel": CHANNELS[seed % len(CHANNELS)],
        }
        flags = [word for name, value in fleet.items() for word in (f"--{name}", str(value))]
        # Replicas are averaged after 8 steps.
        updates = self.updates // 8 if policy == "local" else self.updates
        chaos = ["--chaos", chaos_of(random, updates)]
        place = random.randrange(1, updates) if random.random() < 0.2 else 0
        told = {"policy": policy, **fleet, "chaos": chaos[1]}
        faults: Counter[str] = Counter()
        try:
            training = self.start(
                "train", *self._what, "--consistency", policy, "--run-dir", folder, *flags, *chaos
            )
            if place and self._killed(training, folder, place):
                faults["kill-driver"] += 1
                others = ["--workers", random.randint(1, 4), "--servers", random.randint(1, 3)]
                training = self.start("resume", folder, *others, *chaos)
            result = self.finish(training)
            pushes = result["chaos"]["faults"].items()
            faults.update({name: count for name, count in pushes if name in PUSH})
            self._check(result, folder, policy, fleet["workers"])
        except Failure as failure:
            return told, faults + strikes(folder), f"{failure} (kept in {folder})"
        faults += strikes(folder)
        shutil.rmtree(folder)
        return told, faults, ""

    def _killed(self, driver: subprocess.Popen[str], folder: Path, place: int) -> bool:
        """Kill the driver after so many updates, unless it is sooner."""
        until = time.monotonic() + HANGS
        while driver.poll() is None and time.monotonic() < until:
            with suppress(OSError):
                if (folder / "journal.jsonl").read_bytes().count(b'"v"') >= place:
                    driver.kill()
                    driver.communicate()
                    return True
            time.sleep(0.005)
        return False

    def _check(self, result: dict[str, Any], folder: Path, policy: str, workers: object) -> None:
        sha = result["weights_sha256"]
        if policy == "bsp" and sha != self._peace:
            raise Failure("the bits of W differ from those of the run in peace")
        if policy != "bsp":
            peace = self.accuracy_in_peace(policy, int(str(workers)))
            if abs(result["test_accuracy"] - peace) > WITHIN:
                raise Failure(f"test accuracy {result['test_accuracy']:.2%}, in peace {peace:.2%}")
        if not self.result("audit", folder)["complete"]:
            raise Failure("the audit misses examples")
        if self.result("replay", folder)["weights_sha256"] != sha:
            raise Failure("the replay has other bits")


def strikes(folder: Path) -> Counter[str]:
    """The faults of processes, in all sessions of a run."""
    path = folder / "chaos.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Counter(found["fault"] for found in map(json.loads, lines) if "fault" in found)


def report(done: list[tuple[dict[str, Any], Counter[str], str]]) -> None:
    print("\n| | runs | held |\n| --- | ---: | ---: |")
    for name in ("policy", "workers", "servers", "channel"):
        for value in sorted({told[name] for told, _, _ in done}):
            outcomes = [wrong for told, _, wrong in done if told[name] == value]
            print(f"| {name} {value} | {len(outcomes)} | {outcomes.count('')} |")
    total = sum((faults for _, faults, _ in done), Counter[str]())
    print(f"\nfaults: {', '.join(f'{name} {count}' for name, count in sorted(total.items()))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=int, nargs="?", default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="distsgd-chaos-"))
    runs, done = Runs(home, arguments.dataset, arguments.epochs), []
    for seed in range(arguments.first, arguments.first + arguments.runs):
        began = time.monotonic()
        told, faults, wrong = runs.run(seed)
        done.append((told, faults, wrong))
        fleet = f"{told['workers']} x {told['servers']} {told['channel']}"
        print(f"{seed} {told['policy']} {fleet} {told['chaos']}: {dict(faults)}; "
              f"{wrong or 'held'}; {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    report(done)
    held = not any(wrong for _, _, wrong in done)
    if held:
        shutil.rmtree(home, ignore_errors=True)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
