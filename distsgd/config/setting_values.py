"""The values of settings as the types of their fields."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

from distsgd.config.spelling import spelling
from distsgd.errors import UsageError

__all__ = ["as_type", "refuse"]


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
