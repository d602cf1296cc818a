"""The dataset of a run, opened as its settings want it."""

from __future__ import annotations

from pathlib import Path

from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.config.settings import TrainConfig

__all__ = ["check_room", "dataset_of"]

_MIB = 2**20


def dataset_of(config: TrainConfig, folder: Path) -> Dataset:
    """The dataset in a folder; with ``shuffle`` "shard", a remote one is streamed."""
    return Dataset(folder, cache_limit=config.cache_limit, stream=config.shuffle == "shard")


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
