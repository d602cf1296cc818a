"""Evaluation of a run on a dataset, and predictions for images and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.config.jobs import held_out_rows
from distsgd.config.settings import TrainConfig
from distsgd.config.table import one_of
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import UsageError
from distsgd.runs import Model, RunFolder, find_run, read_newest, weights_sha256
from distsgd.runs.chosen import best_model
from distsgd.runs.opened_run import dataset_of_run
from distsgd.spelling import spelling
from distsgd.training.arguments import as_whole_number
from distsgd.training.measuring import measure_split
from distsgd.training.past import Past
from distsgd.training.predictor import Predictor

__all__ = [
    "SPLITS",
    "Evaluation",
    "Predicted",
    "Prediction",
    "evaluate",
    "evaluate_model",
    "predict",
    "predict_files",
]


SPLITS = ("test", "train", "validation")
"""What a run can be measured on."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The loss and accuracy of a checkpoint.

    Attributes:
        run_dir: the run folder.
        running: whether the run was training at the time.
        step: updates applied to W.
        dataset: what it was measured on.
        split: "test", "train" or "validation".
        examples: how many examples.
        loss: mean L_i plus the L2 penalty.
        accuracy: share of examples classified correctly.
        class_accuracy: the same for the examples of each class.
        weights_sha256: SHA-256 of W.
    """

    run_dir: str
    running: bool
    step: int
    dataset: str
    split: str
    examples: int
    loss: float
    accuracy: float
    class_accuracy: dict[str, float]
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of one image or row.

    Attributes:
        image: the file, with the row if it has several: ``flowers.csv row 3``.
        classes: names of the most likely classes, the first the likeliest.
        probabilities: softmax of the scores, for each of these classes. An SVM is not trained
            to give probabilities: there, they only order the classes.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[0]


def _model(run: RunFolder, best: bool, at: int | str | None) -> tuple[Model, TrainConfig]:
    """The newest checkpoint of a run, that of its best epoch, or W after an update; the settings.

    Raises:
        UsageError: too much is asked for, or the run has no such update.
        RunError: it is missing or damaged.
    """
    if best and at is not None:
        names = spelling().setting("best"), spelling().setting("at")
        raise UsageError(f"{names[0]} does not go with {names[1]}", "Give one of them")
    if at is not None:
        return Past(run).after(at)
    settings = run.settings()
    if best:
        return best_model(run, f"Leave out {spelling().setting('best')}"), settings
    return read_newest(run.checkpoints, settings.model), settings


def evaluate(
    run: str | Path,
    *,
    dataset: str | None = None,
    split: str = "test",
    best: bool = False,
    at: int | str | None = None,
) -> Evaluation:
    """Measure the loss and accuracy of a run.

    Args:
        run: path or name of a run, or "latest".
        dataset: another dataset, whose columns and classes are matched by name and whose numbers
            are scaled as the run's were; None for the dataset it was trained on.
        split: "test", "train" (the rows trained on), or "validation" (those held out).
        best: use the epoch with the largest validation accuracy, not the newest checkpoint.
        at: use W after this update, recomputed if no checkpoint has it: a number, "last-N",
            "epoch:N" or a time; see `distsgd.proof.moments.MOMENTS`.

    Raises:
        UsageError: there is no such split or update.
        RunError: there is no such run, it is damaged, or its dataset has changed.
        DatasetError: the dataset is missing or damaged.
        UsageError: the dataset does not fit the run, see `Conversion`.
    """
    _check_split(split)
    folder = find_run(run)
    model, settings = _model(folder, best, at)
    return evaluate_model(folder, model, settings, dataset=dataset, split=split)


def evaluate_model(
    folder: RunFolder, model: Model, settings: TrainConfig, *, dataset: str | None, split: str
) -> Evaluation:
    """Measure a model of a run.

    Args:
        folder: the run.
        model: one of its models.
        settings: of the run, where it had that model.
        dataset: as for `evaluate`.
        split: likewise.

    Raises:
        DistsgdError: as `evaluate`.
    """
    _check_split(split)
    chosen = settings.dataset if dataset is None else dataset
    if dataset is None:
        opened = dataset_of_run(folder)
    else:
        opened = open_dataset(dataset, cache_limit=settings.cache_limit, stream=settings.streams)
    running = folder.status() == "running"
    rows = None
    if dataset is None and settings.validation and split != "test":
        held_out = held_out_rows(settings, opened)
        everything = np.arange(len(opened.train), dtype=np.int64)
        rows = held_out if split == "validation" else np.delete(everything, held_out)
    elif split == "validation":
        raise UsageError(
            f"{folder.path} has no rows held out" + " of another dataset" * (dataset is not None),
            f"Give {spelling().given('split', 'test')}",
        )
    part = "test" if split == "test" else "train"
    with one_blas_thread():
        found = measure_split(model, opened, part, settings.regularization or 0.0, rows=rows)
    counts = found.confusion.sum(axis=1)
    return Evaluation(
        run_dir=str(folder.path),
        running=running,
        step=model.version,
        dataset=chosen,
        split=split,
        examples=int(counts.sum()),
        loss=found.loss,
        accuracy=found.accuracy,
        class_accuracy={
            name: float(found.confusion[i, i] / counts[i]) if counts[i] else float("nan")
            for i, name in enumerate(model.classes)
        },
        weights_sha256=weights_sha256(model.weights),
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(
            f"{spelling().setting('split')} cannot be {split}", f"Give {one_of(SPLITS)}"
        )


def _files(given: Any) -> list[Path]:
    """Paths, at least one.

    Raises:
        UsageError: there are none, or something else.
    """
    one = isinstance(given, str | Path) or not isinstance(given, Iterable)
    files = [given] if one else list(given)
    for file in files:
        if not isinstance(file, str | Path):
            raise UsageError(
                f"a {type(file).__name__} cannot be classified", "Give paths of files, or an array"
            )
    if not files:
        raise UsageError("there is nothing to classify", "Give a file")
    return [Path(file) for file in files]


def predict(
    run: str | Path,
    images: str | Path | Iterable[str | Path] | NDArray[Any],
    *,
    top: int = 3,
    best: bool = False,
    at: int | str | None = None,
    rejected: list[tuple[str, str]] | None = None,
) -> list[Prediction]:
    """Classify image files, rows of CSV, Parquet and NPZ files, or rows in memory.

    Args:
        run: path or name of a run, or "latest".
        images: one file or several. Images of any format and size, which are resized to the
            model's shape; for a model of columns, files that have these columns. Or an array of
            shape (rows, features), or (features,) of one row, with the numbers as they were
            imported: pixels from 0 to 255, channel by channel, or columns in their order. Or a
            table (pandas.DataFrame) with these columns.
        top: how many classes to name.
        best: use the epoch with the largest validation accuracy, not the newest checkpoint.
        at: use W after this update, as for `evaluate`.
        rejected: a list, to which rows of files that cannot be classified are added, each with
            what is wrong with it; None to raise an error at the first one.

    Raises:
        RunError: there is no such run, or it is damaged.
        UsageError: a file is missing, or has other columns; or an array is of another shape.
        SourceError: a row lacks a number, or an image cannot be read.
    """
    as_whole_number(spelling().setting("top"), top, least=1)
    if not hasattr(images, "__array__"):
        found = []
        strict = rejected is None
        files = _files(images)
        for batch in predict_files(run, files, top=top, best=best, at=at, strict=strict):
            found += batch.predictions
            if rejected is not None:
                rejected += batch.rejected
        return found
    predictor = Predictor(_model(find_run(run), best, at)[0])
    rows = predictor.rows(images)
    names = [f"row {row}" for row in range(1, len(rows) + 1)]
    return _predictions(predictor, names, rows, top)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The predictions of some rows of files.

    Attributes:
        predictions: one a row that can be classified, in order.
        rejected: file and place of each other row, and what is wrong with it.
        unknown: column -> words of all rows up to here that the model does not know, which count
            as none of its words.
    """

    predictions: list[Prediction]
    rejected: list[tuple[str, str]]
    unknown: Mapping[str, int]


