"""When to end: once the validation loss has not become smaller for some epochs (early stopping).

And whether a run has ended too early: while its training loss was still falling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distsgd.runs.metrics import read_metrics

__all__ = ["Patience", "patience_of", "still_falling"]

_FEWEST, _FALLING, _NOT_LEVEL = 3, 0.1, 0.01
"""Epochs, share of the last loss, and share of the whole fall, from which a loss is falling.

By experiment: CIFAR-10, its sample, and scikit-learn's digits, iris, wine and breast cancer fall by
1 to 8 % in the second half of their default epochs, linear or with a hidden layer; the four of
scikit-learn by 13 to 84 % if they have four epochs. It does not see a learning rate that is far too
small: the schedule levels its loss.
"""


class Patience:
    """Counts the epochs since the smallest validation loss.

    Args:
        epochs: without a smaller one, after which a run ends; 0 for never.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._least, self._since, self._last = math.inf, 0, 0

    def add(self, epoch: int, loss: float) -> None:
        """An epoch has ended.

        Args:
            epoch: from 1.
            loss: of the rows held out.
        """
        self._last = epoch
        if loss < self._least:
            self._least, self._since = loss, epoch

    def wait_from(self, epoch: int) -> None:
        """Count no epochs up to this one: the run was made longer there."""
        self._since = max(self._since, epoch)

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end."""
        return self._epochs > 0 and self._last - self._since >= self._epochs

    def reason(self, best: int | None) -> str:
        """Why the run ends.

        Args:
            best: the epoch that `--best` gives, by validation accuracy; None if it has none.
        """
        epochs = "1 epoch" if self._epochs == 1 else f"{self._epochs} epochs"
        known = "" if best is None else f"; best epoch {best}"
        return f"stopped early: no better validation loss for {epochs}{known}"


def still_falling(losses: Sequence[float]) -> str:
    """What to tell the user if the training loss was still falling at the end; empty if it was not.

    Args:
        losses: the training loss of every epoch of the run.
    """
    if len(losses) < _FEWEST:
        return ""
    first, middle, last = losses[0], losses[(len(losses) - 1) // 2], losses[-1]
    fall = middle - last
    if not fall > max(_FALLING * last, _NOT_LEVEL * (first - last)):
        return ""
    return (
        f"the training loss was still falling, by {100 * fall / last:.0f} % over the second half "
        "of the epochs: more of them, or a larger learning rate, may give a better model"
    )


def patience_of(epochs: int, metrics: Path, version: int) -> Patience:
    """What is known when a session starts: a run that resumes counts on as if never interrupted.

    Args:
        epochs: see `Patience`.
        metrics: the metrics.jsonl of the run, with the record of this session.
        version: updates applied before the session; epochs that ended later are repeated.

    Raises:
        RunError: a line is damaged.
    """
    found = Patience(epochs)
    if not epochs:
        return found
    rows: dict[int, dict[str, Any]] = {}
    planned = since = 0
    for record in read_metrics(metrics):
        if record.get("kind") == "epoch":
            rows[record["epoch"]] = record
        elif record.get("kind") == "session":
            rows = _until(rows, record["step"])
            longer = int(record.get("epochs") or 0)
            since = max(rows, default=0) if longer > planned else since
            planned = max(planned, longer)
    for epoch, row in sorted(_until(rows, version).items()):
        found.add(epoch, row.get("validation_loss", math.inf))
    found.wait_from(since)
    return found


def _until(rows: dict[int, dict[str, Any]], version: int) -> dict[int, dict[str, Any]]:
    return {epoch: row for epoch, row in rows.items() if row["version"] <= version}
