"""The metrics of a run, one JSON object a line, and its timeline.

Each line of metrics ends with its own CRC-32 (c), so that a corrupted number is not shown. The
timeline is in the "Trace Event Format" that Perfetto and Chrome's tracing page read: complete
events (ph "X") with times in microseconds.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from distsgd.data.atomic import replace_file
from distsgd.data.folder_files import reader_inside
from distsgd.engine.events import Track
from distsgd.errors import RunError, UsageError, machine_trouble, storage_error
from distsgd.runs.checkpoint import checkpoint_versions
from distsgd.runs.line_file import LineFile
from distsgd.spelling import spelling

__all__ = [
    "LONGEST_RECORD",
    "METRIC_COLUMNS",
    "Best",
    "MetricsWriter",
    "best_epoch",
    "check_trace_file",
    "epoch_rows",
    "is_whole_record",
    "read_metrics",
    "score_of",
    "seconds_of_steps",
    "write_trace_file",
]  # fmt: skip


LONGEST_RECORD = 1 << 16
"""Bytes of the longest line."""

_MOST = 1 << 62
_COUNTS = {"epoch", "version", "step", "examples_seen"}
_MEASURED = {"seconds", "train_accuracy", "test_accuracy", "train_loss", "test_loss"}
_NUMBERS = {*_MEASURED, "validation_accuracy", "validation_loss"}
_EPOCH = {"epoch", "version", *_MEASURED}


class MetricsWriter(LineFile):
    """Appends records to metrics.jsonl, each at once.

    Attributes:
        written: bytes written so far.
    """

    written = 0

    def write(self, content: dict[str, Any]) -> None:
        """See `LineFile.write`."""
        before = self._size
        super().write({**content, "c": _check(content)})
        self.flush()
        self.written += self._size - before


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; an incomplete last line is left out.

    Raises:
        RunError: a line is damaged; names it.
    """
    return list(_records(path))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The same one by one, for files of any length."""
    try:
        with reader_inside(path) as file:
            for number in count(1):
                if not (line := file.readline(LONGEST_RECORD)):
                    return
                try:
                    record = json.loads(line)
                    if not is_whole_record(record):
                        raise ValueError("its checksum does not match")
                except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
                    if not line.endswith(b"\n") and len(line) < LONGEST_RECORD:
                        return
                    raise RunError(
                        f"line {number} of {path} is damaged",
                        "Remove that line: metrics are only displayed, and name the best epoch",
                    ) from None
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise machine_trouble(error, path) or RunError(
            f"{path} cannot be read: {error.strerror}", "Check the disk"
        ) from None


def is_whole_record(record: dict[str, Any]) -> bool:
    """Whether a record matches its checksum, which is removed from it.

    Raises:
        ValueError, AttributeError, LookupError, TypeError, RecursionError: it is no record, or one
            of its numbers is wrong.
    """
    if record.pop("c", None) != _check(record):
        return False
    _check_numbers(record)
    return True


def _check_numbers(record: dict[str, Any]) -> None:
    """Check the types of the numbers that are displayed and computed with.

    Raises:
        ValueError, KeyError: one is wrong.
    """
    if record.get("kind") == "epoch" and not set(record) >= _EPOCH:
        raise ValueError("it lacks metrics of an epoch")
    for name in _COUNTS & set(record):
        if type(record[name]) is not int or not 0 <= record[name] < _MOST:
            raise ValueError(f"{name} is not a count")
    for name in _NUMBERS & set(record):
        if type(record[name]) not in (int, float) or abs(record[name]) >= math.inf:
            raise ValueError(f"{name} is not a number")


def epoch_rows(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; of one that was repeated, as after a kill, the last time counts."""
    found = {row["epoch"]: row for row in _records(path) if row.get("kind") == "epoch"}
    return [found[epoch] for epoch in sorted(found)]


def seconds_of_steps(path: Path, examples: int) -> float:
    """Seconds that a run has spent on the steps of its first examples, over all its sessions.

    Steps after the last record, in a run that was killed, count as fast as those before.

    Args:
        path: of the metrics.
        examples: how many examples have been used.

    Raises:
        RunError: as `read_metrics`.
    """
    known, seconds = 1, 0.0
    for record in _records(path):
        if 0 < record.get("examples_seen", 0) <= examples and "seconds" in record:
            known, seconds = record["examples_seen"], record["seconds"]
    return float(seconds) * examples / known


Best = tuple[float, float, int]
"""Validation accuracy, negative validation loss, version: the largest tuple is the best."""


def score_of(row: Mapping[str, Any], version: int) -> Best | None:
    """What an epoch is chosen by; None without rows held out. Never the test set.

    Args:
        row: metrics of the epoch.
        version: of W at its end.
    """
    accuracy, loss = row.get("validation_accuracy"), row.get("validation_loss")
    if accuracy is None or loss is None:
        return None
    return float(accuracy), -float(loss), version


def best_epoch(folder: Path) -> Best | None:
    """The best epoch that has a checkpoint; None before the first, and without rows held out.

    The best has the largest validation accuracy, and among equals the smallest loss. If epochs are
    short, some have no checkpoint, or a delayed one: "saved" is false in their rows.

    Args:
        folder: the run folder.

    Raises:
        RunError: as `read_metrics`.
    """
    rows = epoch_rows(folder / "metrics.jsonl")
    there = set(checkpoint_versions(folder / "checkpoints"))
    found = (
        score_of(row, int(row["version"]))
        for row in rows
        if row.get("saved", True) or row["version"] in there
    )
    return max((score for score in found if score is not None), default=None)


def _check(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_trace_file(path: Path) -> None:
    """Refuse a file that could not be written, before a long run rather than after it.

    Raises:
        UsageError: its folder is missing, or it is a folder itself.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UsageError(
            f"{spelling().given('trace', str(path))} is not a file in an existing folder",
            "Name another",
        )


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


METRIC_COLUMNS: dict[str, str] = {
    "kind": "string",
    "step": "int64",
    "epoch": "int64",
    "seconds": "float64",
    "loss": "float64",
    "accuracy": "float64",
    "learning_rate": "float64",
    "examples_seen": "int64",
    "examples_per_second": "float64",
    "train_loss": "float64",
    "train_accuracy": "float64",
    "test_loss": "float64",
    "test_accuracy": "float64",
    "validation_loss": "float64",
    "validation_accuracy": "float64",
}
"""Columns and their types. A row of kind "progress" lacks the last six, one of kind "epoch" those
from loss to examples_per_second. Epochs count from 1."""


def metrics_columns(path: Path) -> dict[str, list[Any]]:
    """The records of metrics.jsonl, as written, by column; None where a record has no value.

    Raises:
        RunError: a line is damaged.
    """
    columns: dict[str, list[Any]] = {name: [] for name in METRIC_COLUMNS}
    for record in read_metrics(path):
        if record.get("kind") not in ("progress", "epoch"):
            continue
        if record["kind"] == "epoch":
            record = {**record, "step": record["version"]}
        else:
            record = {**record, "epoch": record["epoch"] + 1}
        for name, column in columns.items():
            column.append(record.get(name))
    return columns


def metrics_table(path: Path) -> Any:
    """The same as a `pyarrow.Table`."""
    import pyarrow as pa

    columns = metrics_columns(path)
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in METRIC_COLUMNS.items()])
    return pa.table(columns, schema=schema)
