"""The metrics of a run: one JSON object a line, appended as training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distsgd.errors import storage_error

__all__ = ["MetricsWriter", "read_metrics"]


class MetricsWriter:
    """Appends records to metrics.jsonl.

    Args:
        path: the file; made if it is not there, readable by the user alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise storage_error(error, path) from None

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise storage_error(error, self._path) from None

    def close(self) -> None:
        """Close the file; what a full disk refuses has been reported by `write`."""
        try:
            self._file.close()
        except OSError:
            return


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
