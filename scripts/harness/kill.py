"""Kill a process of a training on Ray at a random moment, and look at what is left of it.

Each case is a `distsgd train` with a temporary folder of its own, which marks all of its processes:
in their environment, command line or open files. At a random moment, start-up included, one of them
is killed: the driver, a worker, a server, or one of Ray's own. A case fails if the training hangs
or leaves a process; in the end no shared memory, socket or folder may be left either. A case takes
fifteen seconds; most of them Ray waits for processes of its own that died while it started.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distsgd.config.settings import SETTINGS
from harness.cases import Verdict, add_arguments, play
from harness.processes import end_marked, marked, open_files, start, wait_for

# The signal, and what the command line of the process has in it; nothing: the driver.
TARGETS: dict[str, tuple[signal.Signals, tuple[bytes, ...]]] = {
    "driver": (signal.SIGKILL, ()),
    "driver, SIGTERM": (signal.SIGTERM, ()),
    "driver, SIGINT": (signal.SIGINT, ()),
    "worker": (signal.SIGKILL, (b"ray::WorkerProcess",)),
    "server": (signal.SIGKILL, (b"ray::ServerProcess", b"ray::FollowerProcess")),
    "raylet": (signal.SIGKILL, (b"/raylet/raylet",)),
    "gcs_server": (signal.SIGKILL, (b"/gcs/gcs_server",)),
}
# `auto` is a team wherever there can be one.
CHANNELS = tuple(name for name in SETTINGS["channel"].choices if name != "team")
# Seconds: the last moment of a kill; until a driver that survives is interrupted; until it hangs;
# and until its processes must be gone.
LATEST, SURVIVES, HANGS, GONE_WITHIN = 5.0, 3.0, 60.0, 20.0
INTERRUPTED = (130, 143)  # exit codes of a driver that ends because it was asked to


@dataclass(frozen=True)
class KilledRun:
    """A training, and how it is killed.

    Attributes:
        folder: temporary; its name is short, as Ray's sockets need.
        delay: seconds from the start of the driver, after which a target that is not there yet is
            killed as soon as it is; or, with ``from_target``, seconds from the start of the target.
        which: of several such processes, as a share of their number.
    """

    number: int
    folder: Path
    target: str
    delay: float
    from_target: bool
    channel: str
    servers: int
    which: float

    @classmethod
    def draw(cls, number: int, seed: int, channel: str, folder: Path) -> KilledRun:
        rng = random.Random(f"{seed}-{number}")
        return cls(
            number, folder, rng.choice(list(TARGETS)), rng.uniform(0, LATEST), rng.random() < 0.5,
            rng.choice(CHANNELS) if channel == "any" else channel, rng.choice([1, 2]), rng.random(),
        )  # fmt: skip

    @property
    def marker(self) -> bytes:
        return str(self.folder).encode()

    def run(self) -> Verdict:
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        with (self.folder / "stderr").open("wb") as errors:
            driver = start(
                "train", "--dataset", "sample", "--workers", 2, "--epochs", 2000,
                "--servers", self.servers, "--channel", self.channel,
                env=environment(self.folder), stderr=errors,
            )  # fmt: skip
        self._kill(driver)
        killed = asked = time.monotonic()
        if not wait_for(lambda: driver.poll() is not None, SURVIVES):
            driver.send_signal(signal.SIGINT)
            asked = time.monotonic()
        hung = not wait_for(lambda: driver.poll() is not None, HANGS)
        wait_for(lambda: not marked(self.marker, files=True), 0 if hung else GONE_WITHIN)
        seconds = time.monotonic() - (asked if driver.returncode in INTERRUPTED else killed)
        left = end_marked(self.marker, 0, files=True)
        driver.poll()
        moment = f"{self.delay:.2f} s{' after its start' * self.from_target}"
        return Verdict(
            number=self.number,
            line=f"{self.target} at {moment}, {self.channel}, {self.servers} servers",
            faults=("it hangs",) * hung + tuple(f"left: {line}" for line in left),
            counts=Counter(["hung" if hung else f"exit {driver.returncode}"]),
            rows=(self.target,),
            seconds=seconds,
            output=(self.folder / "stderr").read_text(encoding="utf-8", errors="replace"),
        )

    def _kill(self, driver: subprocess.Popen[str]) -> None:
        """Send the signal at its moment; a target that never starts is left alone."""
        number, names = TARGETS[self.target]

        def targets() -> list[int]:
            if not names:
                return [] if driver.poll() is not None else [driver.pid]
            ours = marked(self.marker, files=True).items()
            return sorted(pid for pid, line in ours if any(name in line for name in names))

        if not self.from_target:
            time.sleep(self.delay)
        wait_for(lambda: targets() or driver.poll() is not None, HANGS)
        if self.from_target:
            time.sleep(self.delay)
        with suppress(ProcessLookupError, IndexError):  # it has ended
            os.kill((pids := targets())[int(self.which * len(pids))], number)


def environment(folder: Path) -> dict[str, str]:
    """Makes the name of the folder a marker of every process."""
    return {"TMPDIR": str(folder), "DISTSGD_HOME": str(folder / "home")}


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


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, cases=100)
    parser.add_argument("--channel", choices=["any", *CHANNELS], default="any")


def main(given: argparse.Namespace) -> int:
    before = set(shared_things())
    with tempfile.TemporaryDirectory(prefix="kill-", dir="/tmp") as name:
        folder = Path(name)
        code = play(lambda n: KilledRun.draw(n, given.seed, given.channel, folder), given)
        waiting = len(list(folder.glob("*distsgd-*")))
        print(f"{waiting} session folders are left for the next command to remove")
        start("runs", "list", env=environment(folder)).wait()
        left = [line.decode() for line in marked(name.encode(), files=True).values()]
        left += map(str, folder.glob("*distsgd-*"))
    held, now = held_by_somebody(), shared_things()
    left += [thing for thing in now.keys() - before if now[thing] not in held]
    print("left:", "\n".join(left) or "nothing")
    return code or int(bool(left))
