"""A run folder opened: its settings, dataset, journal and checkpoints behind one object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distsgd.config.jobs import held_out_rows, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.optim import Residuals
from distsgd.data.dataset import Dataset, OtherDataset, open_dataset
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import JournalError, RunError
from distsgd.runs.checkpoint import (
    Model,
    Place,
    checkpoint_path,
    checkpoint_versions,
    read_checkpoint,
    shaped,
)
from distsgd.runs.folder import RunFolder, create_run, find_run, products_of, versions
from distsgd.runs.journal import Entry, Journal, Mark, first_digest, read_journal, whole_journal
from distsgd.runs.origin import Origin
from distsgd.runs.parent import Parent, parent_of
from distsgd.runs.residual_file import read_residuals

__all__ = ["OpenedRun", "dataset_of_run", "new_run", "open_folder", "open_run"]


@dataclass(frozen=True)
class OpenedRun:
    """A run.

    Attributes:
        folder: its folder.
        origin: the settings it started with.
        dataset: the dataset it is trained on.
    """

    folder: RunFolder
    origin: TrainConfig
    dataset: Dataset

    def job(self, config: TrainConfig) -> Job:
        """The job that settings describe on the dataset of this run."""
        return make_job(config, self.dataset, self.products)

    @property
    def products(self) -> str:
        """See `products_of`.

        Raises:
            RunError: config.json is missing or damaged.
        """
        return products_of(self.folder)

    @property
    def first(self) -> str:
        """The digest before the first line of its journal.

        Raises:
            RunError: config.json is missing or damaged.
        """
        settings = self.folder.read("config.json")["settings"]
        return first_digest(settings, self.dataset.manifest.digest)

    @property
    def parent(self) -> Parent | None:
        """The run that it was forked from; None if it was not.

        Raises:
            RunError: config.json is missing or damaged.
        """
        return parent_of(self.folder)

    def journal(self) -> Journal:
        """Its whole journal, as it is now.

        Raises:
            JournalError: it cannot be read.
        """
        return whole_journal(self.folder.path, self.first)

    def entries(self, begin: Mark) -> Iterator[tuple[Entry, Mark]]:
        """The lines of its journal from a mark on; see `read_journal`."""
        return read_journal(self.folder.path, begin)

    def checkpoints(self) -> Iterator[Model]:
        """The checkpoints that can be read, newest first."""
        yield from self._readable(reversed(checkpoint_versions(self.folder.checkpoints)))

    def _readable(self, versions: Iterable[int]) -> Iterator[Model]:
        for version in versions:
            try:
                path = checkpoint_path(self.folder.checkpoints, version)
                yield read_checkpoint(path, self.origin.model)
            except RunError:
                continue

    def base(self, begin: Mark) -> Model:
        """The checkpoint where a journal begins: the first, or where earlier lines were dropped.

        Raises:
            RunError: it is missing or damaged.
            JournalError: there is no checkpoint where the journal begins.
        """
        if not begin.lines and self.parent is None:
            path = checkpoint_path(self.folder.checkpoints, 0)
            return read_checkpoint(path, self.origin.model)
        # Every update is a line, so that the version is no larger than the number of lines.
        versions = checkpoint_versions(self.folder.checkpoints)
        for model in self._readable(v for v in reversed(versions) if v <= begin.lines):
            if model.place is not None and model.place.mark == begin:
                return model
        raise JournalError(begin.lines, "there is no checkpoint where the journal begins")

    def residuals(self, model: Model) -> Residuals:
        """The residuals of error feedback that belong to a checkpoint; none without feedback.

        Raises:
            RunError: they are missing or damaged.
        """
        config = self.origin
        if model.version == 0 or config.compress == "none" or not config.error_feedback:
            return {}
        if model.residuals is None or model.place is None:
            raise RunError(
                f"the checkpoint of update {model.version} has no residuals", "Train again"
            )
        about = model.version, model.residuals, config.dtype, model.architecture.parameters
        try:
            return read_residuals(self.folder.checkpoints, *about)
        except RunError:
            with suppress(RunError):
                return read_residuals(self.folder.snapshots, *about)
            raise

    def model(self, job: Job, snapshot: Snapshot, place: Place | None = None) -> Model:
        """A snapshot of the server as a checkpoint holds it, without residuals.

        Args:
            job: the settings there.
            snapshot: the server.
            place: where in the run that is; None if unknown.
        """
        manifest, architecture = self.dataset.manifest, job.architecture
        return Model(
            model=job.model,
            weights=architecture.unpad(snapshot.weights),
            state=shaped(snapshot.state, architecture),
            version=snapshot.version,
            loss=job.loss,
            classes=manifest.classes,
            shape=manifest.shape,
            preprocessing=job.preprocessing,
            reads=shaped(snapshot.reads, architecture),
            place=place,
            columns=manifest.columns,
            arithmetic=job.arithmetic,
        )


def new_run(
    path: Path | None, config: TrainConfig, dataset: Dataset, chaos: str | None = None,
    origin: Origin | None = None, parent: Parent | None = None, products: str | None = None,
) -> OpenedRun:  # fmt: skip
    """Make a run folder that is marked as running; see `create_run` for arguments and errors.

    Args:
        parent: the run that it is forked from.
        products: how it multiplies its slots; None for the best way here.
    """
    manifest = dataset.manifest
    identity = {
        "name": manifest.name,
        "folder": str(dataset.folder.resolve()),
        "digest": manifest.digest,
        "train": manifest.rows("train"),
        "test": manifest.rows("test"),
        "classes": list(manifest.classes),
        "shape": list(manifest.shape),
    }
    if config.validation:
        held_out = len(held_out_rows(config, dataset))
        identity["trained"] = manifest.rows("train") - held_out
    if config.filled:
        identity["recipe"] = config.filled
    about = {} if origin is None else {n: v for n, v in asdict(origin).items() if v is not None}
    if parent is not None:
        about["parent"] = parent.to_json()
    if products is not None:
        about["versions"] = {**versions(), "products": products}
    return OpenedRun(create_run(path, config, identity, chaos, about), config, dataset)


def open_run(run: str | Path) -> OpenedRun:
    """A run, its settings, and the dataset it was trained on.

    Raises:
        RunError: the run or its dataset cannot be found, or the dataset has changed.
    """
    folder = find_run(run)
    return OpenedRun(folder, folder.settings(), dataset_of_run(folder))


def open_folder(folder: RunFolder, dataset: Dataset) -> OpenedRun:
    """A run by its folder, on a dataset that is open already.

    Raises:
        RunError: it was trained on another dataset, or its config.json is damaged.
    """
    try:
        digest = folder.read("config.json")["dataset"]["digest"]
    except (KeyError, TypeError):
        raise RunError(f"{folder.path / 'config.json'} is damaged", "Train again") from None
    if digest != dataset.manifest.digest:
        raise RunError(f"{folder.path} was trained on another dataset", "Train again")
    return OpenedRun(folder, folder.settings(), dataset)


def dataset_of_run(folder: RunFolder) -> Dataset:
    """The dataset that a run was trained on: where it was, or else by its name.

    Raises:
        RunError: there is only a different one now, or config.json is damaged.
        DatasetError: there is none.
        SourceError: it lies at an address that this user has never given.
    """
    config = folder.settings()
    try:
        recorded = folder.read("config.json")["dataset"]
        place, digest = Path(recorded["folder"]), str(recorded["digest"])
    except (KeyError, TypeError):
        raise RunError(f"{folder.path / 'config.json'} is damaged", "Train again") from None
    try:
        return open_dataset(
            config.dataset, trusted=False, folder=place, digest=digest,
            cache_limit=config.cache_limit, stream=config.streams,
        )  # fmt: skip
    except OtherDataset as error:
        raise RunError(
            f"{error.folder} is no longer the dataset that the run was trained on",
            "Put the old one back, or evaluate the run on the new one: `distsgd evaluate "
            f"--dataset {config.dataset}`",
        ) from None
