"""Checks before a training starts: memory, processes, cache, and settings that fit the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distsgd.config.class_weights import factors_of
from distsgd.config.jobs import held_out_rows
from distsgd.config.settings import TrainConfig
from distsgd.config.sources import trained_rows
from distsgd.config.without import left_out_rows
from distsgd.core.arrays import Floats, padded_columns
from distsgd.core.messages import Diverged
from distsgd.core.model import (
    ARITHMETICS,
    EXACT,
    LINEAR,
    Architecture,
    Grids,
    fitting,
    hidden_units,
    make_architecture,
)
from distsgd.core.plan import EpochOrder
from distsgd.data.columns import FLOATS, PIXELS
from distsgd.data.dataset import Dataset
from distsgd.data.row_cache import choose_cache, gathered_slots
from distsgd.engine.job import Job
from distsgd.engine.team_host import MOST_MEMBERS, team_shape
from distsgd.errors import UsageError
from distsgd.on_ray.capacity import check_processes, free_memory, process_memory

__all__ = ["check_fleet", "check_memory", "check_sizes", "exceeded_bound", "sizes_of"]


_MIB = 2**20
_PROCESS_BYTES = 100 * _MIB
"""A process with Python, numpy and Ray, before it does anything."""

_STATES = {"momentum": 1, "nesterov": 1, "adagrad": 1, "adam": 2}
"""Vectors of the length of W that an optimiser keeps."""

_MEASURED_BLOCKS = 4
"""Blocks of rows that features are made of at once when a model is measured."""


@dataclass(frozen=True)
class Needs:
    """Bytes of each process; those of a training in one process are all the driver's.

    Attributes:
        driver: of the process of the command.
        worker: of each worker.
        server: of each server.
        total: of all together.
    """

    driver: int
    worker: int
    server: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers that the memory of a training depends on.

    Let V be the bytes of flat W, n the vectors of the optimiser's state, S the slots of a
    minibatch, and R the bytes of the rows of the slots that are computed at once, as floats and as
    pixels. Then there are

    - at a worker: R, the training set as `cache` has it, the order of an epoch (24 bytes an
      example), a hidden layer's values, W, and a gradient for each slot that it leases: V (S + 1)
      in all for one worker, or its share; where gradients may be old, two for each slot. A codec
      has 7 V more: the residual, its sum with the gradient, and what encoding and decoding takes.
      Local steps have W, its decay and a gradient more.
    - at the server: W, its decay, a sum, and the sums of the pieces that come from several workers,
      V (3 + n + log2 S); and a snapshot, V (1 + n). The memory of a team (`team_shape`) is its;
      of the sums there, each member fills those of its own piece.
    - at the driver: the first W, a snapshot of an epoch, and that W as it is kept, as it is
      measured, and as it is written to a checkpoint, in several copies: V (6 + 3 n). A model is
      measured on 4 blocks of rows as features. `verify` recomputes in float64 with bounds of the
      rounding errors: V (8 + 10 S).

    Files of the dataset are mapped, and not counted: the system takes that memory back when it
    needs it.

    Attributes:
        examples: of the training set.
        features: of an example.
        classes: how many.
        hidden: units of the hidden layer, or 0.
        batch_size: examples of a minibatch.
        slot_size: examples of a slot.
        workers: worker processes; 0 for a training in one process.
        servers: parameter servers.
        optimizer: the update rule.
        dtype: "float32" or "float64".
        cached: bytes of a training example in each worker's memory; 0 if it stays in its shard.
        compressed: whether gradients are encoded.
        local: whether workers make steps on their own.
        verified: whether updates are recomputed.
        halves: buffers of gradients at a worker; see `Policy.halves`.
        team: the steps between two meetings of workers that share memory; 0 if none do.
    """

    examples: int
    features: int
    classes: int
    hidden: int = 0
    batch_size: int
    slot_size: int
    workers: int
    servers: int = 1
    optimizer: str = "sgd"
    dtype: str = "float32"
    cached: int = 0
    compressed: bool = False
    local: bool = False
    verified: bool = False
    halves: int = 1
    team: int = 0

    @property
    def _architecture(self) -> Architecture:
        name = f"mlp:{self.hidden}" if self.hidden else LINEAR
        return make_architecture(name, self.features, self.classes)

    @property
    def vector(self) -> int:
        """V: bytes of flat W."""
        return self._architecture.parameters * self._item

    @property
    def _item(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def _slots(self) -> int:
        return -(-self.batch_size // self.slot_size)

    def needs(self) -> Needs:
        """Bytes of each process, at least; see the class."""
        together = self._driver() + self._server() + self._worker()
        if not self.workers:
            return Needs(together, 0, 0, together)
        driver, worker = self._driver() + _PROCESS_BYTES, self._worker() + _PROCESS_BYTES
        server = self._server() // self.servers + _PROCESS_BYTES
        total = driver + self.workers * worker + self.servers * server
        return Needs(driver, worker, server, total)

    def _worker(self) -> int:
        vector = self.vector
        slots, most = fitting(self.slot_size, self.batch_size)
        rows = slots * (most + 1) * padded_columns(self.features) * self._item
        pixels = gathered_slots(self.slot_size, self._slots) * most * self.features
        values = 3 * most * (self.hidden + self.classes) * self._item
        leased = -(-self._slots // max(1, self.workers))
        gradients = vector * (1 + leased * self.halves + 7 * self.compressed + 3 * self.local)
        return rows + pixels + values + self.examples * (self.cached + 24) + gradients

    def _server(self) -> int:
        pieces = math.ceil(math.log2(self._slots + 1)) if self.workers > 1 else 1
        return self.vector * (4 + pieces + 2 * self._states) + self._team()

    def _team(self) -> int:
        """Bytes that a team shares."""
        if not (self.team and self.workers):
            return 0
        parameters, losses = self._architecture.parameters, self._slots * self.team
        rows = -(-self._slots // self.workers)
        return team_shape(self.workers, parameters, self.dtype, self._states, rows, losses).size

    def _driver(self) -> int:
        measured = (
            _MEASURED_BLOCKS * self._architecture.block * padded_columns(self.features) * self._item
        )
        verified = (8 + 10 * self._slots) * self.verified
        return measured + self.vector * (6 + 3 * self._states + verified)

    @property
    def _states(self) -> int:
        return _STATES.get(self.optimizer, 0)


def sizes_of(config: TrainConfig, dataset: Dataset, cache: str) -> Sizes:
    """The sizes of a training.

    Args:
        config: its settings.
        dataset: what it is trained on.
        cache: what `choose_cache` has chosen.
    """
    manifest, policy = dataset.manifest, config.policy()
    features = manifest.features
    team = (
        config.channel in ("auto", "team") and policy.in_team and config.servers == 1
        and config.compress == "none" and config.verify < 1 and config.workers <= MOST_MEMBERS
    )  # fmt: skip
    row = np.dtype(manifest.values).itemsize * features
    cached = {"float32": 4 * padded_columns(features), "uint8": row}.get(cache, 0)
    return Sizes(
        examples=manifest.rows("train"),
        features=features,
        classes=len(manifest.classes),
        hidden=hidden_units(config.model),
        batch_size=config.batch_size,
        slot_size=config.slot_size,
        workers=config.workers,
        servers=config.servers,
        optimizer=config.optimizer,
        dtype=config.dtype,
        cached=cached,
        compressed=config.compress != "none",
        local=config.consistency == "local",
        verified=config.verify > 0,
        halves=policy.halves,
        team=policy.steps(-(-manifest.rows("train") // config.batch_size)) if team else 0,
    )


_LEAST: dict[str, int] = {"hidden": 1, "batch_size": 1, "workers": 0}
"""Settings that can be reduced to save memory, and their least values."""


def what_fits(sizes: Sizes, fits: Callable[[Sizes], bool]) -> tuple[str, int] | None:
    """The setting to reduce so that a training fits, and its largest value that does.

    Args:
        sizes: those that do not fit.
        fits: whether others do.

    Returns:
        "slot_size" and its default, if it is small and that alone suffices; or "hidden",
        "batch_size" or "workers", the one of these that suffice that most of the memory goes to,
        and the most that fits; None if none suffices.
    """

    def with_value(name: str, value: int) -> Sizes:
        changed: dict[str, Any] = {name: value}
        return replace(sizes, **changed)

    usual = TrainConfig.slot_size
    if sizes.slot_size < usual and fits(with_value("slot_size", usual)):
        return "slot_size", usual
    found = [
        (with_value(name, least).needs().total, name)
        for name, least in _LEAST.items()
        if getattr(sizes, name) > least and fits(with_value(name, least))
    ]
    if not found:
        return None
    _, name = min(found)
    low, high = _LEAST[name], int(getattr(sizes, name))
    while high - low > 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(with_value(name, middle)) else (low, middle)
    return name, low


def check_cache(config: TrainConfig, dataset: Dataset) -> None:
    """See that the cache of a node is large enough for what is in it at once.

    Raises:
        UsageError: it is not, or the settings need all of a dataset that is streamed.
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


def check_exact(
    config: TrainConfig, features: int, classes: int, factor: float | None = None
) -> None:
    """See that every sum of an exact training fits a float64; see `distsgd.core.model.grids`.

    Args:
        config: the settings.
        features: pixels of an example.
        classes: number of classes.
        factor: the largest of an example; None if all count alike.

    Raises:
        UsageError: one does not; says which, and by how much.
    """
    assert config.init_scale is not None
    hidden = hidden_units(config.model)
    grids = Grids(
        classes=classes, hidden=hidden, examples=config.batch_size, loss=config.loss,
        scale=config.pixel_scale, factor=factor,
    )  # fmt: skip
    scales = [config.init_scale]
    if hidden:
        scales = [config.init_scale * math.sqrt(2 / inputs) for inputs in (features, hidden)]
    try:
        grids.check()
        grids.check_first(features, scales)
    except ValueError as error:
        raise UsageError(
            f"{config.given('arithmetic')} does not go with {error}",
            f"Change that, or give {config.spelling.given('arithmetic', ARITHMETICS[0])}",
        ) from None


def exceeded_bound(job: Job, dataset: Dataset, diverged: Diverged, weights: Floats) -> str:
    """Which bound of exact arithmetic has made the loss of an update infinite; "" if none has.

    Args:
        job: the training.
        dataset: what is trained on.
        diverged: the update.
        weights: flat W that it was computed at, or a later one.
    """
    plan, model = job.plan, job.architecture
    if not job.exact or not np.isfinite(weights).all():
        return ""
    low, end = plan.minibatch(diverged.step)
    for first in range(low, end, _LOOKED_AT):
        last = min(first + _LOOKED_AT, end)
        examples = EpochOrder(plan).examples(plan.epoch_of(diverged.step), first, last)
        pixels = np.empty((len(examples), job.features), np.uint8)
        dataset.train.gather(examples, pixels)
        if bound := model.exceeded_bound(weights, job.preprocessing, pixels):
            return bound
    return ""


_LOOKED_AT = 256
"""Examples at once."""

_LEAST_RANGE = 256
"""Parameters that a server has at least: fewer are not worth a message."""


def check_sizes(config: TrainConfig, dataset: Dataset, *, elsewhere: bool = False) -> None:
    """See that the minibatch, the servers and the model fit the dataset and the memory.

    Args:
        config: the settings.
        dataset: what is trained on.
        elsewhere: whether workers and servers run on a cluster; their memory is not known here.

    Raises:
        UsageError: they do not; says what would do.
    """
    check_cache(config, dataset)
    examples = dataset.manifest.rows("train")
    trained = trained_rows(examples, config.validation)
    if config.batch_size > trained:
        rest = f", less {config.given('validation')}" if config.validation else ""
        raise UsageError(
            f"{config.given('batch_size')} is larger than the training set of {examples}{rest}",
            f"Give a number from 1 to {trained}",
        )
    if config.validation and not round(config.validation * examples):
        raise UsageError(
            f"{config.given('validation')} of {examples} training rows is no row",
            f"Give {config.spelling.given('validation', 0.2)}, or leave it out",
        )
    features, classes = math.prod(dataset.manifest.shape), len(dataset.manifest.classes)
    if config.arithmetic == EXACT and dataset.manifest.values == FLOATS:
        raise UsageError(
            f"{config.given('arithmetic')} does not go with {dataset.manifest.name}, whose rows "
            "are floats",
            f"Import it again with 256 steps, {config.spelling.given('values', PIXELS)}, or give "
            f"{config.spelling.given('arithmetic', ARITHMETICS[0])}",
        )
    exact = config.arithmetic == EXACT
    factors = factors_of(
        config.class_weight, dataset, held_out_rows(config, dataset), largest=exact
    )
    left_out = left_out_rows(config.without, dataset)
    if exact:
        largest = 1.0 if left_out and factors.largest is None else factors.largest
        check_exact(config, features, classes, largest)
    parameters = make_architecture(config.model, features, classes).parameters
    most = max(4, parameters // _LEAST_RANGE)
    if config.servers > most:
        raise UsageError(
            f"{config.given('servers')} is more than W, of {parameters:,} parameters, can sensibly "
            "be cut into",
            f"Give a number from 1 to {most}",
        )
    preprocessing, cache = dataset.preprocessing(config.pixel_scale), "shards"
    if not dataset.streamed:
        cache = choose_cache(
            config.cache, config.cache_budget, preprocessing, examples, config.dtype,
            dataset.manifest.values,
        )  # fmt: skip
    _check_memory(config, sizes_of(config, dataset, cache), elsewhere)


def _check_memory(config: TrainConfig, sizes: Sizes, elsewhere: bool) -> None:
    """Raises UsageError if the processes of a training need more memory than there is."""
    free, own = free_memory(), process_memory()

    def fits(sizes: Sizes) -> bool:
        needs = sizes.needs()
        here = needs.driver if elsewhere else needs.total
        largest = needs.driver if elsewhere else max(needs.driver, needs.worker, needs.server)
        return (free is None or here <= free) and (own is None or largest <= own)

    if fits(sizes):
        return
    needs, found = sizes.needs(), what_fits(sizes, fits)
    name = {"hidden": "model"}.get(found[0], found[0]) if found else "model"
    what = config.given(name)
    if name == "model":
        what += f" on {sizes.features:,} features"
    parts = ""
    if sizes.workers and not elsewhere:
        parts = (
            f" ({size(needs.driver)} in the driver, {size(needs.worker)} in each worker, "
            f"{size(needs.server)} in each server)"
        )
    limit = min(bytes_ for bytes_ in (free, own) if bytes_ is not None)
    raise UsageError(
        f"{what} takes {size(needs.driver if elsewhere else needs.total)} of memory{parts}, and "
        f"{size(limit)} are free" + (" to a process (ulimit)" if limit == own else ""),
        _less(config, found),
    )


def check_memory(what: str, needed: int, count: int, said: Callable[[int], str]) -> None:
    """See that there is memory for something of which less can be asked for.

    Args:
        what: the number as the user has written it, such as --examples 50000.
        needed: bytes that it takes.
        count: the number.
        said: how another number of it is written.

    Raises:
        UsageError: there is too little; says what fits.
    """
    known = [free for free in (free_memory(), process_memory()) if free is not None]
    if known and needed > min(known):
        fits = count * min(known) // needed
        raise UsageError(
            f"{what} takes {size(needed)} of memory, and {size(min(known))} are free",
            f"{said(fits)} fits, or anything smaller" if fits else "Free some memory",
        )


def _less(config: TrainConfig, found: tuple[str, int] | None) -> str:
    """What to do about it."""
    if found is None:
        return "Free some memory, or train where there is more"
    name, most = found
    given = config.spelling.given
    fitting = given("model", f"mlp:{most}") if name == "hidden" else given(name, most)
    return f"{fitting} fits, or anything {'larger' if name == 'slot_size' else 'smaller'}"


def size(count: int) -> str:
    """Bytes for a reader, such as "3.2 GiB" or "40 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{-(-count // 2**20)} MiB"


def check_fleet(config: TrainConfig, address: str | None = None) -> None:
    """See that there is room for the workers and servers, or a cluster at an address.

    On a cluster that is yet to be joined, workers that find no room wait for nodes that join.

    Args:
        config: the settings.
        address: of a Ray cluster to train on; None for this machine, or a Ray connected to.

    Raises:
        UsageError: there is none; says what would do.
    """
    if address is None:
        if config.workers:
            few, many = sorted(("workers", "servers"), key=lambda name: int(getattr(config, name)))
            check_processes(getattr(config, many), getattr(config, few), config.given(many))
        return
    if config.workers == 0:
        raise UsageError(
            f"{config.spelling.setting('address')} does not go with {config.given('workers')}",
            "Give 1 worker or more",
        )
    from distsgd.cluster.connection import check_cluster

    check_cluster(address)
