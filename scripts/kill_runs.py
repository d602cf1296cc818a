"""Kill trainings at random moments, and show what is left of them.

    python scripts/kill_runs.py [RUNS] [--seed N] [--channel any|shm|tcp|ray]

Each run is a `distsgd train` on Ray, in a temporary folder of its own that names all its processes:
by their environment, their command line or a file that they have open. At a random moment, start-up
included, one process of it is killed. Exits with 1 if a run hangs or anything is left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TARGETS: dict[str, tuple[signal.Signals, tuple[bytes, ...]]] = {
    "driver": (signal.SIGKILL, ()),
    "driver, SIGTERM": (signal.SIGTERM, ()),
    "driver, SIGINT": (signal.SIGINT, ()),
    "worker": (signal.SIGKILL, (b"ray::WorkerProcess",)),
    "server": (signal.SIGKILL, (b"ray::ServerProcess", b"ray::FollowerProcess")),
    "raylet": (signal.SIGKILL, (b"/raylet/raylet",)),
    "gcs_server": (signal.SIGKILL, (b"/gcs/gcs_server",)),
}
"""What is sent, and what the command line of the process has in it; nothing: the driver."""

LATEST = 5.0
"""The last moment of a kill, in seconds."""
LIVES_ON = 3.0
"""A driver that still lives so many seconds after the kill goes on, and is asked to end."""
HANGS = 60.0
"""A driver that still lives so many seconds after that hangs."""
GONE_WITHIN = 20.0
"""So many seconds after the driver's end all of its processes have to be gone."""


@dataclass(frozen=True)
class Plan:
    """What happens to one run.

    Attributes:
        target: a key of `TARGETS`.
        delay: seconds from the start of the driver, or of the target if that is later.
        from_target: count the delay from the moment when the target is there.
        channel: how workers reach the server.
        servers: how many there are.
        which: of several such processes, as a share of their number.
    """

    target: str
    delay: float
    from_target: bool
    channel: str
    servers: int
    which: float

    @classmethod
    def of(cls, seed: int, number: int, channel: str) -> Plan:
        rng = random.Random(f"{seed}-{number}")
        return cls(
            rng.choice(list(TARGETS)),
            rng.uniform(0, LATEST),
            rng.random() < 0.5,
            rng.choice(["shm", "tcp", "ray"]) if channel == "any" else channel,
            rng.choice([1, 2]),
            rng.random(),
        )


@dataclass(frozen=True)
class Outcome:
    """What became of it: exit code (None for one that hung), processes that were left, whether
    folders were, standard error."""

    code: int | None
    seconds: float
    left: tuple[str, ...]
    to_sweep: bool
    errors: str


def open_files(process: Path) -> list[str]:
    found = []
    for file in (process / "fd").iterdir():
        with suppress(OSError):  # closed since
            found.append(str(file.readlink()))
    return found


def living(marker: bytes) -> dict[int, bytes]:
    """Command lines of processes that have the marker in the environment, there, or open."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if int(entry.name) != os.getpid() and (
                marker in line
                or marker in (entry / "environ").read_bytes()
                or any(marker.decode() in file for file in open_files(entry))
            ):
                found[int(entry.name)] = line
    return found


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class Killer:
    """Runs and kills, one after the other, in one temporary folder.

    Args:
        folder: has a short name, as the sockets of Ray need, and nothing in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._marker = folder, str(folder).encode()
        self._environment = {
            **os.environ, "TMPDIR": str(folder), "DISTSGD_HOME": str(folder / "home")
        }  # fmt: skip

    def distsgd(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "stderr").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "distsgd", *arguments], env=self._environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def run(self, plan: Plan) -> Outcome:
        shutil.rmtree(self._folder / "home", ignore_errors=True)
        driver = self.distsgd(
            "train", "--dataset", "sample", "--workers", "2", "--epochs", "2000",
            "--servers", str(plan.servers), "--set", f"channel={plan.channel}",
        )  # fmt: skip
        self._kill(driver, plan)
        sent = time.monotonic()
        code = driver.poll()
        if not wait_for(lambda: driver.poll() is not None, LIVES_ON):
            driver.send_signal(signal.SIGINT)
            sent = time.monotonic()
        if wait_for(lambda: driver.poll() is not None, HANGS):
            code = driver.returncode
        wait_for(lambda: not living(self._marker), GONE_WITHIN if code is not None else 0)
        seconds, left = time.monotonic() - sent, self._end_all()
        driver.wait()
        errors = (self._folder / "stderr").read_text(encoding="utf-8", errors="replace")
        return Outcome(code, seconds, left, bool(self.folders()), errors)

    def _kill(self, driver: subprocess.Popen[bytes], plan: Plan) -> None:
        """Send the signal at its moment; a target that never comes is left alone."""
        number, names = TARGETS[plan.target]
        if not plan.from_target:
            time.sleep(plan.delay)
        found = [driver.pid]
        if names:
            wait_for(lambda: self._processes(names) or driver.poll() is not None, HANGS)
            found = self._processes(names)
        if plan.from_target:
            time.sleep(plan.delay)
        if found and (names or driver.poll() is None):
            with suppress(ProcessLookupError):
                os.kill(found[int(plan.which * len(found))], number)

    def _processes(self, names: tuple[bytes, ...]) -> list[int]:
        ours = living(self._marker).items()
        return sorted(pid for pid, line in ours if any(name in line for name in names))

    def _end_all(self) -> tuple[str, ...]:
        """By force, so that the next run is not blamed; returns the command lines."""
        left = living(self._marker)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return tuple(line.replace(b"\0", b" ").decode()[:100] for line in left.values())

    def folders(self) -> set[str]:
        """Of sessions of ours under the temporary folder."""
        return {f"folder {path}" for path in self._folder.glob("*distsgd-*")}


