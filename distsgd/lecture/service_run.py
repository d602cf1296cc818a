"""Runs of the service that an experiment makes and looks at, and that leave nothing behind."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsgd.training.reporter import Reporter
from distsgd.training.results import EpochRow, TrainResult
from distsgd.training.training import train

__all__ = ["Trained", "train_for_study"]


@dataclass(frozen=True)
class Trained:
    """What an experiment keeps of a run.

    Attributes:
        result: at the end.
        epochs: one row for each epoch.
    """

    result: TrainResult
    epochs: tuple[EpochRow, ...]


class _Listener(Reporter):
    def __init__(self) -> None:
        self.rows: list[EpochRow] = []

    def epoch(self, row: EpochRow) -> None:
        self.rows.append(row)


def train_for_study(dataset: str | Path, **settings: Any) -> Trained:
    """Train as `distsgd.train` does, in a folder that is removed afterwards."""
    listener = _Listener()
    with tempfile.TemporaryDirectory(prefix="distsgd-study-") as folder:
        result = train(dataset, run_dir=Path(folder, "run"), reporter=listener, **settings)
    return Trained(result, tuple(listener.rows))
