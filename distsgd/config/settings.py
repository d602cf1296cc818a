"""The settings of a training run, checked.

The values of settings as the types of their fields.

A tested recipe for each model and loss: what settings are if they are not given.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from distsgd.core.model import LINEAR, LOSSES, MOST_HIDDEN, hidden_units
from distsgd.core.optim import OPTIMIZERS, SCHEDULES, make_codec
from distsgd.core.plan import SAMPLINGS, SHUFFLES
from distsgd.core.server.consistency import POLICIES, Policy, make_policy
from distsgd.data.remote.addresses import is_uri
from distsgd.errors import UsageError
from distsgd.spelling import ARGUMENT, SET, Spelling, spelling

__all__ = [
    "LEARNING_RATES",
    "REGULARIZATION",
    "TWO_LAYER_LEARNING_RATES",
    "TrainConfig",
    "as_type",
    "choices",
]


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Say that a setting cannot have this value.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"{spelling().setting(name)} cannot be {value}", f"Give {allowed}")


_WORDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
}  # fmt: skip


def as_type(name: str, type_name: str, value: Any) -> Any:
    """The value as its field's type; texts, as from --set, are parsed."""
    if value is None and "None" in type_name:
        return None
    kind = type_name.split(" ")[0]
    wanted = _WORDS[kind]
    try:
        if kind == "bool":
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, bool) or value is None:
            raise ValueError
        if kind == "int":
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value)
        if kind == "float":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        if not isinstance(value, str | Path):
            raise ValueError
        return str(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        refuse(name, value, wanted)


LEARNING_RATES = {
    "softmax": {
        "sgd": 0.015, "momentum": 0.0015, "nesterov": 0.0015, "adagrad": 0.01, "adam": 0.001,
    },
    "svm": {
        "sgd": 0.001, "momentum": 0.0001, "nesterov": 0.0001, "adagrad": 0.003, "adam": 0.0003,
    },
}  # fmt: skip
"""The learning rate of the linear classifier, for each loss and update rule. With it, 10 epochs of
CIFAR-10 in minibatches of 256 with the cosine schedule give a test accuracy of 41.3 to 41.6 %
(softmax) and 39.9 to 40.1 % (SVM)."""

REGULARIZATION = {"softmax": 0.005, "svm": 0.02}
"""Lambda of each loss, for both models."""

TWO_LAYER_LEARNING_RATES = {
    "softmax": {
        "sgd": 0.05, "momentum": 0.005, "nesterov": 0.005, "adagrad": 0.02, "adam": 0.001,
    },
    "svm": {
        "sgd": 0.02, "momentum": 0.002, "nesterov": 0.002, "adagrad": 0.02, "adam": 0.001,
    },
}  # fmt: skip
"""The same for two layers. With 100 hidden units, 10 epochs give a test accuracy of 50.9 to 52.9 %
(softmax) and 51.1 to 52.0 % (SVM). Twice these rates are a little better for `sgd`, and three times
diverge."""

_INIT_SCALE, _TWO_LAYER_INIT_SCALE = 1e-4, 1.0

BASE_BATCH = 256
"""The minibatch that the learning rates are for; see `TrainConfig.scale_lr`."""


class Recipe(NamedTuple):
    """What settings are if they are not given.

    Attributes:
        learning_rate: of minibatches of `BASE_BATCH`.
        regularization: lambda.
        init_scale: see `distsgd.config.settings.TrainConfig.init_scale`.
    """

    learning_rate: float
    regularization: float
    init_scale: float


def recipe_for(model: str, loss: str, optimizer: str) -> Recipe:
    """The recipe of a model, a loss and an update rule.

    Raises:
        ValueError: there is no such model.
    """
    if hidden_units(model):
        rates, init_scale = TWO_LAYER_LEARNING_RATES, _TWO_LAYER_INIT_SCALE
    else:
        rates, init_scale = LEARNING_RATES, _INIT_SCALE
    return Recipe(rates[loss][optimizer], REGULARIZATION[loss], init_scale)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a run.

    Attributes:
        dataset: "cifar10", "sample", a name, or the path or URI of a dataset folder.
        model: "linear", or "mlp:HIDDEN" for a network with so many hidden units.
        loss: "softmax" or "svm".
        workers: worker processes; 0 trains in this process, without Ray.
        servers: parameter servers that W is split over, by contiguous ranges.
        elastic: as many workers as the cluster has CPUs for, while nodes come and go.
        hang_seconds: a worker that takes longer than this, and than 200 times what is usual, is
            replaced.
        wait_seconds: how long to wait when no worker is there.
        batch_size: examples of a minibatch, however many workers share it; if it is not given, 256,
            or all of a dataset here that has fewer.
        epochs: passes over the training set.
        seed: seed of the order of examples and of the first W.
        sampling: "shuffle", "random" (with replacement) or "sequential".
        shuffle: "global", any example anywhere; or "shard", see `shuffle_window`.
        shuffle_window: with "shard": the shards come in a shuffled order, and the examples of so
            many of them at a time are shuffled with each other.
        cache_size: MiB that remote datasets may take on each node; 0 for as many as there are.
        consistency: when a worker may go on: "bsp", "ssp", "asp", "backup" or "local".
        staleness: S of "ssp": how many minibatches a worker may be ahead.
        backup: B of "backup": how many slots of a minibatch need not be waited for.
        local_steps: H of "local": steps between averagings.
        compress: gradients in fewer bytes: "none", "fp16", "topk:FRACTION" or "onebit".
        error_feedback: whether what compression leaves out is added to what comes next.
        optimizer: "sgd", "momentum", "nesterov", "adagrad" or "adam".
        momentum: coefficient of momentum, nesterov, and the mean of adam.
        learning_rate: largest learning rate; None for the recipe of the loss and optimizer.
        scale_lr: multiply the learning rate by batch_size / 256 (Goyal et al. 2017, 2.1).
        regularization: lambda of the penalty lambda * sum of W**2; None for the recipe.
        schedule: "constant", "step" or "cosine".
        warmup_epochs: epochs over which the learning rate grows linearly; None for 0, or for 1
            with scale_lr.
        step_epochs: epochs between the drops of the schedule "step".
        step_factor: what each of these drops multiplies by.
        channel: "auto", or force "shm" (shared memory within a node), "tcp" or "ray" (actor calls).
        placement: of servers on a cluster: "near" the driver, or "spread" over the nodes.
        slot_size: examples of a slot, the unit of work; part of what fixes the bits.
        init_scale: standard deviation of the first W; with hidden units, what multiplies that of
            He et al. 2015. None for the recipe.
        pixel_scale: what centred pixels are divided by.
        dtype: "float32" or "float64".
        log_every: steps between two records of the metrics.
        cache: rows in memory as "uint8", as "float32", or as what is faster: "auto".
        cache_budget: MiB of each process for them; with less, rows come from the shards.
        keep_checkpoints: how many to keep, beside the first and the best: the newest 8, and of
            older epochs a series that thins out (`distsgd.runs.checkpoint`); 0 for all.
        checkpoint_seconds: seconds of work after which there is a checkpoint within an epoch too,
            kept until there are two newer ones to go on from; 0 for none.
        journal: "keep" all of it, or "bounded": drop what comes before the older of the two
            newest checkpoints to go on from.
        verify: share of the updates that are recomputed independently while training goes on.
    """

    dataset: str = "cifar10"
    model: str = LINEAR
    loss: str = "softmax"
    workers: int = 2
    servers: int = 1
    elastic: bool = False
    hang_seconds: float = 10.0
    wait_seconds: float = 120.0
    batch_size: int = 256
    epochs: int = 10
    seed: int = 0
    sampling: str = "shuffle"
    shuffle: str = "global"
    shuffle_window: int = 4
    cache_size: int = 0
    consistency: str = "bsp"
    staleness: int | None = None
    backup: int | None = None
    local_steps: int | None = None
    compress: str = "none"
    error_feedback: bool = True
    optimizer: str = "sgd"
    momentum: float = 0.9
    learning_rate: float | None = None
    scale_lr: bool = False
    regularization: float | None = None
    schedule: str = "cosine"
    warmup_epochs: float | None = None
    step_epochs: float = 5.0
    step_factor: float = 0.1
    channel: str = "auto"
    placement: str = "near"
    slot_size: int = 64
    init_scale: float | None = None
    pixel_scale: float = 64.0
    dtype: str = "float32"
    log_every: int = 20
    cache: str = "auto"
    cache_budget: int = 1024
    keep_checkpoints: int = 60
    checkpoint_seconds: float = 30.0
    journal: str = "keep"
    verify: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spelling", spelling())  # no field: it is not kept with the run
        for field in dataclasses.fields(self):
            value = as_type(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                refuse(name, getattr(self, name), "one of " + ", ".join(allowed))
        self._check_bounds()
        self._fill_in_recipe()
        self._check_consistency()
        self._check_compression()
        self._check_verify()
        self._check_data()
        if not self.momentum < 1:
            refuse("momentum", self.momentum, "a number from 0 to below 1")
        if self.optimizer not in _WITH_MOMENTUM and self.spelling.origins.get("momentum") in (
            SET,
            ARGUMENT,
        ):
            raise UsageError(
                f"{self.given('momentum')} does not go with {self.given('optimizer')}, which has "
                "none",
                f"Give {self.spelling.given('optimizer', 'momentum')}, or another of "
                + ", ".join(_WITH_MOMENTUM[1:]),
            )

    def _check_bounds(self) -> None:
        for name, (low, high, words) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                refuse(name, value, words)
        if self.slot_size > (most := max(self.batch_size, _LARGE_SLOT)):
            refuse("slot_size", self.slot_size, f"a whole number from 1 to {most:,}")

    def _fill_in_recipe(self) -> None:
        try:
            recipe = recipe_for(self.model, self.loss, self.optimizer)
        except ValueError:
            allowed = f"linear, or mlp:HIDDEN with 1 to {MOST_HIDDEN} hidden units, as mlp:100"
            refuse("model", self.model, allowed)
        for name, value in recipe._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", 1.0 if self.scale_lr else 0.0)

    @property
    def spelling(self) -> Spelling:
        """How the user has written these settings."""
        found: Spelling = self.__dict__["_spelling"]
        return found

    def given(self, name: str) -> str:
        """A setting and its value as the user has written them, such as --batch-size 64."""
        return self.spelling.given(name, getattr(self, name))

    @property
    def peak_learning_rate(self) -> float:
        """The largest learning rate of the schedule, scaled with the minibatch if so wanted."""
        assert self.learning_rate is not None
        scale = self.batch_size / BASE_BATCH if self.scale_lr else 1.0
        return self.learning_rate * scale

    def _check_consistency(self) -> None:
        for policy, (name, default, least) in _OF_POLICY.items():
            value = getattr(self, name)
            if value is not None and policy != self.consistency:
                raise UsageError(
                    f"{self.spelling.setting(name)} does not go with {self.given('consistency')}",
                    f"It belongs to {self.spelling.given('consistency', policy)}",
                )
            if policy == self.consistency:
                value = default if value is None else value
                if value < least:
                    refuse(name, value, f"a whole number, {least} or more")
                object.__setattr__(self, name, value)
        slots = -(-self.batch_size // self.slot_size)
        if self.backup is not None and self.backup >= slots:
            raise UsageError(
                f"{self.given('backup')} leaves nothing of a minibatch of {slots} slots "
                f"({self.given('batch_size')}, slots of {self.slot_size})",
                f"Give a number below {slots}",
            )
        if self.local_steps is not None and self.local_steps > 1 and self.optimizer != "sgd":
            raise UsageError(
                f"{self.given('consistency')} with {self.given('local_steps')} does not go with "
                f"{self.given('optimizer')}",
                "Replicas make steps of plain SGD, and W alone is averaged: give "
                + self.spelling.given("optimizer", "sgd"),
            )

    def _check_compression(self) -> None:
        try:
            make_codec(self.compress, [(1, 1)])
        except ValueError:
            refuse("compress", self.compress, "none, fp16, onebit, or topk:FRACTION as topk:0.01")

    def _check_verify(self) -> None:
        if not 0 <= self.verify <= 1:
            refuse("verify", self.verify, "a share of the updates from 0 to 1, such as 0.01")
        if self.verify and self.servers > 1:
            raise UsageError(
                f"{self.spelling.setting('verify')} does not go with {self.given('servers')}: no "
                "server has the whole of W",
                f"Give {self.spelling.given('servers', 1)}; the weights are the same",
            )

    def _check_data(self) -> None:
        if self.shuffle == "shard" and self.sampling != "shuffle":
            raise UsageError(
                f"{self.given('shuffle')} does not go with {self.given('sampling')}",
                f"Give {self.spelling.given('sampling', 'shuffle')}",
            )
        if self.cache_size and not is_uri(self.dataset):
            raise UsageError(
                f"{self.spelling.setting('cache_size')} is for datasets that lie elsewhere, and "
                f"{self.dataset} is here",
                "Give a dataset of s3://..., gs://..., http(s)://... or file://...",
            )

    @property
    def streams(self) -> bool:
        """Whether shards of a remote dataset are on a node only while they are used."""
        return self.shuffle == "shard"

    @property
    def cache_limit(self) -> int | None:
        """Bytes that remote datasets may take on a node."""
        return self.cache_size * 2**20 or None

    def policy(self) -> Policy:
        """The consistency policy."""
        numbers = {name: getattr(self, name) for name in POLICIES[self.consistency].parameters()}
        return make_policy(self.consistency, replicas=max(1, self.workers), **numbers)


_OF_POLICY = {
    "ssp": ("staleness", 3, 0),
    "backup": ("backup", 1, 1),
    "local": ("local_steps", 8, 1),
}
"""Policy -> its number, the default, and the least."""

_WITH_MOMENTUM = ("momentum", "nesterov", "adam")

_CHOICES = {
    "consistency": tuple(POLICIES),
    "loss": tuple(LOSSES),
    "sampling": SAMPLINGS,
    "shuffle": SHUFFLES,
    "optimizer": tuple(OPTIMIZERS),
    "schedule": SCHEDULES,
    "dtype": ("float32", "float64"),
    "channel": ("auto", "shm", "tcp", "ray"),
    "placement": ("near", "spread"),
    "cache": ("auto", "float32", "uint8"),
    "journal": ("keep", "bounded"),
}
_LARGE_SLOT = 4096
"""Examples of a slot that may be more than those of a minibatch."""

_MANY = 10**9
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "workers": (0, 10_000, "a whole number from 0 to 10,000"),
    "servers": (1, 1_000, "a whole number from 1 to 1,000"),
    "batch_size": (1, math.inf, "a whole number, 1 or more"),
    "epochs": (1, _MANY, "a whole number from 1 to 1,000,000,000"),
    "seed": (0, math.inf, "a whole number, 0 or more"),
    "slot_size": (1, math.inf, "a whole number, 1 or more"),
    "log_every": (1, _MANY, "a whole number from 1 to 1,000,000,000"),
    "keep_checkpoints": (0, _MANY, "a whole number from 0 to 1,000,000,000"),
    "checkpoint_seconds": (0, _MANY, "a number of seconds from 0 to 1,000,000,000"),
    "shuffle_window": (1, _MANY, "a whole number of shards from 1 to 1,000,000,000"),
    "cache_size": (0, 2**40, "a whole number of MiB from 0 to 2^40"),
    "cache_budget": (0, 2**40, "a whole number of MiB from 0 to 2^40"),
    "staleness": (0, 10_000, "a whole number from 0 to 10,000"),
    "backup": (1, math.inf, "a whole number, 1 or more"),
    "local_steps": (1, 1_000_000, "a whole number from 1 to 1,000,000"),
    "momentum": (0, 1, "a number from 0 to below 1"),
    "learning_rate": (1e-300, 1e300, "a number above 0, up to 1e300"),
    "regularization": (0, 1e30, "a number from 0 to 1e30"),
    "init_scale": (0, 1e30, "a number from 0 to 1e30"),
    "pixel_scale": (1e-6, 1e30, "a number from 1e-6 to 1e30"),
    "warmup_epochs": (0, _MANY, "a number from 0 to 1,000,000,000"),
    "step_epochs": (1e-300, _MANY, "a number above 0, up to 1,000,000,000"),
    "step_factor": (1e-300, 1, "a number above 0, up to 1"),
    "hang_seconds": (1e-9, 1_000_000, "a number of seconds above 0, up to 1,000,000"),
    "wait_seconds": (1e-9, 1_000_000, "a number of seconds above 0, up to 1,000,000"),
}
"""Setting -> the least, the most, and both in words. What becomes processes, files, memory or time
is bounded here as far as no machine could do more; `distsgd.training.limits` looks at this one."""


def choices(name: str) -> tuple[str, ...]:
    """The values that a setting with a fixed set of them can have."""
    return tuple(_CHOICES[name])
