"""The metrics of a run: one JSON object a line, appended as training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distsgd.run.line_file import LineFile

__all__ = ["Best", "MetricsWriter", "best_epoch", "epoch_rows", "read_metrics"]


class MetricsWriter(LineFile):
    """Appends records to metrics.jsonl, each at once."""

    def write(self, content: dict[str, Any]) -> None:
        """See `LineFile.write`."""
        super().write(content)
        self.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; lines that are none, as one that was cut off, are left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def epoch_rows(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; of one that was done again, as after a kill, the last time counts."""
    rows = [row for row in read_metrics(path) if row.get("kind") == "epoch"]
    found = {row["epoch"]: row for row in rows}
    return [found[epoch] for epoch in sorted(found)]


Best = tuple[float, float, int]
"""Test accuracy, test loss times -1, version: the largest of several is the best."""


def best_epoch(folder: Path) -> Best | None:
    """The best W at the end of an epoch, if one has ended.

    That is the one with the largest test accuracy; of several, that with the smallest loss.

    Args:
        folder: the run folder.
    """
    try:
        rows = [row for row in epoch_rows(folder / "metrics.jsonl") if "version" in row]
    except OSError:
        return None
    found = ((row["test_accuracy"], -row["test_loss"], int(row["version"])) for row in rows)
    return max(found, default=None)
