"""What a sweep does: the combinations of settings, and the training of each with each seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distsgd.config.settings import SETTINGS, TrainConfig
from distsgd.config.sources import config_from
from distsgd.data.find import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.addresses import is_uri
from distsgd.errors import UsageError
from distsgd.simulation.scenario import policy_settings
from distsgd.spelling import spelling
from distsgd.tuning.axes import HIDDEN, Axis, name_of, parsed_axes, product, without_strays

__all__ = [
    "Point", "SweepPlan", "data_digest", "plain_settings", "settings_of_axes", "sweep_plan",
]  # fmt: skip

_REFUSED = {"seed": "Give the number of seeds in its place: {seeds}"}
_MOST_RUNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training of a sweep.

    Attributes:
        number: from 1.
        name: of its combination, such as "ssp:3".
        varied: setting -> value, as asked for.
        config: all its settings.
    """

    number: int
    name: str
    varied: dict[str, Any]
    config: TrainConfig

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        plain = re.sub(r"[^\w.]+", "-", self.name).strip("-")[:60] or "run"
        return f"{self.number:03d}-{plain}-seed-{self.config.seed}"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep.

    Attributes:
        definition: what was asked for, as JSON has it; it says whether two sweeps are the same.
        varied: names of the settings that vary.
        seeds: of each combination.
        points: the trainings, in their order.
    """

    definition: dict[str, Any]
    varied: tuple[str, ...]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]


def sweep_plan(
    vary: Any,
    seeds: Any = 1,
    settings: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
) -> SweepPlan:
    """The trainings of a sweep: all combinations of the varied settings, each with each seed.

    Args:
        vary: setting -> values, or texts such as "consistency=bsp,ssp:3"; may be empty.
        seeds: how many, counted up from the setting ``seed``.
        settings: those that do not vary; None means not given.
        origins: where they come from, see `distsgd.config.sources.config_from`.

    Raises:
        UsageError: something cannot be used, or there are too many trainings.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    refused = {name: hint.format(seeds=spelling().given("seeds", 3))
               for name, hint in _REFUSED.items()}  # fmt: skip
    axes = parsed_axes("vary", vary, refused)
    for one in axes:
        _check_axis(one, given)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= _MOST_RUNS:
        raise UsageError(
            f"{spelling().given('seeds', seeds)} is no number of seeds",
            f"Give a whole number from 1 to {_MOST_RUNS:,}",
        )
    first = config_from(_settings(given, _first(axes)), origins).seed
    several = tuple(range(first, first + seeds))
    points: list[Point] = []
    seen: set[str] = set()
    for combination in product(axes):
        chosen = _settings(given, combination)
        key = json.dumps({n: chosen.get(n) for n in (*sorted(chosen),)}, default=str)
        if key in seen:  # they differ in what has no meaning for them alone
            continue
        seen.add(key)
        kept = {n: v for n, v in combination.items() if n == HIDDEN or n in chosen}
        name = name_of(kept) or "as given"
        for seed in several:
            if len(points) == _MOST_RUNS:
                raise UsageError(
                    f"a sweep cannot have more than {_MOST_RUNS:,} trainings", "Vary less"
                )
            config = config_from({**chosen, "seed": seed}, origins)
            points.append(Point(number=len(points) + 1, name=name, varied=kept, config=config))
    definition = {
        "vary": [[one.name, list(one.values)] for one in axes],
        "settings": plain_settings({n: v for n, v in given.items() if n != "seed"}),
        "seeds": list(several),
        "data": {name: data_digest(name) for name in {p.config.dataset: None for p in points}},
    }  # fmt: skip
    return SweepPlan(
        definition=definition, varied=tuple(one.name for one in axes), seeds=several,
        points=tuple(points),
    )  # fmt: skip


def _check_axis(one: Axis, given: Mapping[str, Any]) -> None:
    how = spelling().setting("vary")
    if not one.values:
        raise UsageError(
            f"{how}: {one.name} is a range, and a sweep takes all values",
            f"Say how many, such as {one.name}={one.text}:5, or list them",
        )
    both = "model" if one.name == HIDDEN else one.name
    if both in given:
        raise UsageError(
            f"{one.name} is given twice: by {how} and by {spelling().given(both, given[both])}",
            "Give it once",
        )


def _first(axes: list[Axis]) -> dict[str, Any]:
    return {one.name: one.values[0] for one in axes}


def _settings(given: Mapping[str, Any], combination: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a combination that were given."""
    found = without_strays({**given, **settings_of_axes(combination)}, combination)
    return {name: found[name] for name in SETTINGS if name in found} | {
        name: value for name, value in found.items() if name not in SETTINGS
    }


def settings_of_axes(combination: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the values of axes stand for."""
    found: dict[str, Any] = {}
    for name, value in combination.items():
        if name == HIDDEN:
            found["model"] = f"mlp:{value}" if value else "linear"
        elif name == "consistency":
            ((_, own),) = policy_settings([value])
            found.update(own)
        else:
            found[name] = value
    return found


def data_digest(dataset: str) -> str:
    """What tells a dataset from another of the same name; "" for one that is not here."""
    if is_uri(dataset):
        return ""
    return read_manifest(find_dataset(dataset)).digest


def plain_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, in the order of their names."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in sorted(given.items())
    }
