"""An open run: its folder, settings, dataset and journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import Dataset, OtherDataset, open_dataset
from distsgd.errors import JournalError, RunError, UsageError
from distsgd.runs.checkpoint import Model, checkpoint_path, checkpoint_versions, read_checkpoint
from distsgd.runs.folder import RunFolder, find_run
from distsgd.runs.journal import Entry, Journal, Mark, first_digest, read_journal, whole_journal

__all__ = ["OpenedRun", "check_room", "dataset_of_run", "open_run"]


_MIB = 2**20


def check_room(config: TrainConfig, dataset: Dataset) -> None:
    """See whether the cache is large enough for what has to be in it at once.

    Raises:
        UsageError: it is not, or the settings want all of a dataset that is streamed.
    """
    train, test = ([entry.size for entry in dataset.manifest.shards(s)] for s in ("train", "test"))
    if dataset.streamed and config.verify:
        raise UsageError(
            f"{config.spelling.setting('verify')} does not go with {config.given('shuffle')} of a "
            "remote dataset: it needs all of it",
            f"Give {config.spelling.given('shuffle', 'global')}, or verify with a copy of the "
            "dataset here",
        )
    if not config.cache_limit:
        return
    if not dataset.streamed:
        needed = sum(train) + sum(test)
        hint = f"or give {config.spelling.given('shuffle', 'shard')}, which needs a few shards"
    else:
        # Two windows: the end of one and the beginning of the next.
        most = sorted(train, reverse=True)[: 2 * config.shuffle_window]
        needed = sum(most) + sum(test)
        hint = f"or mix fewer shards: {config.spelling.given('shuffle_window', 1)}"
    if needed > config.cache_limit:
        raise UsageError(
            f"{config.given('cache_size')} is not enough: {-(-needed // _MIB)} MiB have to be on a "
            "node at once",
            f"Raise it, {hint}",
        )


@dataclass(frozen=True)
class OpenedRun:
    """A run.

    Attributes:
        folder: its folder.
        origin: the settings that it began with.
        dataset: what it is trained on.
    """

    folder: RunFolder
    origin: TrainConfig
    dataset: Dataset

    @property
    def first(self) -> str:
        """The first digest of its journal."""
        settings = self.folder.read("config.json")["settings"]
        return first_digest(settings, self.dataset.manifest.digest)

    def journal(self) -> Journal:
        """All of its journal, as it is now; see `whole_journal`."""
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
        """The checkpoint that a journal begins with: the first, or where the rest was dropped.

        Raises:
            RunError: it is missing or damaged.
            JournalError: the journal belongs to no checkpoint.
        """
        if not begin.lines:
            path = checkpoint_path(self.folder.checkpoints, 0)
            return read_checkpoint(path, self.origin.model)
        # Every update is a line, so that the version is no larger than the number of lines.
        versions = checkpoint_versions(self.folder.checkpoints)
        for model in self._readable(v for v in reversed(versions) if v <= begin.lines):
            if model.place is not None and model.place.mark == begin:
                return model
        raise JournalError(begin.lines, "there is no checkpoint where the journal begins")


def open_run(run: str | Path) -> OpenedRun:
    """A run, its settings, and the dataset it was trained on.

    Raises:
        RunError: the run or its dataset cannot be found, or is another than it was.
    """
    folder = find_run(run)
    return OpenedRun(folder, folder.settings(), dataset_of_run(folder))


def dataset_of_run(folder: RunFolder) -> Dataset:
    """The very dataset that a run was trained on: where it was, or else by its name.

    Raises:
        RunError: there is only another one by now, or config.json is damaged.
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
            "Put the old one back; `distsgd evaluate` measures the run on the new one with "
            f"--dataset {config.dataset}",
        ) from None
