"""The best settings of a search as a TOML file that `distsgd train --config` takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from distsgd.config.settings import SETTINGS, TrainConfig

__all__ = ["settings_to_repeat", "settings_toml"]

_GROUPS = ("Data", "Model", "Optimisation")
_OWN = ("validation", "cache", "cache_budget", "cache_size")
"""Settings that a later training chooses for itself."""


def settings_to_repeat(config: TrainConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which a training repeats another one: those that determine its result.

    What follows from a recipe is in it as a number, so that it does not change with the recipe.

    Args:
        config: of the training.
        given: settings that were given for it; those of the fleet and output among them are kept.
    """
    found = {}
    for name, known in SETTINGS.items():
        other, values = known.belongs_to or ("", ())
        meant = not other or getattr(config, other) in values
        decides = known.group in _GROUPS and name not in _OWN
        if (decides or (name in given and name not in _OWN)) and meant:
            value = getattr(config, name)
            if value is not None:
                found[name] = value
    return found


def settings_toml(settings: Mapping[str, Any], remarks: Iterable[str]) -> str:
    """Settings as the text of a TOML file, below comments."""
    lines = [f"# {''.join(c if c.isprintable() else ' ' for c in one)}" for one in remarks]
    lines += [f"{name} = {_value(value)}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value)
