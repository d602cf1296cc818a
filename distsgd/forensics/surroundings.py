"""What differs between two runs outside of their updates: settings, packages, kernels, data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from distsgd.config.settings import TrainConfig
from distsgd.core.model import EXACT
from distsgd.core.plan import EpochOrder
from distsgd.forensics.places import Naming
from distsgd.forensics.recorded import RecordedRun
from distsgd.runs.opened_run import OpenedRun

__all__ = ["ChangedRow", "DataDifference", "Pair", "Setting", "data_difference", "first_use",
           "settings_difference", "versions_difference"]  # fmt: skip

_MOST_ROWS = 1000
"""Differing rows that are kept."""

_NEVER = {
    "cache", "cache_budget", "cache_size", "channel", "placement", "log_every", "keep_checkpoints",
    "checkpoint_seconds", "journal", "verify", "hang_seconds", "wait_seconds", "servers", "dataset",
}  # fmt: skip
"""Settings that no policy lets W depend on. The dataset is compared by its digest."""

_ONLY_WITH: dict[str, Callable[[TrainConfig], bool]] = {
    "workers": lambda config: config.consistency != "bsp" or config.compress != "none",
    "elastic": lambda config: config.consistency != "bsp" or config.compress != "none",
    "shuffle": lambda config: config.sampling == "shuffle",
    "shuffle_window": lambda config: config.sampling == "shuffle" and config.shuffle == "shard",
    "momentum": lambda config: config.optimizer in ("momentum", "nesterov", "adam"),
    "step_epochs": lambda config: config.schedule == "step",
    "step_factor": lambda config: config.schedule == "step",
    "error_feedback": lambda config: config.compress != "none",
}
"""Settings that matter only beside others."""


@dataclass(frozen=True)
class Pair:
    """Something that differs.

    Attributes:
        name: what.
        first: its value in the first run.
        second: in the second.
    """

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Setting(Pair):
    """A setting that differs.

    Attributes:
        matters: whether W can depend on it, with the other settings of these runs.
    """

    matters: bool


def settings_difference(first: RecordedRun, second: RecordedRun) -> tuple[Setting, ...]:
    """The settings in which two runs differ; one that a run does not record has its default."""
    one, other = first.settings, second.settings
    found = []
    for known in fields(TrainConfig):
        values = getattr(one, known.name), getattr(other, known.name)
        if values[0] == values[1] or known.name == "filled":
            continue
        needs = _ONLY_WITH.get(known.name)
        matters = known.name not in _NEVER and (needs is None or needs(one) or needs(other))
        if known.name == "patience":
            matters = False  # it only ends a training
        if known.name == "epochs" and one.schedule == other.schedule == "constant":
            matters = False
        found.append(Setting(known.name, *values, matters))
    return tuple(found)


def versions_difference(first: RecordedRun, second: RecordedRun) -> tuple[Pair, ...]:
    """Versions of packages, BLAS kernels and machines that differ."""
    one, other = (run.config.get("versions", {}) for run in (first, second))
    names = [name for name in dict.fromkeys([*one, *other]) if name != "blas"]
    found = [
        Pair(name, one.get(name), other.get(name)) for name in names
        if one.get(name) != other.get(name)
    ]  # fmt: skip
    if first.kernels != second.kernels:
        found.insert(0, Pair("blas", ", ".join(first.kernels), ", ".join(second.kernels)))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class ChangedRow:
    """A training example that differs between two datasets.

    Attributes:
        example: its number.
        label: whether its label differs.
        values: how many pixels, or features, differ.
        place: where the first of them is; "" if none differs.
        used: first update that it takes part in, in the first run and in the second; None if it
            takes part in none.
        slot: of the minibatch of that update, in the first run.
    """

    example: int
    label: bool
    values: int
    place: str
    used: tuple[int | None, int | None] = (None, None)
    slot: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataDifference:
    """How two datasets differ.

    Attributes:
        digests: of their manifests.
        rows: training examples of each.
        changed: examples that differ, up to a thousand; None if the datasets could not be compared.
        count: how many differ.
        mean: whether the mean of the training images differs, which all pixels are centred on.
        note: why they could not be compared; "" if they were.
    """

    digests: tuple[str, str]
    rows: tuple[int, int]
    changed: tuple[ChangedRow, ...] | None
    count: int = 0
    mean: bool = False
    note: str = ""


def data_difference(
    first: RecordedRun, second: RecordedRun, naming: Naming
) -> DataDifference | None:
    """How the datasets of two runs differ; None if they have one digest."""
    recorded = [run.config.get("dataset", {}) for run in (first, second)]
    digests = str(recorded[0].get("digest", "")), str(recorded[1].get("digest", ""))
    if digests[0] == digests[1]:
        return None
    counts = int(recorded[0].get("train", 0)), int(recorded[1].get("train", 0))
    one, other = first.opened, second.opened
    if one is None or other is None:
        missing = first if one is None else second
        return DataDifference(
            digests=digests, rows=counts, changed=None,
            note=f"the dataset of {missing.name} cannot be opened: {missing.problem}",
        )  # fmt: skip
    if one.dataset.manifest.shape != other.dataset.manifest.shape:
        return DataDifference(
            digests=digests, rows=counts, changed=None, note="their examples have other shapes"
        )
    changed, total = _changed_rows(one, other, naming)
    scale = first.settings.pixel_scale
    means = [run.dataset.preprocessing(scale).mean for run in (one, other)]
    if first.settings.arithmetic == second.settings.arithmetic == EXACT:
        means = [np.rint(mean) for mean in means]
    return DataDifference(
        digests=digests, rows=counts, changed=changed, count=total,
        mean=bool((means[0] != means[1]).any()),
    )  # fmt: skip


def _changed_rows(
    first: OpenedRun, second: OpenedRun, naming: Naming
) -> tuple[tuple[ChangedRow, ...], int]:
    """The training examples that differ, as far as both datasets go."""
    splits = first.dataset.train, second.dataset.train
    shards = first.dataset.manifest.train, second.dataset.manifest.train
    same_cut = [one.rows for one in shards[0]] == [one.rows for one in shards[1]]
    rows = min(len(splits[0]), len(splits[1]))
    features = first.dataset.manifest.features
    found: list[ChangedRow] = []
    total, low = 0, 0
    labels = splits[0].labels[:rows], splits[1].labels[:rows]
    for number, shard in enumerate(shards[0]):
        high = min(rows, low + shard.rows)
        if not (same_cut and shard.sha256 == shards[1][number].sha256):
            for start in range(low, high, 4096):
                part = np.arange(start, min(high, start + 4096))
                values = [np.empty((len(part), features), one.dtype) for one in splits]
                for split, into in zip(splits, values, strict=True):
                    split.gather(part, into)
                unlike = values[0] != values[1]
                other = labels[0][part] != labels[1][part]
                hit = np.flatnonzero(unlike.any(axis=1) | other)
                total += len(hit)
                for row in hit[: max(0, _MOST_ROWS - len(found))].tolist():
                    where = np.flatnonzero(unlike[row])
                    found.append(
                        ChangedRow(
                            example=start + row,
                            label=bool(other[row]),
                            values=len(where),
                            place=naming.feature(int(where[0])) if len(where) else "",
                        )
                    )
        low += shard.rows
    total += abs(len(splits[0]) - len(splits[1]))
    return tuple(found), total


def first_use(run: RecordedRun, examples: set[int]) -> dict[int, tuple[int, int]]:
    """The first update that each of some training examples takes part in, and the slot.

    Raises:
        JournalError: the journal is invalid.
    """
    if run.opened is None or not examples:
        return {}
    plan = run.opened.job(run.settings).plan
    order, wanted = EpochOrder(plan), np.array(sorted(examples))
    found: dict[int, tuple[int, int]] = {}
    for epoch in range(plan.epochs):
        numbers = order.examples(epoch, 0, plan.examples)
        for place in np.flatnonzero(np.isin(numbers, wanted)).tolist():
            step, within = divmod(place, plan.batch_size)
            at = epoch * plan.steps_per_epoch + step, within // plan.slot_size
            found.setdefault(int(numbers[place]), at)
        if plan.sampling != "random" or len(found) == len(examples):
            break  # every epoch has every example
    updates = run.updates_of(set(found.values()), plan)
    return {number: (updates[at], at[1]) for number, at in found.items() if at in updates}
