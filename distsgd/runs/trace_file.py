"""A timeline of a run, in the JSON that Perfetto and Chrome's tracing page read.

Source: "Trace Event Format"; complete events (ph "X") with times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsgd.data.atomic import replace_file
from distsgd.errors import UsageError, storage_error
from distsgd.engine.trace import Track

__all__ = ["check_trace_file", "write_trace_file"]


def check_trace_file(path: Path) -> None:
    """Refuse, before a long run, a file that could not be written after it.

    Raises:
        UsageError: its folder is missing, or it is a folder itself.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UsageError(f"--trace {path} is no file in a folder that is there", "Name another")


def write_trace_file(path: Path, tracks: Sequence[Track]) -> None:
    """Write the tracks, each as a process of its own; times count from the first span.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    begin = min((track.spans[0][1] for track in tracks if track.spans), default=0)
    events: list[dict[str, Any]] = []
    for number, track in enumerate(tracks):
        about = {"pid": number, "tid": 0, "ph": "M"}
        events.append({"name": "process_name", "args": {"name": track.name}, **about})
        events.append({"name": "process_sort_index", "args": {"sort_index": number}, **about})
        events += [
            {
                "name": name, "ph": "X", "pid": number, "tid": 0,
                "ts": (start - begin) / 1000, "dur": (end - start) / 1000,
            }
            for name, start, end in track.spans
        ]  # fmt: skip
    content = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
    try:
        replace_file(path, content.encode(), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
