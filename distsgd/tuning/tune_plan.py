"""What a search for settings tries: its trials, and the epochs after which the worst are dropped.

- `random`: values drawn from every axis, spread evenly over it: with n trials each n-th of a range
  has one of them (a Latin hypercube, McKay et al. 1979).
- `grid`: all combinations of the values of the axes.
- `halving`: as `random`, but after some epochs the worst trials are dropped, and the others go on
  (successive halving, Jamieson and Talwalkar 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.config.settings import SETTINGS, TrainConfig
from distsgd.config.sources import config_from
from distsgd.core.model import LINEAR
from distsgd.errors import UsageError
from distsgd.spelling import spelling
from distsgd.tuning.axes import HIDDEN, Axis, name_of, parsed_axes, product, without_strays
from distsgd.tuning.stacked import stacks
from distsgd.tuning.sweep_plan import data_digest, plain_settings, settings_of_axes

__all__ = [
    "METHODS", "USUAL_REDUCTION", "Rung", "Trial", "TunePlan", "default_space", "rungs_of",
    "tune_plan",
]  # fmt: skip

METHODS = ("random", "grid", "halving")
USUAL_REDUCTION = 3
_USUAL_TRIALS, _USUAL_SHARE = 16, 0.1

_SEARCHABLE = (
    "learning_rate", "regularization", "momentum", "batch_size", "loss", HIDDEN, "model",
    "optimizer", "init_scale", "schedule", "scale_lr", "warmup_epochs", "step_epochs",
    "step_factor", "pixel_scale", "sampling",
)  # fmt: skip
_REFUSED = {
    name: "A search is for the best of " + ", ".join(_SEARCHABLE)
    + "; compare other settings by `distsgd sweep`"
    for name in SETTINGS if name not in _SEARCHABLE
}  # fmt: skip
_ELSEWHERE = ("workers", "servers", "elastic", "channel", "placement", "cache", "cache_budget")
"""Settings that change how fast a search is, and not what it finds."""

_MOST_TRIALS = 10_000
_STREAM = 22
"""That of random numbers behind the values of trials."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that are tried.

    Attributes:
        number: from 1.
        values: searched setting -> value.
        config: all its settings.
    """

    number: int
    values: dict[str, Any]
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its values in short."""
        return name_of(self.values)


@dataclass(frozen=True)
class Rung:
    """A stretch of training.

    Attributes:
        until: epochs after which it ends.
        keep: trials that go on, or are left.
    """

    until: int
    keep: int


@dataclass(frozen=True, kw_only=True)
class TunePlan:
    """A search.

    Attributes:
        definition: what was asked for, as JSON has it; it says whether two searches are the same.
        method: one of `METHODS`.
        axes: what is searched.
        given: the settings that are not searched, as they were given.
        trials: in their order.
        rungs: one, or for halving several.
        config: the settings of the first trial.
    """

    definition: dict[str, Any]
    method: str
    axes: tuple[Axis, ...]
    given: dict[str, Any]
    trials: tuple[Trial, ...]
    rungs: tuple[Rung, ...]

    @property
    def config(self) -> TrainConfig:
        """Settings that all trials share can be read from this one."""
        return self.trials[0].config


_AROUND = {"linear": ((1.0, 4.0), (1.0, 8.0)), "mlp": ((0.4, 2.0), (0.2, 5.0))}
"""Ranges of the learning rate and of lambda, as multiples of those of the recipe. The recipe of the
linear model is a cautious one; two layers diverge with three times theirs."""


def default_space(config: TrainConfig) -> list[Axis]:
    """What is searched if nothing is asked for: ranges around the recipe of model and loss."""
    assert config.learning_rate is not None and config.regularization is not None
    around = _AROUND["linear" if config.model == LINEAR else "mlp"]
    found = [
        Axis(name, low=_short(low * middle), high=_short(high * middle), log=True)
        for (name, middle), (low, high) in zip(
            (
                ("learning_rate", config.learning_rate),
                ("regularization", config.regularization or 1e-3),
            ),
            around,
            strict=True,
        )
    ]
    if config.optimizer in ("momentum", "nesterov"):
        found.append(Axis("momentum", low=0.8, high=0.98))
    return found


def _short(number: float) -> float:
    return float(f"{number:.2g}")


