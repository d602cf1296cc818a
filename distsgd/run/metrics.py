"""The metrics of a run: one JSON object a line, appended as training goes on.

Each line ends with its own CRC-32 (c), so that a number that the disk has altered is not shown.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from distsgd.data.folder_files import read_inside
from distsgd.errors import RunError, machine_trouble
from distsgd.run.checkpoint import checkpoint_versions
from distsgd.run.line_file import LineFile

__all__ = ["Best", "MetricsWriter", "best_epoch", "epoch_rows", "read_metrics", "seconds_of_steps"]


class MetricsWriter(LineFile):
    """Appends records to metrics.jsonl, each at once."""

    def write(self, content: dict[str, Any]) -> None:
        """See `LineFile.write`."""
        super().write({**content, "c": _check(content)})
        self.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut off is left out.

    Raises:
        RunError: a line is damaged; names it.
    """
    try:
        lines = read_inside(path).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise machine_trouble(error, path) or RunError(
            f"{path} cannot be read: {error.strerror}", "Check the disk"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record.pop("c", None) != _check(record):
                raise ValueError("its checksum does not match")
        except (ValueError, AttributeError, TypeError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise RunError(
                f"line {number} of {path} is damaged",
                "Remove that line: metrics are shown, and say which epoch was the best; no more",
            ) from None
        records.append(record)
    return records


def epoch_rows(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; of one that was done again, as after a kill, the last time counts."""
    rows = [row for row in read_metrics(path) if row.get("kind") == "epoch"]
    found = {row["epoch"]: row for row in rows}
    return [found[epoch] for epoch in sorted(found)]


def seconds_of_steps(path: Path, examples: int) -> float:
    """Seconds that a run has spent on the steps of its first examples, in all its parts.

    Steps after the last record, of a run that was killed between two, are taken to have been as
    fast as those before.

    Args:
        path: of the metrics.
        examples: how many examples have been used.

    Raises:
        RunError: as `read_metrics`.
    """
    found = [
        (record["examples_seen"], record["seconds"])
        for record in read_metrics(path)
        if 0 < record.get("examples_seen", 0) <= examples
    ]
    known, seconds = found[-1] if found else (1, 0.0)
    return float(seconds) * examples / int(known)


Best = tuple[float, float, int]
"""Test accuracy, test loss times -1, version: the largest of several is the best."""


def best_epoch(folder: Path) -> Best | None:
    """The best W at the end of an epoch that has a checkpoint, if one has ended.

    That is the one with the largest test accuracy; of several, that with the smallest loss. Of many
    epochs a second some have no checkpoint, or have it later: their rows have a false "saved".

    Args:
        folder: the run folder.

    Raises:
        RunError: as `read_metrics`.
    """
    rows = epoch_rows(folder / "metrics.jsonl")
    there = set(checkpoint_versions(folder / "checkpoints"))
    found = (
        (row["test_accuracy"], -row["test_loss"], int(row["version"]))
        for row in rows
        if row.get("saved", True) or row["version"] in there
    )
    return max(found, default=None)


def _check(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
