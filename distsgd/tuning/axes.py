"""Axes: settings that a study varies, and the values that each of them takes.

An axis is written as a list of values, ``0.1,0.01``, or as a range to draw from: ``0.5..0.99``
(evenly) or ``log:0.001..0.1`` (evenly in the logarithm). A range followed by ``:5`` has five evenly
spaced values as well, for a grid.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.config.settings import SETTINGS
from distsgd.config.sources import meant_by
from distsgd.core.model import LINEAR
from distsgd.errors import UsageError
from distsgd.simulation.scenario import policy_settings
from distsgd.spelling import spelling

__all__ = [
    "HIDDEN",
    "NAMING",
    "Axis",
    "axis",
    "name_of",
    "parsed_axes",
    "product",
    "without_strays",
]

HIDDEN = "hidden"
"""An axis that is no setting: the hidden units of ``model``; 0 for none."""

NAMING = ("dataset", "model", "loss", "optimizer", "consistency", "schedule", "compress", "channel")
"""Settings whose values say enough without their name."""

_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(:(?P<points>\d+))?")
_MOST_VALUES = 10_000


@dataclass(frozen=True)
class Axis:
    """A setting that varies.

    Attributes:
        name: of the setting, or `HIDDEN`.
        values: that it takes; of a range, its evenly spaced ones, if their number was given.
        low: lower end of a range.
        high: upper end.
        log: whether the range is even in the logarithm.
        whole: whether its numbers are whole.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        """Whether values are drawn from a range."""
        return self.low is not None

    def at(self, share: float) -> Any:
        """The value at a place of the axis.

        Args:
            share: from 0 to below 1; equal lengths of it are equally likely.
        """
        if self.low is None or self.high is None:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.whole and not self.log:
            return min(
                int(self.high), int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
            )
        if self.log:
            number = self.low * (self.high / self.low) ** share
        else:
            number = self.low + share * (self.high - self.low)
        # Three digits are finer than any accuracy can tell, and can be read and typed.
        return round(number) if self.whole else float(f"{number:.3g}")

    @property
    def text(self) -> str:
        """The axis as it can be written."""
        if self.low is None:
            return ",".join(map(str, self.values))
        points = f":{len(self.values)}" if self.values else ""
        return f"{'log:' * self.log}{self.low:g}..{self.high:g}{points}"


def parsed_axes(
    option: str, given: Mapping[str, Any] | Iterable[str], refused: Mapping[str, str]
) -> list[Axis]:
    """The axes that a user asks for.

    Args:
        option: how the option is called, "vary" or "search".
        given: name -> values as a list or as text; or texts such as "loss=softmax,svm".
        refused: settings that cannot vary -> what to do instead.

    Raises:
        UsageError: one cannot be used, or a setting is given twice.
    """
    if isinstance(given, str):
        given = [given]
    named = given.items() if isinstance(given, Mapping) else (_split(option, t) for t in given)
    found: list[Axis] = []
    for name, values in named:
        plain = name.strip().replace("-", "_")
        if plain in [one.name for one in found]:
            raise UsageError(
                f"{spelling().setting(option)}: {plain} is given twice", "Give it once"
            )
        found.append(axis(option, plain, values, refused))
    return found


def _split(option: str, text: str) -> tuple[str, str]:
    name, equals, values = str(text).partition("=")
    if not equals or not values.strip():
        raise UsageError(
            f"{spelling().given(option, text)} has no values",
            "Write it as name=value,value, such as learning_rate=0.01,0.001",
        )
    return name, values


def axis(option: str, name: str, values: Any, refused: Mapping[str, str]) -> Axis:
    """One axis; see `parsed_axes`.

    Raises:
        UsageError: there is no such setting, it cannot vary, or it cannot have a value.
    """
    how = spelling().setting(option)
    if name in ("hidden_units", HIDDEN):
        name = HIDDEN
    elif name not in SETTINGS:
        near = meant_by(name)
        hint = f"Did you mean {near}?" if near else f"There are: {', '.join(SETTINGS)}"
        raise UsageError(f"{how}: there is no setting '{name}'", hint)
    if name in refused:
        raise UsageError(f"{how}: {name} cannot vary here", refused[name])
    if isinstance(values, str):
        if (found := _RANGE.fullmatch(values.strip())) is not None:
            return _range(how, name, found)
        values = [part.strip() for part in values.split(",") if part.strip()]
    elif not isinstance(values, Sequence):
        values = [values]
    if not values:
        raise UsageError(f"{how}: {name} has no values", "Give at least one")
    return Axis(name, tuple(dict.fromkeys(_parsed(how, name, value) for value in values)))


def _range(how: str, name: str, found: re.Match[str]) -> Axis:
    kind = "int" if name == HIDDEN else SETTINGS[name].kind
    if kind not in ("int", "float"):
        raise UsageError(
            f"{how}: {name} is no number, so it has no range {found[0]}", "List its values"
        )
    low, high = (_parsed(how, name, found[end].strip()) for end in ("low", "high"))
    log, points = bool(found["log"]), int(found["points"] or 0)
    if not low < high or (log and low <= 0):
        raise UsageError(
            f"{how}: {name} cannot range over {found[0]}",
            "Give the smaller end first" + ", and ends above 0 for a logarithm" * log,
        )
    if points > _MOST_VALUES or points == 1:
        raise UsageError(
            f"{how}: {name} cannot have {points} values in {found[0]}", "Give 2 or more"
        )
    values = np.geomspace(low, high, points) if log else np.linspace(low, high, points)
    whole = kind == "int"
    shown = [round(v) if whole else float(f"{v:.3g}") for v in values.tolist()]
    return Axis(name, tuple(dict.fromkeys(shown)), float(low), float(high), log, whole)


def _parsed(how: str, name: str, value: Any) -> Any:
    """A value of a setting; a policy may have its parameter with it, as ssp:3."""
    try:
        if name == HIDDEN:
            number = int(value)
            if number < 0 or isinstance(value, bool) or float(value) != number:
                raise ValueError
            SETTINGS["model"].parse(f"mlp:{number}" if number else LINEAR)
            return number
        if value == SETTINGS[name].special and value:
            return value
        if name == "consistency":
            return _policy(value)
        return SETTINGS[name].parse(value)
    except (ValueError, TypeError):
        allowed = "whole numbers of units, 0 for none" if name == HIDDEN else SETTINGS[name].values
        raise UsageError(f"{how}: {name} cannot be {value}", f"Give {allowed}") from None


def _policy(value: Any) -> str:
    try:
        ((name, _),) = policy_settings([str(value)])
    except UsageError:
        raise ValueError from None
    return name


def product(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """All combinations of the values of some axes; the last one varies fastest."""
    names = [one.name for one in axes]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(one.values for one in axes))
    ]


def without_strays(settings: Mapping[str, Any], varied: Iterable[str]) -> dict[str, Any]:
    """Settings without those that have no meaning beside the varied ones.

    With ``consistency=bsp,ssp`` and ``staleness=4``, `bsp` is without staleness.

    Args:
        settings: by name.
        varied: names of those that vary.
    """
    varied, found = set(varied), {}
    for name, value in settings.items():
        other, values = SETTINGS[name].belongs_to or ("", ())
        if other in varied and str(settings.get(other, "")).partition(":")[0] not in values:
            continue
        found[name] = value
    return found


def name_of(values: Mapping[str, Any]) -> str:
    """A short name of some values: "ssp:3, learning_rate 0.01"."""
    return ", ".join(
        str(value) if name in NAMING else f"{name} {_shown(value)}"
        for name, value in values.items()
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
