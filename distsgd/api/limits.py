"""Whether a training can be placed at all, seen before anything of it is made."""

from __future__ import annotations

import math

import numpy as np

from distsgd.core.models import make_architecture
from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.run.config import TrainConfig
from distsgd.runtime.room import check_processes, free_memory

__all__ = ["check_fleet", "check_sizes"]

_LEAST_RANGE = 256
"""Parameters that a server has at least: fewer are not worth a message."""


def check_sizes(config: TrainConfig, dataset: Dataset) -> None:
    """See that the minibatch, the servers and the model fit the dataset and the memory.

    Raises:
        UsageError: they do not; says what would do.
    """
    examples = dataset.manifest.rows("train")
    if config.batch_size > examples:
        raise UsageError(
            f"{config.given('batch_size')} is larger than the training set of {examples}",
            f"Give a number from 1 to {examples}",
        )
    features, classes = math.prod(dataset.manifest.shape), len(dataset.manifest.classes)
    parameters = make_architecture(config.model, features, classes).parameters
    most = max(4, parameters // _LEAST_RANGE)
    if config.servers > most:
        raise UsageError(
            f"{config.given('servers')} is more than W, of {parameters:,} parameters, can sensibly "
            "be cut into",
            f"Give a number from 1 to {most}",
        )
    # W, its optimiser's state and the sums of a tree at the server; W and a sum at each worker.
    slots = -(-config.batch_size // config.slot_size)
    vectors = 3 + math.ceil(math.log2(slots + 1)) + 2 * config.workers
    needed, free = vectors * parameters * np.dtype(config.dtype).itemsize, free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"{config.given('model')} on {features:,} features takes {needed / 2**30:.1f} GiB of "
            f"memory at least, and {free / 2**30:.1f} GiB are free",
            "Give fewer hidden units or fewer workers",
        )


def check_fleet(config: TrainConfig, *, elsewhere: bool = False) -> None:
    """See that there is room for the workers and servers.

    Args:
        config: the settings.
        elsewhere: whether they run on a cluster that is yet to be joined: there, workers that find
            no room wait for nodes that join.

    Raises:
        UsageError: there is none; says what would do.
    """
    if config.workers and not elsewhere:
        few, many = sorted(("workers", "servers"), key=lambda name: int(getattr(config, name)))
        check_processes(getattr(config, many), getattr(config, few), config.given(many))