def held_by_somebody() -> set[str]:
    """Numbers of the sockets, and paths of the files, that any process has open or mapped."""
    held = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            held |= set(open_files(entry))
            lines = (entry / "maps").read_text(encoding="utf-8").splitlines()
            held |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm" in line}
    return held


def shared_things() -> dict[str, str]:
    """Files in shared memory and named sockets like ours, and what a holder has open of them."""
    found = {f"file {path}": str(path) for path in Path("/dev/shm").iterdir()}
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and "distsgd" in fields[7]:
            found[f"socket {fields[7]}"] = f"socket:[{fields[6]}]"
    return found


def report(done: list[tuple[Plan, Outcome]]) -> None:
    print("| killed | runs | exit codes | seconds until all is gone: median | most |")
    print("| --- | --- | --- | --- | --- |")
    for target in (*TARGETS, "all"):
        outcomes = [outcome for plan, outcome in done if target in (plan.target, "all")]
        if not outcomes:
            continue
        codes = Counter("hung" if one.code is None else str(one.code) for one in outcomes)
        seconds = [one.seconds for one in outcomes]
        print(
            f"| {target} | {len(outcomes)} | "
            + ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
            + f" | {statistics.median(seconds):.2f} | {max(seconds):.2f} |"
        )


def kill_runs(killer: Killer, numbers: range, seed: int, channel: str) -> list[str]:
    """All runs, and the table; returns what is wrong with them."""
    done: list[tuple[Plan, Outcome]] = []
    problems = []
    for number in numbers:
        plan = Plan.of(seed, number, channel)
        outcome = killer.run(plan)
        done.append((plan, outcome))
        found = [f"left: {line}" for line in outcome.left]
        found += ["it hung"] if outcome.code is None else []
        problems += [f"run {number}: {problem}; {plan}" for problem in found]
        if "Traceback" in outcome.errors or found:
            print(outcome.errors, file=sys.stderr)
        last = (outcome.errors.strip().splitlines() or [""])[-1]
        print(f"run {number}: {plan.target}, {plan.channel}, {plan.servers} servers, "
              f"{plan.delay:.2f} s{' from there' * plan.from_target}: exit {outcome.code}, "
              f"{outcome.seconds:.2f} s {found or ''} {last[:110]}",
              file=sys.stderr, flush=True)  # fmt: skip
    report(done)
    swept = sum(outcome.to_sweep for _, outcome in done)
    print(f"\n{swept} of {len(done)} left a folder, for the next command to remove")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channel", choices=["any", "shm", "tcp", "ray"], default="any")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    arguments = parser.parse_args()
    before = shared_things()
    with tempfile.TemporaryDirectory(prefix="kill-", dir="/tmp") as name:
        killer = Killer(Path(name))
        numbers = range(arguments.first, arguments.first + arguments.runs)
        problems = kill_runs(killer, numbers, arguments.seed, arguments.channel)
        killer.distsgd("runs", "list").wait()
        problems += [f"left: {line.decode()}" for line in living(name.encode()).values()]
        problems += [f"left: {path}" for path in killer.folders()]
    held = held_by_somebody()
    new = {what: held_as for what, held_as in shared_things().items() if what not in before}
    problems += [f"left: {what}" for what, held_as in new.items() if held_as not in held]
    print("left: nothing" if not problems else "\n".join(problems))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
