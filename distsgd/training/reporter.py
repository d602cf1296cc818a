"""How a caller follows a training."""

from __future__ import annotations

from pathlib import Path

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.training.results import EpochRow

__all__ = ["Reporter"]


class Reporter:
    """Told how training goes. This one says nothing; override what is of interest."""

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """The run folder is there, and work begins."""

    def progress(self, progress: Progress) -> None:
        """Some updates have been applied."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over."""

    def notice(self, text: str) -> None:
        """Something has happened that does not end the training, such as a server's death."""

    def ended(self) -> None:
        """No more steps; the final evaluation follows."""
