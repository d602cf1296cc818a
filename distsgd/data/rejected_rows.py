"""Rows that an import could not use: counted, and listed in a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from distsgd.data.sources.source import Rejected

__all__ = ["RejectedRows"]

_SHOWN = 10


class RejectedRows:
    """Writes each rejected row to a CSV file.

    Args:
        path: of the file.

    Attributes:
        count: how many.
        first: where and why, of the first ten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["where", "why"])
        self.count = 0
        self.first: list[str] = []

    def add(self, rows: Iterable[Rejected]) -> None:
        """Some more."""
        for row in rows:
            self.count += 1
            where, why = map(_shown, row)
            self._writer.writerow([where, why])
            if len(self.first) < _SHOWN:
                self.first.append(f"{where}: {why}")

    def close(self) -> None:
        """Nothing more comes; a file without rows is removed."""
        if not self._file.closed:
            self._file.close()
            if not self.count:
                self._path.unlink()


def _shown(text: str) -> str:
    """As it can be written: what is no UTF-8 in the name of a file is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
