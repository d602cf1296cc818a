"""What is known of a setting: the metadata of a field of `TrainConfig`, and the check of a value.

Flags, ``--set``, files, the manual's page of settings and the list of what a resume may change all
follow from this metadata.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GROUPS", "Setting", "described", "one_of", "setting", "settings_of"]

GROUPS = ("Data", "Model", "Optimisation", "Fleet", "Output", "Faults")
"""The groups of settings, in the order in which they are shown."""

_KINDS = {
    "int": ("a", "whole number"),
    "float": ("a", "number"),
    "str": ("a", "text"),
    "bool": ("true or false", ""),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of a training.

    Attributes:
        name: as in Python, in files and for ``--set``.
        kind: type of its value: "int", "float", "str" or "bool".
        default: its value if it is not given; None if that depends on others.
        help: what it is, in plain words: a sentence, or a phrase that its choices complete.
        group: one of `GROUPS`.
        flag: whether the command line has a flag for it; else it is given with ``--set``.
        choices: the values that it can have; empty if it is not one of a few.
        special: a word that users may give in place of a value, such as "auto"; it is resolved
            before the settings are complete.
        least: smallest value, allowed.
        most: largest value, allowed.
        above: all values are larger.
        below: all values are smaller.
        unit: what a number counts, such as "seconds".
        allowed: what may be given, in words, if the above cannot say it.
        check: raises ValueError for a value that cannot be used.
        belongs_to: the setting, and the values of it, without which this one has no meaning.
        usual: the default in words if it depends on other settings.
        resumable: whether a resume may change it.
        aliases: names that other tools have for it.
    """

    name: str = ""
    kind: str = "str"
    default: Any = None
    help: str
    group: str
    flag: bool = False
    choices: tuple[str, ...] = ()
    special: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""
    allowed: str = ""
    check: Callable[[Any], object] | None = None
    belongs_to: tuple[str, tuple[str, ...]] | None = None
    usual: str = ""
    resumable: bool = False
    aliases: tuple[str, ...] = ()

    def parse(self, value: Any) -> Any:
        """A value as the type of the setting; texts, as from ``--set``, are read.

        Raises:
            ValueError: it cannot be used, whatever the other settings are.
        """
        try:
            found = _PARSERS[self.kind](value)
        except (TypeError, ValueError, KeyError, OverflowError):
            raise ValueError from None
        outside = (
            (self.least is not None and found < self.least)
            or (self.most is not None and found > self.most)
            or (self.above is not None and found <= self.above)
            or (self.below is not None and found >= self.below)
            or (self.choices and found not in self.choices)
        )
        if outside:
            raise ValueError
        if self.check is not None:
            self.check(found)
        return found

    @property
    def values(self) -> str:
        """What may be given, in words: "a whole number from 0 to 10,000"."""
        if self.allowed:
            words = self.allowed
        elif self.choices:
            words = "one of " + ", ".join(self.choices)
        else:
            article, noun = _KINDS[self.kind]
            words = f"{article} {noun}".strip()
            words += f" of {self.unit}" * bool(self.unit) + self._range()
        return words + f", or {self.special}" * bool(self.special)

    def _range(self) -> str:
        if self.least is not None and self.most is not None:
            return f" from {_shown(self.least)} to {_shown(self.most)}"
        if self.least is not None and self.below is not None:
            return f" from {_shown(self.least)} to below {_shown(self.below)}"
        if self.above is not None:
            most = "" if self.most is None else f", up to {_shown(self.most)}"
            return f" above {_shown(self.above)}{most}"
        return "" if self.least is None else f", {_shown(self.least)} or more"

    @property
    def usually(self) -> str:
        """The default in words; empty for a switch that is off."""
        if self.default is None:
            return self.usual
        if isinstance(self.default, bool):
            return "true" if self.default else ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def setting(default: Any, help: str, group: str, *, aliases: str = "", **more: Any) -> Any:
    """A field of the settings; see `Setting` for the arguments.

    Args:
        default: of the field.
        help: see `Setting`.
        group: likewise.
        aliases: with spaces between.
        **more: likewise.
    """
    known = Setting(help=help, group=group, aliases=tuple(aliases.split()), **more)
    return dataclasses.field(default=default, metadata={"setting": known})


def settings_of(cls: type) -> dict[str, Setting]:
    """The settings that are the fields of a dataclass, by name."""
    return {
        one.name: dataclasses.replace(
            one.metadata["setting"],
            name=one.name,
            kind=str(one.type).split(" ")[0],
            default=one.default,
        )
        for one in dataclasses.fields(cls)
    }


def one_of(words: tuple[str, ...]) -> str:
    """Some words as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def described(one: Setting) -> str:
    """What a setting is, as a sentence; its choices follow a phrase."""
    return one.help if one.help.endswith(".") else f"{one.help}: {one_of(one.choices)}."


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise ValueError
    return str(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole,
    "float": _number,
    "str": _text,
    "bool": lambda value: {"true": True, "false": False}[str(value).lower()],
}


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
