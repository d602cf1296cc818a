"""How many workers a live run is to have: a file in its folder that the user's command writes."""

from __future__ import annotations

from distsgd.data.folder_files import stat_inside
from distsgd.errors import RunError, StorageError
from distsgd.runs.folder import RunFolder

__all__ = ["WantedWorkers", "forget_wanted", "want_workers"]

_NAME = "workers.json"


def want_workers(run: RunFolder, workers: int) -> None:
    """Leave word for the process that trains.

    Raises:
        StorageError: it cannot be written.
    """
    run.write(_NAME, {"workers": workers})


def forget_wanted(run: RunFolder) -> None:
    """Forget the word that was left for a run before it is gone on with."""
    run.remove(_NAME)


class WantedWorkers:
    """What the process that trains reads of it.

    Args:
        run: the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._path = run, run.path / _NAME
        self._seen = 0

    def again(self) -> None:
        """What has been told is to be told once more: the workers are others."""
        self._seen = 0

    def __call__(self) -> int | None:
        """How many, if there is new word."""
        try:
            now = stat_inside(self._path).st_mtime_ns
        except OSError:
            return None
        if now == self._seen:
            return None
        self._seen = now
        try:
            found = self._run.read(_NAME)["workers"]
        except (RunError, StorageError, KeyError):
            return None
        return found if isinstance(found, int) and found > 0 else None
