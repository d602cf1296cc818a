"""A fit that is recorded: the same training with a run folder, for audit, replay and `load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.data.arrays import ArraySplit
from distsgd.data.columns import Columns
from distsgd.data.importing.arrays import store_rows
from distsgd.data.text_files import is_printable, normal
from distsgd.runs import find_run
from distsgd.runs.chosen import chosen_model
from distsgd.sklearn.standardising import Standardiser
from distsgd.training.results import EpochRow, Reporter
from distsgd.training.training import train

__all__ = ["RecordedFit", "fit_as_run"]

_MOST = 1e300
"""Numbers are not clipped: `coef_` holds for all."""


@dataclass(frozen=True, eq=False)
class RecordedFit:
    """What a recorded training came to.

    Attributes:
        run_dir: the run folder.
        weights: flat parameters, without padding.
        epochs: that were completed.
        updates: of the weights.
        losses: of the epochs.
    """

    run_dir: str
    weights: Floats
    epochs: int
    updates: int
    losses: list[float]


class _Losses(Reporter):
    def __init__(self) -> None:
        self.found: list[float] = []

    def epoch(self, row: EpochRow) -> None:
        self.found.append(row.train_loss)


def fit_as_run(
    config: TrainConfig,
    run_dir: Any,
    split: ArraySplit,
    classes: tuple[str, ...],
    standardiser: Standardiser,
    names: Sequence[str],
) -> RecordedFit:
    """Train as `distsgd.train` does.

    Args:
        config: the settings; the dataset is replaced.
        run_dir: a new folder, as text or a path.
        split: standardised rows of float32.
        classes: names of the classes.
        standardiser: of the rows.
        names: of the columns, or none.

    Raises:
        DistsgdError: as `distsgd.train`.
    """
    if len(set(classes)) < len(classes) or not all(map(is_printable, classes)):
        classes = tuple(map(str, range(len(classes))))
    own = tuple(normal(str(name)) for name in names)
    count = len(standardiser.mean)
    columns = Columns(
        names=own if len(set(own)) == len(own) else (),
        low=(-_MOST,) * count,
        high=(_MOST,) * count,
        mean=tuple(standardiser.mean.tolist()),
        spread=tuple(standardiser.scale.tolist()),
    )
    weights = None if split.weights is None else split.weights.astype(np.float32)
    dataset = store_rows(split.rows, split.labels, classes, columns, weights)
    usual = TrainConfig(dataset=dataset)
    config = replace(
        config, dataset=dataset, log_every=usual.log_every,
        checkpoint_seconds=usual.checkpoint_seconds,
    )  # fmt: skip
    losses = _Losses()
    result = train(config=config, run_dir=run_dir, reporter=losses)
    found = chosen_model(find_run(result.run_dir)).weights.reshape(-1)
    return RecordedFit(result.run_dir, found, result.epochs, result.steps, losses.found)
