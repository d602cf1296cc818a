"""Helpers that several tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from distsgd.runtime.session_guard import processes_of

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command line with these arguments; see the fixture `distsgd`."""


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "distsgd", *map(str, arguments)]


def processes_with(text: str) -> Sequence[int]:
    """Processes that have ``text`` on their command line or in the name of an open file."""
    return processes_of(text)
