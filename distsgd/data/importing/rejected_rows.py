"""Rows that an import could not use: counted, and listed in a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from distsgd.data.importing.source import Rejected
from distsgd.data.names import escaped

__all__ = ["RejectedRows"]

_SHOWN = 10


class RejectedRows:
    """Writes each rejected row to a CSV file.

    Args:
        path: of the file.

    Attributes:
        count: how many.
        first: where and why, of the first ten.
        of_other_size: images that are not as large as the first one.
        size: (rows, columns) of that one, once there are such.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["where", "why"])
        self.count = 0
        self.first: list[str] = []
        self.of_other_size = 0
        self.size = (0, 0)

    def add(self, rows: Iterable[Rejected]) -> None:
        """Some more."""
        for row in rows:
            self.count += 1
            where, why = _shown(row.where), _shown(row.why)
            if row.size is not None:
                self.of_other_size, self.size = self.of_other_size + 1, row.size
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
    """As it can be written and shown: what is no UTF-8 in the name of a file is escaped, too."""
    return escaped(text)
