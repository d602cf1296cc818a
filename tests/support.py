"""Helpers that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command line with these arguments; see the fixture `distsgd`."""


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "distsgd", *map(str, arguments)]


def processes_with(text: str) -> Sequence[int]:
    """Processes that have ``text`` on their command line or in the name of an open file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            names = [os.fsdecode((process / "cmdline").read_bytes()), *_open_files(process)]
            if int(process.name) != os.getpid() and any(text in name for name in names):
                found.append(int(process.name))
    return found


def _open_files(process: Path) -> list[str]:
    found = []
    for link in (process / "fd").iterdir():
        with suppress(OSError):  # closed by now
            found.append(str(link.readlink()))
    return found
