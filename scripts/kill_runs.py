"""Kill trainings at random moments, and show what is left of them.

    python scripts/kill_runs.py [RUNS] [--minutes N] [--seed N] [--channel any|shm|tcp|ray]

Each run is a `distsgd train` on Ray, in a temporary folder of its own that names all its processes:
by their environment, command line or open files. At a random moment, start-up included, one process
of it is killed. Exits with 1 if a run hangs or anything is left.
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

# What is sent, and what the command line of the process has in it; nothing: the driver.
TARGETS: dict[str, tuple[signal.Signals, tuple[bytes, ...]]] = {
    "driver": (signal.SIGKILL, ()),
    "driver, SIGTERM": (signal.SIGTERM, ()),
    "driver, SIGINT": (signal.SIGINT, ()),
    "worker": (signal.SIGKILL, (b"ray::WorkerProcess",)),
    "server": (signal.SIGKILL, (b"ray::ServerProcess", b"ray::FollowerProcess")),
    "raylet": (signal.SIGKILL, (b"/raylet/raylet",)),
    "gcs_server": (signal.SIGKILL, (b"/gcs/gcs_server",)),
}
# Seconds: the last moment of a kill; until a driver that lives on is asked to end; until it is
# said to hang after that; and for its processes to be gone after its end.
LATEST, LIVES_ON, HANGS, GONE_WITHIN = 5.0, 3.0, 60.0, 20.0
INTERRUPTED = (130, 143)  # exit codes of a driver that ended as it was asked to


@dataclass(frozen=True)
class Plan:
    target: str
    delay: float  # seconds from the start of the driver; a target that comes later is hit at birth
    from_target: bool  # or seconds from when the target is there
    channel: str
    servers: int
    which: float  # of several such processes, as a share of their number

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
    code: int | None  # None for one that hung
    seconds: float  # from the kill, or if it lived on from the SIGINT, until all was gone
    left: tuple[str, ...]  # processes
    to_sweep: bool  # whether it left a folder
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
    """Runs and kills in one temporary folder; its name is short, as sockets of Ray need."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._marker = folder, str(folder).encode()
        own = {"TMPDIR": str(folder), "DISTSGD_HOME": str(folder / "home")}
        self._environment = {**os.environ, **own}

    def distsgd(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "stderr").open("wb") as errors:
            null, command = subprocess.DEVNULL, [sys.executable, "-m", "distsgd", *arguments]
            return subprocess.Popen(
                command, env=self._environment, stdin=null, stdout=null, stderr=errors
            )

    def run(self, plan: Plan) -> Outcome:
        shutil.rmtree(self._folder / "home", ignore_errors=True)
        driver = self.distsgd(
            "train", "--dataset", "sample", "--workers", "2", "--epochs", "2000",
            "--servers", str(plan.servers), "--set", f"channel={plan.channel}",
        )  # fmt: skip
        self._kill(driver, plan)
        killed = asked = time.monotonic()
        if not wait_for(lambda: driver.poll() is not None, LIVES_ON):
            driver.send_signal(signal.SIGINT)
            asked = time.monotonic()
        wait_for(lambda: driver.poll() is not None, HANGS)
        code = driver.returncode
        wait_for(lambda: not living(self._marker), GONE_WITHIN if code is not None else 0)
        seconds = time.monotonic() - (asked if code in INTERRUPTED else killed)
        left = self._end_all()
        errors = (self._folder / "stderr").read_text(encoding="utf-8", errors="replace")
        return Outcome(code, seconds, left, bool(self.folders()), errors)

    def _kill(self, driver: subprocess.Popen[bytes], plan: Plan) -> None:
        """Send the signal at its moment; a target that never comes is left alone."""
        number, names = TARGETS[plan.target]

        def found() -> list[int]:
            if not names:
                return [] if driver.poll() is not None else [driver.pid]
            ours = living(self._marker).items()
            return sorted(pid for pid, line in ours if any(name in line for name in names))

        if not plan.from_target:
            time.sleep(plan.delay)
        wait_for(lambda: found() or driver.poll() is not None, HANGS)
        if plan.from_target:
            time.sleep(plan.delay)
        with suppress(ProcessLookupError, IndexError):  # it is over
            os.kill((pids := found())[int(plan.which * len(pids))], number)

    def _end_all(self) -> tuple[str, ...]:
        """By force, so that the next run is not blamed; returns the command lines."""
        left = living(self._marker)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not living(self._marker), GONE_WITHIN)
        return tuple(line.replace(b"\0", b" ").decode()[:100] for line in left.values())

    def folders(self) -> list[str]:
        """Of sessions of ours under the temporary folder."""
        return [str(path) for path in self._folder.glob("*distsgd-*")]


def held_by_somebody() -> set[str]:
    """Numbers of the sockets, and paths of the files, that any process has open or mapped."""
    held = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (entry / "maps").read_text(encoding="utf-8").splitlines()
            held |= {line.split(maxsplit=5)[5] for line in lines if "/dev/shm" in line}
            held |= set(open_files(entry))
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
    for target in [*(name for name in TARGETS if any(p.target == name for p, _ in done)), "all"]:
        outcomes = [outcome for plan, outcome in done if target in (plan.target, "all")]
        codes = Counter("hung" if one.code is None else str(one.code) for one in outcomes)
        shown = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
        seconds = [one.seconds for one in outcomes]
        print(f"| {target} | {len(outcomes)} | {shown} | {statistics.median(seconds):.2f} "
              f"| {max(seconds):.2f} |")  # fmt: skip


def kill_runs(killer: Killer, arguments: argparse.Namespace) -> list[str]:
    """All runs, and the table; returns what is wrong with them."""
    done, problems, until = [], [], time.monotonic() + 60 * arguments.minutes
    for number in range(arguments.first, arguments.first + arguments.runs):
        if time.monotonic() > until:
            break
        plan = Plan.of(arguments.seed, number, arguments.channel)
        outcome = killer.run(plan)
        done.append((plan, outcome))
        found = [f"left: {line}" for line in outcome.left] + ["it hung"] * (outcome.code is None)
        problems += [f"run {number}: {problem}; {plan}" for problem in found]
        print(outcome.errors if found else "", end="", file=sys.stderr)
        last = outcome.errors.strip().rpartition("\n")[2][:110]
        print(f"run {number}: {plan.target}, {plan.channel}, {plan.servers} servers, "
              f"{plan.delay:.2f} s{' from its start' * plan.from_target}: exit {outcome.code}, "
              f"{outcome.seconds:.2f} s {last}", file=sys.stderr, flush=True)  # fmt: skip
    report(done)
    print(f"\nleft a folder for the next command to remove: {sum(o.to_sweep for _, o in done)}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60, help="start no run after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channel", choices=["any", "shm", "tcp", "ray"], default="any")
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    before = set(shared_things())
    with tempfile.TemporaryDirectory(prefix="kill-", dir="/tmp") as name:
        killer = Killer(Path(name))
        problems = kill_runs(killer, arguments)
        killer.distsgd("runs", "list").wait()
        problems += [f"left: {line.decode()}" for line in living(name.encode()).values()]
        problems += [f"left: {path}" for path in killer.folders()]
    held, now = held_by_somebody(), shared_things()
    problems += [f"left: {what}" for what in now.keys() - before if now[what] not in held]
    print("left: nothing" if not problems else "\n".join(problems))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