def predict_files(
    run: str | Path,
    files: Sequence[Path],
    *,
    top: int = 3,
    best: bool = False,
    at: int | str | None = None,
    strict: bool = False,
) -> Iterator[Predicted]:
    """Classify the rows of files a batch at a time, in bounded memory.

    Args:
        run: path or name of a run, or "latest".
        files: images, or CSV, Parquet and NPZ files; "-" is CSV from standard input.
        top: how many classes to name.
        best: use the epoch with the largest validation accuracy, not the newest checkpoint.
        at: use W after this update, as for `evaluate`.
        strict: raise an error at the first row that cannot be classified.

    Raises:
        RunError: there is no such run, or it is damaged.
        UsageError: a file of rows is missing, of another kind, or has other columns.
        SourceError: a file cannot be read to its end; or, if strict, a row.
    """
    from distsgd.data.importing.given_rows import GivenRows  # not before a training: pyarrow

    model, _ = _model(find_run(run), best, at)
    predictor, given = Predictor(model), GivenRows(model.shape, model.columns, strict)
    for batch in given.batches(files):
        yield Predicted(
            predictions=_predictions(predictor, batch.where, batch.rows, top),
            rejected=[(one.where, one.why) for one in batch.rejected],
            unknown=given.unknown,
        )


def _predictions(
    predictor: Predictor, names: list[str], rows: NDArray[Any], top: int
) -> list[Prediction]:
    found = predictor.likeliest(predictor.probabilities_of_rows(rows), top) if names else iter(())
    return [
        Prediction(image=name, classes=classes, probabilities=probabilities)
        for name, (classes, probabilities) in zip(names, found, strict=True)
    ]
