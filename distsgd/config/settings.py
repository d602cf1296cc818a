"""The settings of a training: one table, and the checks that concern several settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, TypeVar

from distsgd.config.class_weights import NONE, class_weights, text_of
from distsgd.config.recipes import BASE_BATCH, recipe_for
from distsgd.config.table import described, one_of, setting, settings_of
from distsgd.config.without import EVERYTHING, numbers_of, text_of_numbers
from distsgd.core.model import ARITHMETICS, EXACT, LINEAR, LOSSES, MOST_HIDDEN, hidden_units
from distsgd.core.optim import OPTIMIZERS, SCHEDULES, make_codec
from distsgd.core.plan import SAMPLINGS, SHUFFLES
from distsgd.core.server.consistency import POLICIES, Policy, make_policy
from distsgd.data.remote.addresses import is_uri
from distsgd.errors import UsageError
from distsgd.spelling import Spelling, spelling

__all__ = ["RESUMABLE_SETTINGS", "SETTINGS", "TrainConfig", "chosen_settings", "refuse"]

_DATA, _MODEL, _OPTIMISATION = "Data", "Model", "Optimisation"
_FLEET, _OUTPUT, _FAULTS = "Fleet", "Output", "Faults"

_MANY = 10**9
_SECONDS: dict[str, Any] = {"above": 0, "most": 1_000_000, "unit": "seconds"}
_OF_STEP = ("schedule", ("step",))

T = TypeVar("T", bound=type)


def _with_policy_parameters(cls: T) -> T:
    """Make a setting of every parameter of every policy, also of one that is not declared here."""
    for policy in POLICIES.values():
        for name, known in policy.parameters().items():
            cls.__annotations__.setdefault(name, "int | None")
            one = setting(
                None, known.help, _FLEET, flag=True, least=known.least, most=known.most,
                belongs_to=("consistency", (policy.name,)), usual=str(known.default),
                aliases=" ".join(known.aliases),
            )  # fmt: skip
            setattr(cls, name, one)
    return cls


@dataclass(frozen=True, kw_only=True)
@_with_policy_parameters
class TrainConfig:
    """The settings of a training, complete and checked.

    What is not given has its default; `learning_rate`, `regularization` and `init_scale` have
    that of their recipe (`distsgd.config.recipes`).
    """

    dataset: str = setting(
        "cifar10", "cifar10, sample, the name of an imported dataset, or the path or URI "
        "(s3://...) of a dataset folder.", _DATA, flag=True, aliases="data",
    )  # fmt: skip
    batch_size: int = setting(
        256, "Examples of a minibatch, shared by all workers; full: all examples. If it is not "
        "given, fewer of a dataset of few rows.", _DATA, flag=True, special="full", least=1,
        aliases="batch batchsize bs minibatch minibatch_size",
    )  # fmt: skip
    sampling: str = setting(
        "shuffle", "How minibatches are drawn in an epoch", _DATA, flag=True, choices=SAMPLINGS,
        aliases="sampler",
    )  # fmt: skip
    shuffle: str = setting(
        "global", "global shuffles all examples, shard a few shards at a time.", _DATA, flag=True,
        choices=SHUFFLES,
    )  # fmt: skip
    shuffle_window: int = setting(
        4, "Shards whose examples are shuffled with each other.", _DATA, least=1, most=_MANY,
        unit="shards", belongs_to=("shuffle", ("shard",)),
    )  # fmt: skip
    validation: float = setting(
        0.0, "Share of the training rows, such as 0.1, that are held out: they are in no "
        "minibatch, and measured after each epoch.", _DATA, flag=True, least=0, most=0.5,
        allowed="a share of the training rows from 0 to 0.5, such as 0.1",
        aliases="val val_split validation_split validation_fraction val_fraction",
    )  # fmt: skip
    class_weight: str = setting(
        NONE, "Factors of the losses of classes, such as cat=2,dog=0.5; balanced: all classes "
        "count alike, however few rows they have.", _DATA, flag=True, check=class_weights,
        allowed="none, balanced, or CLASS=FACTOR,... with factors from 0 to 1e+30, such as "
        "cat=2,dog=0.5", aliases="class_weights classweight weighting",
    )  # fmt: skip
    without: str = setting(
        EVERYTHING, "Numbers of training examples, from 0, that do not count, such as 3,17,40-59: "
        "they stay in their minibatches, with a factor of 0.", _DATA, check=numbers_of,
        allowed="none, or numbers of training examples, such as 3,17,40-59",
        aliases="exclude leave_out drop_examples",
    )  # fmt: skip
    pixel_scale: float = setting(
        64.0, "Divisor of centred pixels; if it is not given, about their standard deviation.",
        _DATA, least=1e-6, most=1e30,
    )  # fmt: skip
    cache: str = setting(
        "auto", "Rows in memory as float32, as uint8, or auto: as the faster one.", _DATA,
        flag=True, choices=("auto", "float32", "uint8"),
    )  # fmt: skip
    cache_budget: int = setting(
        1024, "MiB of each process for rows in memory; with less, rows are read from the shards.",
        _DATA, least=0, most=2**40, unit="MiB",
    )  # fmt: skip
    cache_size: int = setting(
        0, "MiB of remote datasets that each node keeps; 0: no limit.", _DATA, flag=True, least=0,
        most=2**40, unit="MiB",
    )  # fmt: skip

    model: str = setting(
        LINEAR, "linear, or mlp:HIDDEN for two layers, such as mlp:100.", _MODEL, flag=True,
        check=hidden_units, aliases="arch architecture hidden network",
        allowed=f"linear, or mlp:HIDDEN with 1 to {MOST_HIDDEN:,} hidden units, such as mlp:100",
    )  # fmt: skip
    loss: str = setting(
        "softmax", "Loss function", _MODEL, flag=True, choices=tuple(LOSSES),
        aliases="criterion objective",
    )  # fmt: skip
    regularization: float | None = setting(
        None, "Factor lambda of the penalty lambda * sum of W**2.", _MODEL, flag=True, least=0,
        most=1e30, usual="depends on the loss and the data",
        aliases="reg l2 l2_reg lambda decay wd weight_decay",
    )  # fmt: skip
    init_scale: float | None = setting(
        None, "Standard deviation of the first W; with hidden units, a factor of that of He et "
        "al. 2015.", _MODEL, least=0, most=1e30, usual="depends on the model",
    )  # fmt: skip
    dtype: str = setting(
        "float32", "Type of W and of all arithmetic", _MODEL, choices=("float32", "float64"),
        belongs_to=("arithmetic", ARITHMETICS[:1]), aliases="precision",
    )  # fmt: skip
    arithmetic: str = setting(
        ARITHMETICS[0], "float: as fast as can be; exact: the same weights on every processor, "
        "with every BLAS.", _MODEL, flag=True, choices=ARITHMETICS,
    )  # fmt: skip

    epochs: int = setting(
        10, "Passes over the training set; if it is not given, more of a dataset of few rows.",
        _OPTIMISATION, flag=True, least=1, most=_MANY, resumable=True,
        aliases="epoch max_epochs n_epochs num_epochs",
    )  # fmt: skip
    patience: int = setting(
        0, "Epochs without a better validation loss after which the run ends; 0: all epochs.",
        _OPTIMISATION, flag=True, least=0, most=_MANY, unit="epochs",
        aliases="early_stopping early_stopping_patience early_stopping_rounds n_iter_no_change",
    )  # fmt: skip
    learning_rate: float | None = setting(
        None, "Largest learning rate of the schedule.", _OPTIMISATION, flag=True, above=0,
        most=1e300, usual="depends on model, loss, optimizer and data",
        aliases="lr alpha eta step_size stepsize",
    )  # fmt: skip
    optimizer: str = setting(
        "sgd", "Update rule", _OPTIMISATION, flag=True, choices=tuple(OPTIMIZERS),
        aliases="opt optim",
    )  # fmt: skip
    momentum: float = setting(
        0.9, "Momentum coefficient; of adam, beta1.", _OPTIMISATION, least=0, below=1,
        belongs_to=("optimizer", ("momentum", "nesterov", "adam")), aliases="beta beta1",
    )  # fmt: skip
    schedule: str = setting(
        "cosine", "How the learning rate changes", _OPTIMISATION, choices=SCHEDULES,
        aliases="lr_schedule lr_scheduler scheduler",
    )  # fmt: skip
    scale_lr: bool = setting(
        False, "Multiply the learning rate by batch size / 256, and warm up (Goyal et al. 2017).",
        _OPTIMISATION, flag=True,
    )  # fmt: skip
    warmup_epochs: float | None = setting(
        None, "Epochs over which the learning rate grows linearly.", _OPTIMISATION, least=0,
        most=_MANY, usual="0, or 1 with scale_lr", aliases="warmup",
    )  # fmt: skip
    step_epochs: float = setting(
        5.0, "Epochs between two drops of the learning rate.", _OPTIMISATION, above=0, most=_MANY,
        belongs_to=_OF_STEP,
    )  # fmt: skip
    step_factor: float = setting(
        0.1, "Factor of each drop of the learning rate.", _OPTIMISATION, above=0, most=1,
        belongs_to=_OF_STEP, aliases="gamma lr_decay",
    )  # fmt: skip
    seed: int = setting(
        0, "Random seed; the same seed gives identical weights.", _OPTIMISATION, flag=True,
        least=0, aliases="random_seed random_state",
    )  # fmt: skip
    slot_size: int = setting(
        64, "Examples of a slot, the unit of work; sums are formed slot by slot, so it is part of "
        "what determines the bits.", _OPTIMISATION, least=1,
    )  # fmt: skip

    workers: int = setting(
        2, "Worker processes; auto: one per free CPU; 0: train in this process.", _FLEET,
        flag=True, special="auto", least=0, most=10_000, resumable=True,
        aliases="num_workers n_workers n_jobs nproc",
    )  # fmt: skip
    servers: int = setting(
        1, "Parameter servers, each with a range of W.", _FLEET, flag=True, least=1, most=1_000,
        resumable=True, aliases="num_servers ps",
    )  # fmt: skip
    elastic: bool = setting(
        False, "Follow the cluster: one worker per free CPU while nodes join and leave.", _FLEET
    )
    consistency: str = setting(
        "bsp", "Consistency policy, which says when a worker may continue", _FLEET, flag=True,
        choices=tuple(POLICIES), aliases="policy",
    )  # fmt: skip
    staleness: int | None = None
    backup: int | None = None
    local_steps: int | None = None
    compress: str = setting(
        "none", "Compression of gradients: none, fp16, topk:FRACTION or onebit.", _FLEET,
        flag=True, check=lambda name: make_codec(name, [(1, 1)]), aliases="compression",
        allowed="none, fp16, onebit, or topk:FRACTION such as topk:0.01",
    )  # fmt: skip
    error_feedback: bool = setting(
        True, "Add what compression leaves out to the next gradient.", _FLEET
    )
    channel: str = setting(
        "auto", "How gradients travel: team (workers that share memory update W among themselves), "
        "shm (shared memory with the server), tcp, ray (actor calls), or auto.",
        _FLEET, flag=True, choices=("auto", "team", "shm", "tcp", "ray"), resumable=True,
        aliases="transport",
    )  # fmt: skip
    placement: str = setting(
        "near", "Servers near the node that starts the training, or spread over the nodes.",
        _FLEET, flag=True, choices=("near", "spread"),
    )  # fmt: skip

    log_every: int = setting(
        20, "Updates between two records of the metrics.", _OUTPUT, least=1, most=_MANY
    )
    keep_checkpoints: int = setting(
        60, "Checkpoints that are kept beside the first and the best: the newest 8, and of older "
        "epochs a series that thins out; 0: all.", _OUTPUT, least=0, most=_MANY,
    )  # fmt: skip
    checkpoint_seconds: float = setting(
        30.0, "Seconds of work between two checkpoints within an epoch; 0: none.", _OUTPUT,
        least=0, most=_MANY, unit="seconds",
    )  # fmt: skip
    journal: str = setting(
        "keep", "keep: the whole journal; bounded: what is needed to resume from one of the two "
        "newest checkpoints.", _OUTPUT, choices=("keep", "bounded"),
    )  # fmt: skip

    verify: float = setting(
        0.0, "Share of the updates that are recomputed independently, such as 0.01.", _FAULTS,
        flag=True, least=0, most=1,
        allowed="a share of the updates from 0 to 1, such as 0.01",
    )  # fmt: skip
    hang_seconds: float = setting(
        10.0, "A worker that takes longer, and 200 times longer than usual, is replaced.",
        _FAULTS, **_SECONDS,
    )  # fmt: skip
    wait_seconds: float = setting(
        120.0, "How long a training waits while it has no worker.", _FAULTS, **_SECONDS
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spelling", spelling())  # no field: it is not kept with the run
        if isinstance(self.class_weight, Mapping):  # from Python
            object.__setattr__(self, "class_weight", text_of(self.class_weight))
        if not isinstance(self.without, str):
            with suppress(TypeError, ValueError):  # refused below
                object.__setattr__(self, "without", text_of_numbers(self.without))
        for name, known in SETTINGS.items():
            value = getattr(self, name)
            if value is None and known.default is None:
                continue
            try:
                object.__setattr__(self, name, known.parse(value))
            except ValueError:
                refuse(name, value)
        self._check_slots()
        self._fill_in_recipe()
        self._check_consistency()
        self._check_verify()
        self._check_team()
        self._check_exact()
        self._check_data()

    def with_given(self, names: frozenset[str]) -> TrainConfig:
        """These settings, of which only those by these names were given; see `names_given`."""
        object.__setattr__(self, "_given", names)
        return self

    def with_filled(self, settings: dict[str, Any]) -> TrainConfig:
        """These settings, of which some have the defaults for their dataset; see `filled`."""
        object.__setattr__(self, "_filled", settings)
        return self

    @property
    def names_given(self) -> frozenset[str] | None:
        """The settings that were given, if the others are yet to suit the dataset; else None."""
        found: frozenset[str] | None = self.__dict__.get("_given")
        return found

    @property
    def filled(self) -> dict[str, Any]:
        """The settings that have the defaults for their dataset."""
        found: dict[str, Any] = self.__dict__.get("_filled", {})
        return found

    @property
    def spelling(self) -> Spelling:
        """How the user has written these settings."""
        found: Spelling = self.__dict__["_spelling"]
        return found

    def given(self, name: str) -> str:
        """A setting and its value as the user has written them, such as batch_size=64."""
        return self.spelling.given(name, getattr(self, name))

    def check_belongs(self, name: str) -> None:
        """Check that the other settings give this one, which has been given, a meaning.

        Raises:
            UsageError: it belongs to another value of a setting, such as another optimizer.
        """
        other, values = SETTINGS[name].belongs_to or ("", ())
        if other and getattr(self, other) not in values:
            raise UsageError(
                f"{self.spelling.setting(name)} does not go with {self.given(other)}",
                f"It belongs to {self.spelling.given(other, one_of(values))}"
                if len(values) == 1
                else f"It belongs to {self.spelling.setting(other)} {one_of(values)}",
            )

    @property
    def peak_learning_rate(self) -> float:
        """The largest learning rate of the schedule, after `scale_lr`."""
        assert self.learning_rate is not None
        scale = self.batch_size / BASE_BATCH if self.scale_lr else 1.0
        return self.learning_rate * scale

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
        own = {name: getattr(self, name) for name in POLICIES[self.consistency].parameters()}
        given = {name: value for name, value in own.items() if value is not None}
        return make_policy(self.consistency, replicas=max(1, self.workers), **given)

    def _check_slots(self) -> None:
        if self.slot_size > (most := max(self.batch_size, _LARGE_SLOT)):
            refuse("slot_size", self.slot_size, f"a whole number from 1 to {most:,}")

    def _fill_in_recipe(self) -> None:
        recipe = recipe_for(self.model, self.loss, self.optimizer)
        for name, value in recipe._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", 1.0 if self.scale_lr else 0.0)

    def _check_consistency(self) -> None:
        for other in POLICIES.values():
            for name in other.parameters():
                if getattr(self, name) is not None:
                    self.check_belongs(name)
        policy, slots = self.policy(), -(-self.batch_size // self.slot_size)
        for name, known in policy.parameters().items():
            value = getattr(policy, name)
            object.__setattr__(self, name, value)
            most = policy.most(name, slots)
            if most is not None and value > most:
                raise UsageError(
                    f"{self.given(name)} is too many for a minibatch of {slots} slots "
                    f"({self.given('batch_size')}, slots of {self.slot_size})",
                    f"Give {known.least} to {most}"
                    if most >= known.least
                    else "Give a larger minibatch, or smaller slots",
                )
        if policy.local and self.optimizer != "sgd":
            made = " with ".join(map(self.given, ("consistency", *policy.parameters())))
            raise UsageError(
                f"{made} does not go with {self.given('optimizer')}",
                "Replicas make steps of plain SGD, and W alone is averaged: give "
                + self.spelling.given("optimizer", "sgd"),
            )

    def _check_team(self) -> None:
        """Refuse the channel of teams where none can be; `auto` chooses another by itself."""
        why = ""
        if self.channel != "team":
            return
        if not POLICIES[self.consistency].in_team:
            why = self.given("consistency")
        elif self.servers > 1:
            why = self.given("servers")
        elif self.compress != "none":
            why = self.given("compress")
        elif self.verify >= 1:
            why = self.given("verify")
        if why:
            raise UsageError(
                f"{self.given('channel')} does not go with {why}",
                f"Give {self.spelling.given('channel', 'auto')}: a team where one can be",
            )

    def _check_exact(self) -> None:
        """Exact numbers are float64."""
        if self.arithmetic == EXACT:
            object.__setattr__(self, "dtype", "float64")

    def _check_verify(self) -> None:
        if self.verify and self.servers > 1:
            raise UsageError(
                f"{self.spelling.setting('verify')} does not go with {self.given('servers')}: no "
                "server has the whole of W",
                f"Give {self.spelling.given('servers', 1)}; the weights are the same",
            )

    def _check_data(self) -> None:
        if self.patience and not self.validation:
            raise UsageError(
                f"{self.given('patience')} needs rows held out, whose loss it waits for",
                f"Give {self.spelling.given('validation', 0.1)} too",
            )
        if self.shuffle == "shard" and self.sampling != "shuffle":
            raise UsageError(
                f"{self.given('shuffle')} does not go with {self.given('sampling')}",
                f"Give {self.spelling.given('sampling', 'shuffle')}",
            )
        if self.cache_size and not is_uri(self.dataset):
            raise UsageError(
                f"{self.spelling.setting('cache_size')} is for remote datasets, and "
                f"{self.dataset} is on this machine",
                "Give a dataset of s3://..., gs://..., http(s)://... or file://...",
            )


_LARGE_SLOT = 4096
"""Examples of a slot that may be more than those of a minibatch."""

SETTINGS = settings_of(TrainConfig)
"""All settings by name, in the order in which they are shown."""

RESUMABLE_SETTINGS = tuple(name for name, known in SETTINGS.items() if known.resumable)
"""The settings that a resume may change."""

TrainConfig.__doc__ = f"{TrainConfig.__doc__}\n    Attributes:\n" + "".join(
    f"        {name}: {described(known)}" + f" (default: {known.usually})" * bool(known.usually)
    + "\n" for name, known in SETTINGS.items()
)  # fmt: skip


_DECIDING = ("model", "loss", "optimizer", "scale_lr", "consistency")
"""Settings that decide the defaults of others, such as the learning rate."""


def chosen_settings(
    settings: dict[str, Any], filled: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Of the settings of a run, those that are not what its recipe and the defaults give.

    Args:
        settings: all of them.
        filled: those that the data gave, as the run recorded them.
    """
    deciding = {name: settings[name] for name in _DECIDING if name in settings}
    try:
        usual = asdict(TrainConfig(**deciding))
    except UsageError:  # of a later version
        return dict(settings)
    usual.update({name: getattr(TrainConfig, name) for name in deciding})
    usual.update(filled or {})
    return {name: value for name, value in settings.items() if value != usual.get(name)}


def refuse(name: str, value: object, allowed: str = "") -> NoReturn:
    """Say that a setting cannot have this value.

    Args:
        name: of the setting.
        value: that was given.
        allowed: what may be given, if that depends on other settings.

    Raises:
        UsageError: always.
    """
    hint = f"Give {allowed or SETTINGS[name].values}"
    raise UsageError(f"{spelling().setting(name)} cannot be {value}", hint)
