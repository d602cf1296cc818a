"""What a landscape is made of: the examples, the loss, and the W in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.arrays import Bytes, Floats
from distsgd.data.conversion import Conversion
from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.lecture.choices import check_loss
from distsgd.lecture.experiments.landscape_directions import Path, path_of
from distsgd.lecture.material import Examples, check_limit
from distsgd.runs.opened_run import dataset_of_run
from distsgd.training.measuring import conversion_for

__all__ = ["LARGEST", "Scene", "View", "middle", "scene_of", "view_of"]

LARGEST = 1e30
"""The largest number that an extent, a scale or a penalty may be: its square is finite."""

_SCALE = 64.0
_EXAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class View:
    """The examples that are looked at, as the model sees them.

    Attributes:
        dataset: where they come from.
        low: number of the first.
        high: one more than that of the last.
        mean: what is subtracted from pixels.
        scale: what they are divided by.
        conversion: to the examples that the run takes; None for those of the dataset.
    """

    dataset: str
    low: int
    high: int
    mean: Floats
    scale: float
    conversion: Conversion | None = None

    def examples(self, opened: Dataset, low: int, high: int) -> Examples:
        """Training examples low to high - 1."""
        pixels: Bytes = np.empty((high - low, opened.manifest.features), dtype=np.uint8)
        opened.train.gather(np.arange(low, high), pixels)
        labels, classes = opened.train.labels[low:high], len(opened.manifest.classes)
        if self.conversion is not None:
            pixels, labels = self.conversion.pixels(pixels), self.conversion.labels(labels)
            classes = self.conversion.classes
        features = np.ones((high - low, len(self.mean) + 1))
        features[:, :-1] = (pixels - self.mean) / self.scale
        return Examples(features, labels.astype(np.intp), classes)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is looked at: a run's settings where none were given.

    Attributes:
        dataset: where examples come from.
        loss: "svm" or "softmax".
        regularization: lambda.
        scale: what centred pixels are divided by.
        path: of the run; None without one.
        around: what W is; empty for random W.
    """

    dataset: str
    loss: str
    regularization: float
    scale: float
    path: Path | None
    around: str


def scene_of(
    run: str | None, dataset: str | None, loss: str | None, regularization: float | None
) -> Scene:
    """What was asked for, filled up with the settings of a run.

    Raises:
        UsageError: loss or lambda cannot be used.
        RunError: see `path_of`, or the run's dataset is another by now.
    """
    given = {"dataset": dataset, "loss": loss, "regularization": regularization}
    found: dict[str, Any] = {
        "dataset": "cifar10", "loss": "svm", "regularization": 0.0, "scale": _SCALE,
        "path": None, "around": "",
    }  # fmt: skip
    if run is not None:
        folder, path = path_of(run)
        settings = folder.settings()
        own = settings.dataset if dataset is not None else str(dataset_of_run(folder).folder)
        found = {
            "dataset": own, "loss": settings.loss,
            "regularization": settings.regularization, "scale": settings.pixel_scale,
            "path": path, "around": f"the last W of {folder.path.name}",
        }  # fmt: skip
    found.update({name: value for name, value in given.items() if value is not None})
    check_loss(found["loss"])
    if not 0 <= found["regularization"] <= LARGEST:
        words = f"Give a number from 0 to {LARGEST:g}"
        raise UsageError(f"--regularization cannot be {regularization}", words)
    return Scene(**found)


def middle(scene: Scene, opened: Dataset, scale: float, seed: int) -> Floats:
    """W: the run's last, or randn * scale.

    Raises:
        UsageError: the scale cannot be used.
    """
    if scene.path is None:
        if not 0 <= scale <= LARGEST:
            words = f"Give a number from 0 to {LARGEST:g}"
            raise UsageError(f"--scale cannot be {scale:g}", words)
        shape = len(opened.manifest.classes), opened.manifest.features + 1
        return np.random.default_rng(seed).standard_normal(shape) * scale
    weights: Floats = scene.path.weights[-1]
    return weights


def view_of(scene: Scene, opened: Dataset, examples: int | None, example: int | None) -> View:
    """The first examples, or only one of them.

    Raises:
        UsageError: there are fewer, or they do not go with the run, see `Conversion`.
    """
    model = scene.path.model if scene.path else None
    if example is None:
        few = min(_EXAMPLES, len(opened.train))
        wanted = few if examples is None else examples
        low, high = 0, check_limit("--examples", wanted, len(opened.train))
    else:
        low = check_limit("--example", example, len(opened.train) - 1, least=0)
        high = low + 1
    mean = opened.pixel_mean if model is None else model.preprocessing.mean
    conversion = conversion_for(model, opened) if model is not None else None
    return View(scene.dataset, low, high, mean.astype(float), scene.scale, conversion)
