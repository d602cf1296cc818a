"""A run as a Python object: what it was given, what it did, and what it learned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsgd.config.settings import TrainConfig
from distsgd.errors import RunError
from distsgd.figures.html import run_html
from distsgd.figures.plot import Plot, plot
from distsgd.runs import Entry, RunFolder, checkpoint_versions, find_run, handle, recorded_journal
from distsgd.runs.chosen import LAST
from distsgd.runs.export import Exported, ExportedModel, export_run, exported, to_sklearn
from distsgd.runs.history import History, HistoryReader
from distsgd.runs.metrics import metrics_table
from distsgd.runs.templates import templates_of
from distsgd.training.loaded_moment import LoadedMoment
from distsgd.training.past import Past
from distsgd.training.predictor import Predictor
from distsgd.training.results import TrainResult, result_from

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LoadedRun", "load"]


def load(run: str | Path | os.PathLike[str]) -> LoadedRun:
    """A run as an object; nothing is read before it is asked for.

    Args:
        run: path or name of a run, "latest", a `RunSummary`, or `TrainResult.run_dir`.

    Raises:
        RunError: there is no such run, or its config.json is damaged.
    """
    if isinstance(run, TrainResult):
        run = run.run_dir
    folder = find_run(Path(run) if isinstance(run, os.PathLike) else run)
    folder.read("config.json")
    return LoadedRun(folder)


class LoadedRun(os.PathLike[str]):
    """A run, which may be training: each property reads the folder as it is then.

    It is also a path, so that `distsgd.predict`, `evaluate`, `audit` and others take it.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._past = folder, Past(folder)
        self._reader: HistoryReader | None = None

    def __fspath__(self) -> str:
        return str(self._folder.path)

    def _repr_html_(self) -> str:
        """What a notebook shows: result, curves, templates."""
        return run_html(self._folder.path)

    def __repr__(self) -> str:
        return f"<distsgd run {self.name}: {self.state}>"

    @property
    def name(self) -> str:
        """By which commands find it, or its path."""
        return handle(self._folder)

    @property
    def run_dir(self) -> str:
        """The run folder."""
        return str(self._folder.path)

    @property
    def state(self) -> str:
        """ "running", "finished", "interrupted", "failed", "dead" (killed) or "diverged"."""
        return self._folder.status()

    @property
    def config(self) -> TrainConfig:
        """The settings; `distsgd.train(config=run.config)` trains it again."""
        return self._folder.settings()

    @property
    def result(self) -> TrainResult | None:
        """What it came to; None if it is running, or ended by an error.

        Raises:
            RunError: report.json is damaged.
        """
        content = self._folder.report()
        if "weights_sha256" not in content:
            return None
        try:
            return result_from(content)
        except TypeError as error:
            path = self._folder.path / "report.json"
            raise RunError(f"{path} is damaged: {error}", "Remove it") from None

    @property
    def history(self) -> History:
        """Everything that pages and figures show, in bounded size."""
        if self._reader is None:
            self._reader = HistoryReader(self._folder)
        return self._reader.look()

    @property
    def metrics(self) -> Any:
        """All records of metrics.jsonl as a `pyarrow.Table`; `.to_pandas()` where pandas is.

        The columns are kind ("progress" or "epoch"), step, epoch, seconds, loss, accuracy,
        learning_rate, examples_seen, examples_per_second, train_loss, train_accuracy, test_loss
        and test_accuracy; None where a kind has no such value.
        """
        return metrics_table(self._folder.path / "metrics.jsonl")

    @property
    def journal(self) -> Iterator[Entry]:
        """The lines of the journal one after the other, each checked against the chain.

        Raises:
            JournalError: a line is invalid; names it.
        """
        journal = recorded_journal(self._folder.path, self._folder.read("config.json"))
        for entry, _ in journal.entries():
            yield entry

    @property
    def checkpoints(self) -> list[int]:
        """The number of updates of each checkpoint, ascending."""
        return checkpoint_versions(self._folder.checkpoints)

    @property
    def weights(self) -> NDArray[np.floating]:
        """W of the newest checkpoint, as it holds it: shape (classes, features + 1), the last
        column the bias; with two layers one vector, W1 row by row and then W2. `model` splits it.
        """  # fmt: skip
        return self._past.model().weights

    @property
    def updates(self) -> int:
        """How many updates the journal has, those of a fork's parent included."""
        return self._past.updates

    def at(self, update: int | str) -> LoadedMoment:
        """The run as it was after an update, recomputed to the same bits.

        Args:
            update: a number, from 0, the start; negative from the end, -1 the last; "last",
                "last-N", "epoch:N" (its end), or a time of training such as "90s".

        Raises:
            UsageError: the run has no such update.
            RunError: it cannot be recomputed: its dataset has changed, the parent of a fork is
                gone, or the journal begins later.
        """
        return LoadedMoment(self._folder, self._past.at(update))

    def model(self, checkpoint: str | int = LAST) -> ExportedModel:
        """The matrices, biases and preprocessing of a checkpoint, for computing elsewhere.

        Args:
            checkpoint: "last", "best", or an update, as for `at`.
        """
        return exported(self._past.model(checkpoint))

    def predictor(self, checkpoint: str | int = LAST) -> Predictor:
        """The model of a checkpoint, loaded, to classify rows in memory again and again.

        Args:
            checkpoint: "last", "best", or an update, as for `at`.
        """
        return Predictor(self._past.model(checkpoint), handle(self._folder))

    def templates(self, checkpoint: str | int = LAST) -> NDArray[np.uint8] | None:
        """The rows of W, or of W1, as images; None if the examples are no images.

        Args:
            checkpoint: "last", "best", or an update, as for `at`.

        Returns:
            shape (units, height, width, channels), uint8.
        """
        return templates_of(self._past.model(checkpoint))

    def plot(
        self, figure: str = "loss", x: str = "epoch", size: str = "page", dark: bool = False
    ) -> Plot:
        """A figure of the run, which a notebook shows, and which can be saved.

        Args:
            figure: "loss", "accuracy", "learning-rate", "throughput", "workers", "staleness",
                "bytes", "confusion", "classes", "templates" or "timeline".
            x: the x axis: "epoch", "update" or "seconds".
            size: "page", "slide", or "column" (of a paper).
            dark: light on dark.

        Raises:
            UsageError: an argument cannot be used, or the run has recorded nothing of it.
        """
        return plot(figure, [self.history], x, size, dark)

    def plot_loss(self, x: str = "epoch", size: str = "page", dark: bool = False) -> Plot:
        """The loss of minibatches, training and test set; see `plot`."""
        return self.plot("loss", x, size, dark)

    def to_sklearn(self, checkpoint: str | int = LAST) -> Any:
        """A fitted scikit-learn pipeline that takes raw rows; see `distsgd[sklearn]`.

        Args:
            checkpoint: "last", "best", or an update, as for `at`.

        Raises:
            DistsgdError: scikit-learn is not installed.
        """
        return to_sklearn(self.model(checkpoint))

    def fork(self, at: int | str, **given: Any) -> LoadedRun:
        """Another future for this run, from one of its updates: a new run, trained to its end.

        Args:
            at: a number of updates, "last", "epoch:N" (its end), or a time such as "90s".
            **given: settings that differ, such as learning_rate=0.001; and order, whole, run_dir,
                chaos, reporter, callbacks, verbose, address and tags, as for
                `distsgd.training.training.fork`.

        Returns:
            the fork.
        """
        from distsgd.training.training import fork

        return load(fork(self.run_dir, at, **given).run_dir)

    def export(
        self, to: str, out: str | Path | None = None, checkpoint: str | int = LAST
    ) -> Exported:
        """Write the run to a file for another program.

        Args:
            to: "csv", "arrow", "npz", "onnx" or "sklearn".
            out: the file; None for the name of the run, in the working folder.
            checkpoint: "last", "best", or an update, as for `at`.
        """
        return export_run(
            self._folder.path, to, out, checkpoint, lambda _, which: self._past.model(which)
        )