def tune_plan(
    search: Mapping[str, Any] | Sequence[str] = (),
    *,
    method: str = "random",
    trials: int | None = None,
    reduction: int = USUAL_REDUCTION,
    settings: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
) -> TunePlan:
    """The trials of a search.

    Args:
        search: setting -> values or range, or texts such as "learning_rate=log:0.001..0.1"; empty
            for `default_space`.
        method: one of `METHODS`.
        trials: how many, for `random` and `halving`; None for 16.
        reduction: of `halving`: one of how many trials goes on at each rung.
        settings: those that are not searched; None means not given.
        origins: where they come from, see `distsgd.config.sources.config_from`.

    Raises:
        UsageError: something cannot be used.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    given.setdefault("validation", _USUAL_SHARE)
    if method not in METHODS:
        raise UsageError(
            f"{spelling().given('method', method)} is no way to search",
            f"Give one of {', '.join(METHODS)}",
        )
    axes = parsed_axes("search", search, _REFUSED)
    _check_given(axes, given)
    base = config_from(_whole(given, {one.name: one.at(0.0) for one in axes}), origins)
    if not base.validation:
        raise UsageError(
            f"{base.given('validation')} leaves no rows to choose by",
            f"Give a share of the training rows, such as {spelling().given('validation', 0.1)}",
        )
    if base.patience:
        raise UsageError(
            f"{base.given('patience')} does not go with a search, whose trials are compared after "
            "as many epochs",
            f"Give {spelling().given('method', 'halving')}, which drops the worst early",
        )
    axes = axes or [one for one in default_space(base) if one.name not in given]
    if not axes:
        raise UsageError(
            "there is nothing to search: learning_rate and regularization are given",
            f"Say what to search: {spelling().setting('search')} learning_rate=log:0.001..0.1",
        )
    drawn = _grid(axes, trials) if method == "grid" else _drawn(axes, trials, base.seed)
    made = []
    for number, values in enumerate(drawn, 1):
        chosen = _whole(given, values)
        kept = {name: v for name, v in values.items() if name == HIDDEN or name in chosen}
        made.append(Trial(number=number, values=kept, config=config_from(chosen, origins)))
    stacks([trial.config for trial in made])  # raises for what cannot be trained so
    rungs = rungs_of(method, len(made), base.epochs, reduction)
    definition = {
        "search": [[one.name, one.text] for one in axes], "method": method,
        "asked": _USUAL_TRIALS if trials is None else trials, "reduction": reduction,
        "trials": [trial.values for trial in made], "rungs": [[r.until, r.keep] for r in rungs],
        "settings": plain_settings({n: v for n, v in given.items() if n not in _ELSEWHERE}),
        "data": data_digest(base.dataset),
    }  # fmt: skip
    return TunePlan(
        definition=definition, method=method, axes=tuple(axes), given=given, trials=tuple(made),
        rungs=rungs,
    )  # fmt: skip


def _check_given(axes: Sequence[Axis], given: Mapping[str, Any]) -> None:
    for one in axes:
        both = "model" if one.name == HIDDEN else one.name
        if both in given:
            raise UsageError(
                f"{one.name} is given twice: by {spelling().setting('search')} and by "
                f"{spelling().given(both, given[both])}",
                "Give it once",
            )
    names = [one.name for one in axes]
    if HIDDEN in names and "model" in names:
        raise UsageError(
            f"{HIDDEN} and model cannot both be searched", "List models: model=linear,mlp:50"
        )


def _whole(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a trial that were given or drawn."""
    return without_strays({**given, **settings_of_axes(values)}, values)


def _grid(axes: Sequence[Axis], trials: int | None) -> list[dict[str, Any]]:
    for one in axes:
        if not one.values:
            raise UsageError(
                f"{spelling().setting('search')}: {one.name} is a range, and a grid takes all "
                "values",
                f"Say how many, such as {one.name}={one.text}:5, or list them",
            )
    count = math.prod(len(one.values) for one in axes)
    if trials is not None and trials != count:
        raise UsageError(
            f"{spelling().given('trials', trials)} does not go with a grid of {count} combinations",
            f"Leave it out, or draw them: {spelling().given('method', 'random')}",
        )
    _check_count(count)
    return product(axes)


def _check_count(count: int) -> None:
    """Raises UsageError for more trials than anybody wants."""
    if count > _MOST_TRIALS:
        raise UsageError(
            f"a search of {count:,} trials is too large", f"Give at most {_MOST_TRIALS:,}"
        )


def _drawn(axes: Sequence[Axis], trials: int | None, seed: int) -> list[dict[str, Any]]:
    count = _USUAL_TRIALS if trials is None else trials
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(
            f"{spelling().given('trials', trials)} is no number of trials",
            f"Give a whole number from 1 to {_MOST_TRIALS:,}",
        )
    _check_count(count)
    random = np.random.default_rng([seed, _STREAM])
    shares = [(random.permutation(count) + random.random(count)) / count for _ in axes]
    drawn = [
        {one.name: one.at(float(share)) for one, share in zip(axes, place, strict=True)}
        for place in np.array(shares).T
    ]
    different = {repr(sorted(values.items())): values for values in drawn}
    return list(different.values())  # of few values, some combinations are drawn twice


def rungs_of(method: str, trials: int, epochs: int, reduction: int) -> tuple[Rung, ...]:
    """When a search drops trials.

    Args:
        method: of the search.
        trials: at its start.
        epochs: of a whole training.
        reduction: one of how many goes on.

    Raises:
        UsageError: that cannot be used.
    """
    if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 2:
        raise UsageError(
            f"{spelling().given('reduction', reduction)} drops nothing",
            "Give a whole number, 2 or more: with 3, the best third of the trials go on",
        )
    if method != "halving":
        return (Rung(epochs, trials),)
    count = min(_log(trials, reduction), _log(epochs, reduction))
    found = []
    for place in range(count):
        until = max(1, round(epochs / reduction ** (count - place)))
        found.append(Rung(until, -(-trials // reduction ** (place + 1))))
    return (*found, Rung(epochs, found[-1].keep if found else trials))


def _log(number: int, base: int) -> int:
    """The largest power of a base that is not above a number."""
    found = 0
    while base ** (found + 1) <= number:
        found += 1
    return found
