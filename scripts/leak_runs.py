"""Many trainings in one process, some with kills among them: what is left, and does memory grow?

    python scripts/leak_runs.py [inline=100] [shared=80] [own=20] [cli=20]

`inline` runs train without Ray, `shared` ones within one session of Ray, `own` ones start a Ray
each; `cli` ones are commands, every fourth of them on Ray. Every second run on Ray is disturbed:
SIGKILL of a worker, of a server, or SIGSTOP of a worker; of commands, SIGKILL of the command.
Prints a line for each kind: processes, threads, file descriptors, sockets, files of /dev/shm and
temporary folders after it beyond those before it (all have to be 0), and the memory of this
process (RSS) after a fifth of the runs and after all of them. Exit code 1 if something is left or
memory has grown by more than 5 %. Takes five minutes on two cores.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from distsgd.engine.events import Progress
from distsgd.training import train
from distsgd.training.results import Reporter

DISTURBANCES = (
    ("ray::WorkerProc", signal.SIGKILL),
    ("ray::ServerProc", signal.SIGKILL),
    ("ray::WorkerProc", signal.SIGSTOP),
)
MOST_GROWTH = 1.05


def descendants() -> dict[int, str]:
    """The live processes below this one, with their names."""
    parents, names = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            head, _, rest = (entry / "stat").read_text().rpartition(")")
            names[int(entry.name)] = head.partition("(")[2]
            parents[int(entry.name)] = int(rest.split()[1])
    found = {}
    for pid in parents:
        above = parents[pid]
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid():
            found[pid] = names[pid]
    return found


def there() -> dict[str, int]:
    """How many of everything there are."""
    gc.collect()
    sockets = Path("/proc/net/unix").read_text().count("@distsgd-")
    temporary = list(Path(tempfile.gettempdir()).glob("*distsgd-*"))
    return {
        "processes": len(descendants()),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "sockets": sockets,
        "shm": len(list(Path("/dev/shm").iterdir())),
        "folders": len(temporary),
    }


def memory() -> float:
    """RSS of this process, in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Disturbs(Reporter):
    """Strikes once."""

    def __init__(self, number: int) -> None:
        every = (*DISTURBANCES, None, None, None)
        self._blow = every[number % len(every)]
        self.struck = 0

    def progress(self, progress: Progress) -> None:
        if self._blow is None or progress.step < 5:
            return
        name, number = self._blow
        found = [pid for pid, comm in descendants().items() if comm.startswith(name)]
        if found:
            self._blow = None
            self.struck = 1
            with suppress(ProcessLookupError):
                os.kill(found[0], number)


def settled(before: dict[str, int]) -> dict[str, int]:
    """What is there beyond before, once what is on its way out has gone."""
    until = time.monotonic() + 15
    while True:
        now = there()
        more = {name: now[name] - before[name] for name in now}
        if time.monotonic() > until or all(value <= 0 for value in more.values()):
            return more
        time.sleep(0.2)


def command(number: int, run: Path) -> int:
    """A training by command line; every eighth is killed, on Ray, when it has begun."""
    on_ray, killed = number % 4 == 0, number % 8 == 0
    begun = subprocess.Popen(
        [sys.executable, "-m", "distsgd", "train", "--dataset", "sample", "--run-dir", str(run),
         "--workers", "2" if on_ray else "0", "--epochs", "100000" if killed else "3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert begun.stdout is not None
    if killed:
        rows = iter(begun.stdout.readline, "")
        next(row for row in rows if row.lstrip().startswith("2 "))
        begun.kill()
    begun.stdout.read()
    assert begun.wait() == (-signal.SIGKILL if killed else 0)
    shutil.rmtree(run)
    return int(killed)


def chunk(kind: str, runs: int, home: Path) -> bool:
    """Train so often; whether nothing is left and memory has not grown."""
    from distsgd.on_ray.session import ray_session

    def one(number: int) -> int:
        if kind == "cli":
            return command(number, home / f"{kind}-{number}")
        reporter = Disturbs(number)
        on_ray = kind != "inline"
        run = home / f"{kind}-{number}"
        train(
            "sample", workers=2 if on_ray else 0, epochs=30 if on_ray else 3, run_dir=run,
            log_every=1, hang_seconds=1.5, keep_checkpoints=1, reporter=reporter,
        )  # fmt: skip
        shutil.rmtree(run)
        return reporter.struck

    def all_of_them(one: Callable[[int], int]) -> tuple[float, int, dict[str, int]]:
        early, struck = 0.0, 0
        within = there()
        for number in range(runs):
            struck += one(number)
            print(".", end="", file=sys.stderr, flush=True)
            if number == runs // 5:
                early, within = memory(), there()
        return early, struck, settled(within)

    for number in (3, 4):  # what is loaded once, and stays
        one(number)
    before, began = there(), time.monotonic()
    with ray_session(cpus=4) if kind == "shared" else nullcontext():
        early, struck, grown = all_of_them(one)
        late = memory()
    left = settled(before)
    every = {f"left {name}": value for name, value in left.items() if value > 0}
    if kind == "shared":  # Ray keeps idle processes of its own, but no more for more runs
        every |= {f"grown {name}": value for name, value in grown.items() if value > 0}
    print(
        f"| {kind} | {runs} | {struck} | {every or 'nothing'} | {early:.1f} | {late:.1f} | "
        f"{time.monotonic() - began:.0f} |",
        flush=True,
    )
    return not every and late < early * MOST_GROWTH


def main() -> None:
    wanted = dict(text.split("=") for text in sys.argv[1:])
    wanted = wanted or {"inline": "100", "shared": "80", "own": "20", "cli": "20"}
    home = Path(tempfile.mkdtemp(prefix="leak-runs-"))
    print(
        "| runs | number | disturbed | left | RSS after a fifth, MiB | RSS at the end | seconds |"
    )
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    fine = [chunk(kind, int(runs), home) for kind, runs in wanted.items()]
    shutil.rmtree(home)
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
