"""A run as it was after one of its updates, as a Python object."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsgd.config.settings import TrainConfig
from distsgd.runs import RunFolder, handle, weights_sha256
from distsgd.runs.export import ExportedModel, exported, to_sklearn
from distsgd.runs.templates import templates_of
from distsgd.training.evaluation import Evaluation, evaluate_model
from distsgd.training.past import PastModel
from distsgd.training.predictor import Predictor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LoadedMoment"]


class LoadedMoment:
    """A run after an update, with the bits that the training had there. It does not change.

    Args:
        folder: the run folder.
        past: the run then.

    Attributes:
        update: how many updates there were.
        epoch: examples applied, over those of an epoch: 2.5 is in the middle of the third.
        settings: then; of an update that a fork shares with its parent, the parent's.
    """

    def __init__(self, folder: RunFolder, past: PastModel) -> None:
        self._folder, self._model = folder, past.model
        self.update: int = past.model.version
        self.epoch: float = past.epoch
        self.settings: TrainConfig = past.settings

    def __repr__(self) -> str:
        return f"<{handle(self._folder)} after update {self.update:,}, epoch {self.epoch:.3g}>"

    @property
    def run_dir(self) -> str:
        """The run folder."""
        return str(self._folder.path)

    @property
    def weights(self) -> NDArray[np.floating]:
        """W as a checkpoint holds it: shape (classes, features + 1), the last column the bias; of
        two layers one vector, W1 row by row and then W2.
        """  # fmt: skip
        return self._model.weights

    @property
    def optimizer_state(self) -> dict[str, NDArray[np.floating]]:
        """The optimiser's arrays by name, each of the shape of `weights`; sgd has none."""
        return dict(self._model.state)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of W, as commands show it."""
        return weights_sha256(self._model.weights)

    def model(self) -> ExportedModel:
        """The matrices, biases and preprocessing, for computing elsewhere."""
        return exported(self._model)

    def predictor(self) -> Predictor:
        """The model, to classify rows in memory again and again."""
        return Predictor(self._model, handle(self._folder))

    def templates(self) -> NDArray[np.uint8] | None:
        """The rows of W as images; see `LoadedRun.templates`."""
        return templates_of(self._model)

    def to_sklearn(self) -> Any:
        """A fitted scikit-learn pipeline; see `LoadedRun.to_sklearn`."""
        return to_sklearn(self.model())

    def evaluate(self, *, dataset: str | Path | None = None, split: str = "test") -> Evaluation:
        """Measure loss and accuracy; see `distsgd.evaluate`."""
        name = None if dataset is None else str(dataset)
        return evaluate_model(
            self._folder, self._model, self.settings, dataset=name, split=split
        )  # fmt: skip
