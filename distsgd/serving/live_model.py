"""The model that is served: the newest or best checkpoint of a run, also while the run trains."""

from __future__ import annotations

import logging
from pathlib import Path

from distsgd.errors import DistsgdError
from distsgd.runs import best_epoch, checkpoint_path, checkpoint_versions, find_run
from distsgd.runs.chosen import BEST, LAST
from distsgd.training.past import model_after
from distsgd.training.predictor import Predictor

__all__ = ["LiveModel"]

_log = logging.getLogger("distsgd")

Stamp = tuple[object, ...]


class LiveModel:
    """Holds a predictor, and replaces it when the run has another checkpoint to serve.

    A replacement is one assignment: what was begun with the old one ends with it. If a checkpoint
    cannot be read, the old one stays. Nothing is written, so a full disk is no obstacle.

    Args:
        run: path or name of a run, or "latest".
        checkpoint: "last" or "best", which are followed, or an update, which stays.

    Attributes:
        current: the predictor.
        replaced: how often it has been replaced.
        failed: how often a checkpoint could not be read.

    Raises:
        RunError: there is no such run, or no such checkpoint, or a damaged one.
        UsageError: it has no such update.
    """

    def __init__(self, run: str | Path, checkpoint: str | int = LAST) -> None:
        self._folder, self._checkpoint = find_run(run), checkpoint
        self.replaced = self.failed = 0
        self._metrics: Stamp = ()
        self._best: int | None = None
        self._said = ""
        self._stamp = self._look()
        self.current = self._load()

    @property
    def follows(self) -> bool:
        """Whether the predictor may be replaced."""
        return self._checkpoint in (LAST, BEST)

    def refresh(self) -> bool:
        """Load the checkpoint to serve if it is not the current one; whether it was replaced.

        Called by one thread at a time; others may use `current` meanwhile.
        """
        if not self.follows:
            return False
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            found = self._load()
        except (DistsgdError, OSError) as error:
            self.failed += 1
            self._say_once(f"update {self.current.version} is served on: {error}")
            return False
        changed = found.weights_sha256 != self.current.weights_sha256
        if changed or found.version != self.current.version:
            self.current = found
            self.replaced += 1
        self._stamp, self._said = stamp, ""
        return True

    def _load(self) -> Predictor:
        # Clients are told the name of the run, and not where it lies.
        return Predictor(model_after(self._folder, self._checkpoint), self._folder.path.name)

    def _look(self) -> Stamp:
        """What tells one checkpoint to serve from another, at the cost of a few system calls."""
        version = self._wanted()
        if version is None:
            return ()
        return version, _stamp_of(checkpoint_path(self._folder.checkpoints, version))

    def _wanted(self) -> int | None:
        if self._checkpoint != BEST:
            return max(checkpoint_versions(self._folder.checkpoints), default=None)
        metrics = _stamp_of(self._folder.path / "metrics.jsonl")
        if metrics != self._metrics or not metrics:
            best = best_epoch(self._folder.path)
            self._metrics, self._best = metrics, best[-1] if best else None
        return self._best

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.warning(text)


def _stamp_of(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
