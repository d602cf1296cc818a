"""The progress of a training as lines of text."""

from __future__ import annotations

import sys
from pathlib import Path

from distsgd.config.settings import TrainConfig
from distsgd.core.model import LINEAR
from distsgd.training.results import EpochRow, Reporter, TrainResult

__all__ = ["HEADING", "PrintedProgress", "result_line", "row_line", "title_line"]

HEADING = f"{'epoch':>5}  {'loss':>8}  {'train':>7}  {'test':>7}  {'seconds':>7}"


def title_line(config: TrainConfig) -> str:
    """What is trained, on what, and by how many."""
    fleet = "1 worker" if config.workers == 1 else f"{config.workers} workers"
    workers = f"{fleet} on Ray" if config.workers else "one process"
    model = "" if config.model == LINEAR else f"{config.model}, "
    return (
        f"{model}{config.loss} on {config.dataset}: {workers}, minibatches of {config.batch_size}, "
        f"{config.epochs} {'epoch' if config.epochs == 1 else 'epochs'}, seed {config.seed}"
    )


def row_line(row: EpochRow) -> str:
    """An epoch, below `HEADING`."""
    train, test = (f"{share:.1%}".replace("%", " %") for share in
                   (row.train_accuracy, row.test_accuracy))  # fmt: skip
    return f"{row.epoch:>5}  {row.train_loss:>8.4f}  {train:>7}  {test:>7}  {row.seconds:>7.2f}"


def result_line(result: TrainResult) -> str:
    """What a training came to."""
    test = f"{result.test_accuracy:.1%}".replace("%", " %")
    return (
        f"{result.status}: test accuracy {test}, {result.examples_per_second:,.0f} images/s, "
        f"run {result.run_dir}"
    )


class PrintedProgress(Reporter):
    """Prints a line for each epoch on stdout, as it is when the line is printed."""

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """Print what is trained, and the heading."""
        self._print(title_line(config), HEADING)

    def epoch(self, row: EpochRow) -> None:
        """Print the epoch."""
        self._print(row_line(row))

    def notice(self, text: str) -> None:
        """Print the notice."""
        self._print(text)

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=sys.stdout, flush=True)
