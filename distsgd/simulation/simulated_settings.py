"""The settings of simulated trainings: of a scenario, of flags, and of the policies compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.core.server.consistency import POLICIES
from distsgd.errors import UsageError
from distsgd.simulation.scenario import parts_of, refuse

__all__ = ["policy_name", "policy_settings", "simulated_config"]

_NUMBERS = {"ssp": "staleness", "backup": "backup", "local": "local_steps"}
"""Policy -> the setting that is its number."""

_NOT_SIMULATED = {
    "workers": "Say how many are simulated with --workers, or at the top of the scenario",
    "channel": "Say how fast it is with --latency and --bandwidth",
}


def policy_name(config: TrainConfig) -> str:
    """A policy as it is written for a comparison, such as "ssp:3"."""
    number = _NUMBERS.get(config.consistency)
    return f"{config.consistency}:{getattr(config, number)}" if number else config.consistency


def policy_settings(policies: str | Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each policy of "bsp,ssp:3,asp,backup:4,local:8" with its settings.

    Raises:
        UsageError: there is no such policy, it takes no number, or it is named twice.
    """
    texts = parts_of(list(policies) if not isinstance(policies, str) else policies)
    found: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        name, colon, number = text.partition(":")
        settings: dict[str, Any] = {"consistency": name}
        takes = _NUMBERS.get(name)
        if name not in POLICIES or (colon and not (takes and number.isdecimal())):
            raise refuse("policies", text, f"Give some of {', '.join(POLICIES)}, with a whole "
                          "number after ssp, backup and local, such as ssp:3")  # fmt: skip
        if colon and takes:
            settings[takes] = int(number)
        if any(text == other for other, _ in found):
            raise UsageError(f"--policies names {text} twice", "Name each policy once")
        found.append((text, settings))
    return found


def simulated_config(
    file: dict[str, Any],
    flags: dict[str, Any],
    assignments: list[str] | None,
    policy: dict[str, Any] | None = None,
) -> TrainConfig:
    """The settings of a simulated training; flags and --set go over those of the scenario.

    Args:
        file: the table ``[train]`` of a scenario.
        flags: settings by name; None means not given.
        assignments: texts of the form "name=value".
        policy: those of one of the policies that are compared; they go over flags.

    Raises:
        UsageError: a setting is unknown, cannot be used, or is not simulated.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    given.update(policy or {})
    named = {text.partition("=")[0].strip() for text in assignments or []}
    kept = {name: value for name, value in file.items() if name not in named}
    for name, hint in _NOT_SIMULATED.items():
        if name in {*kept, *named}:
            raise UsageError(f"{name} is no setting of a simulated training", hint)
    origins = dict.fromkeys(set(kept) - set(given), "[train] of the scenario")
    origins.update(dict.fromkeys(policy or {}, "--policies"))
    return config_from({**kept, **given}, None, assignments, origins)
