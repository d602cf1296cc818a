"""The metrics of a run: one JSON object a line, appended as training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distsgd.run.line_file import LineFile

__all__ = ["MetricsWriter", "read_metrics"]


class MetricsWriter(LineFile):
    """Appends records to metrics.jsonl, each at once."""

    def write(self, content: dict[str, Any]) -> None:
        """See `LineFile.write`."""
        super().write(content)
        self.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
