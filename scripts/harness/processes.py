"""Starting distsgd, and finding, waiting for and ending processes, by /proc."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ENDLESS = 1_000_000
"""Epochs: more than any training here does before it is ended."""


class Failure(Exception):
    """Something that should hold does not."""


def start(
    *arguments: object, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start a command line of distsgd; by default nobody reads what it prints."""
    command = [sys.executable, "-m", "distsgd", *map(str, arguments)]
    null = subprocess.DEVNULL
    streams = {"stdin": null, "stdout": null, "stderr": null, **options}
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, text=True, **streams)


def result(
    *arguments: object, env: Mapping[str, str] | None = None, seconds: float = 300
) -> dict[str, Any]:
    """Run a command line to its end, and return its JSON object.

    Raises:
        Failure: it has not ended in time, or ends with an error.
    """
    pipe = subprocess.PIPE
    return finish(start(*arguments, "--json", env=env, stdout=pipe, stderr=pipe), seconds)


def finish(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Wait for a command that was started with --json and pipes; see `result`."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failure("it hangs") from None
    if process.returncode:
        raise Failure((errors or output or "nothing").strip().splitlines()[-1])
    answer: dict[str, Any] = json.loads(output)
    return answer


def wait_for(condition: Callable[[], object], seconds: float = math.inf) -> bool:
    """Poll a condition; returns whether it held in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def computed(pid: int) -> float:
    """Seconds of processor time of a process and of the children it has waited for."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def descendants(ancestor: int, name: str = "") -> list[int]:
    """The live processes below another one whose name starts so, in the order of their ids."""
    parents, names = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            head, _, rest = (entry / "stat").read_text().rpartition(")")
            names[int(entry.name)] = head.partition("(")[2]
            parents[int(entry.name)] = int(rest.split()[1])

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = parents.get(pid, 0)
        return pid == ancestor

    return sorted(
        pid for pid in parents if pid != ancestor and names[pid].startswith(name) and is_below(pid)
    )


def marked(marker: bytes, *, files: bool = False) -> dict[int, bytes]:
    """Command lines of other processes with a marker in their environment or command line.

    With ``files``, also of those that have a file open whose path holds the marker.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if int(entry.name) != os.getpid() and (
                marker in line
                or marker in (entry / "environ").read_bytes()
                or (files and any(marker.decode() in file for file in open_files(entry)))
            ):
                found[int(entry.name)] = line
    return found


def open_files(process: Path) -> list[str]:
    """What the file descriptors of a process in /proc refer to."""
    found = []
    for file in (process / "fd").iterdir():
        with suppress(OSError):  # closed in the meantime
            found.append(str(file.readlink()))
    return found


def end(pids: Iterable[int]) -> None:
    """Send SIGKILL."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_marked(marker: bytes, patience: float, *, files: bool = False) -> tuple[str, ...]:
    """Wait for marked processes to end, end those that do not, and return their command lines."""
    wait_for(lambda: not marked(marker, files=files), patience)
    left = marked(marker, files=files)
    end(left)
    wait_for(lambda: not marked(marker, files=files), 20)
    return tuple(line.replace(b"\0", b" ").decode(errors="replace")[:100] for line in left.values())
