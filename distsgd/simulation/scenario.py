"""Small expressions for a simulated fleet, from flags or a TOML file.

The settings of simulated trainings: of a scenario, of flags, and of the policies compared.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.config.sources import config_from
from distsgd.config.table import one_of
from distsgd.core.server.consistency import POLICIES
from distsgd.data.text_files import read_text
from distsgd.errors import UsageError
from distsgd.simulation.fleet import Fleet, Jitter
from distsgd.spelling import spelled, spelling

__all__ = ["fleet_from", "policy_name", "policy_settings", "read_scenario", "simulated_config"]


_JITTER = (
    "Write none, lognormal:SIGMA, pareto:ALPHA or pause:CHANCE:FACTOR, such as pareto:1.5, with "
    "SIGMA and ALPHA above 0, CHANCE from 0 to 1 and FACTOR 1 or more"
)
_SLOW = "Write COUNT:FACTOR, such as 1:4 for one worker 4 times slower; several with commas"
_MOMENT = "Write WORKER@SECONDS, such as 3@0.25; several with commas. Workers count from 0"


MOST_SIMULATED = 10_000
"""Workers of a simulated fleet: each has a W and a gradient of its own."""


def refuse(name: str, value: object, hint: str) -> UsageError:
    """The error of an argument that is not allowed."""
    return UsageError(f"{spelled(name)} cannot be {value}", hint)


def parts_of(value: Any) -> list[str]:
    """The elements of "a,b", or of a list."""
    texts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(text).strip() for text in texts]


def _number(text: Any) -> float:
    number = float(text)
    if isinstance(text, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _least(name: str, low: float, *, inclusive: bool, unit: str) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = _number(value)
            if number < low or (number == low and not inclusive):
                raise ValueError
        except (TypeError, ValueError):
            words = f"{low:g} or more" if inclusive else f"above {low:g}"
            raise refuse(name, value, f"Give a number of {unit}, {words}") from None
        return number

    return parse


def _workers(value: Any) -> int:
    try:
        number = _number(value)
        if not 1 <= number <= MOST_SIMULATED or not number.is_integer():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        hint = f"Give a whole number from 1 to {MOST_SIMULATED:,}"
        raise refuse("workers", value, hint) from None
    return int(number)


def _pairs(
    name: str, separator: str, hint: str, fits: Callable[[int, float], bool]
) -> Callable[[Any], tuple[tuple[int, float], ...]]:
    """Reads a list of pairs, each a whole number and a number, such as 1:4 or 3@0.25."""

    def parse(value: Any) -> tuple[tuple[int, float], ...]:
        pairs = []
        for text in parts_of(value):
            try:
                first, second = text.split(separator)
                pair = int(first), _number(second)
                if not fits(*pair):
                    raise ValueError
            except ValueError:
                raise refuse(name, text, hint) from None
            pairs.append(pair)
        return tuple(pairs)

    return parse


def _moments(name: str) -> Callable[[Any], tuple[tuple[int, float], ...]]:
    return _pairs(name, "@", _MOMENT, lambda worker, time: min(worker, time) >= 0)


def _jitter(value: Any) -> Jitter:
    name, *texts = str(value).split(":")
    try:
        numbers = tuple(map(_number, texts))
        fits = {
            "none": numbers == (),
            "lognormal": len(numbers) == 1 and numbers[0] > 0,
            "pareto": len(numbers) == 1 and numbers[0] > 0,
            "pause": len(numbers) == 2 and 0 <= numbers[0] <= 1 <= numbers[1],
        }
        if not fits.get(name, False):
            raise ValueError
    except ValueError:
        raise refuse("jitter", value, _JITTER) from None
    return Jitter(name, numbers)


_PARSERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "workers": ("workers", _workers),
    "speed": ("speed", _least("speed", 0, inclusive=False, unit="examples a second")),
    "slow": ("slow", _pairs("slow", ":", _SLOW, lambda count, factor: count >= 1 and factor > 0)),
    "jitter": ("jitter", _jitter),
    "latency": ("latency", _least("latency", 0, inclusive=True, unit="seconds")),
    "bandwidth": ("bandwidth", _least("bandwidth", 0, inclusive=False, unit="bytes a second")),
    "fail": ("failures", _moments("fail")),
    "rejoin": ("rejoins", _moments("rejoin")),
}
"""Name in flags and files -> attribute of `Fleet`, and what reads its expression."""


def fleet_from(given: dict[str, Any]) -> Fleet:
    """The fleet that expressions describe; None means not given.

    Args:
        given: by name: ``workers`` (8), ``speed`` (examples a second of a usual worker, 250000),
            ``slow`` ("COUNT:FACTOR,..."), ``jitter`` ("none", "lognormal:SIGMA",
            "pareto:ALPHA", "pause:CHANCE:FACTOR"), ``latency`` (seconds), ``bandwidth`` (bytes a
            second), ``fail`` and ``rejoin`` ("WORKER@SECONDS,..." or a list of such).

    Raises:
        UsageError: one of them cannot be used; names its name and what is allowed.
    """
    fleet = Fleet(**{
        _PARSERS[name][0]: _PARSERS[name][1](value)
        for name, value in given.items() if value not in (None, [], ())
    })  # fmt: skip
    slow = sum(count for count, _ in fleet.slow)
    if slow > fleet.workers:
        raise UsageError(
            f"{spelled('slow')} names {slow} workers, and {spelled('workers')} is {fleet.workers}",
            "Slow down at most all workers",
        )
    _check_moments(fleet)
    return fleet


def _check_moments(fleet: Fleet) -> None:
    """Workers exist, and each fails and rejoins by turns."""
    moments = [(worker, time, "fail") for worker, time in fleet.failures]
    moments += [(worker, time, "rejoin") for worker, time in fleet.rejoins]
    last: dict[int, tuple[str, float]] = {}
    for worker, time, name in sorted(moments, key=lambda moment: moment[1]):
        if worker >= fleet.workers:
            raise refuse(name, f"{worker}@{time:g}", f"Give a worker from 0 to {fleet.workers - 1}")
        before, when = last.get(worker, ("rejoin", -1.0))
        if before == name or when == time:
            there = "is there" if name == "rejoin" else "has failed"
            raise UsageError(
                f"{spelled(name)} {worker}@{time:g}: worker {worker} {there} already",
                "A worker fails and rejoins by turns, each later than the one before",
            )
        last[worker] = name, time


def read_scenario(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The expressions for the fleet in a TOML file, and the settings in its table ``[train]``.

    Raises:
        UsageError: it cannot be read, or has an unknown name.
    """
    try:
        content = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise UsageError(
            f"{spelled('scenario')}: there is no file {path}", "Check the path"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{spelled('scenario')}: {path} cannot be read: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{spelled('scenario')}: {path} is not valid: {error}",
            'Write lines such as: slow = "1:4"',
        ) from None
    settings = content.pop("train", {})
    for name in content:
        if name not in _PARSERS:
            near = difflib.get_close_matches(name, _PARSERS, 1, 0.4)
            hint = f"Did you mean {near[0]}" if near else f"There are: {', '.join(_PARSERS)}"
            hint += "; settings of training go into a table [train]"
            raise UsageError(f"{spelled('scenario')} {path}: there is no '{name}'", hint)
    if not isinstance(settings, dict):
        raise UsageError(
            f"{spelled('scenario')} {path}: train is not a table", "Write [train] on a line"
        )
    return content, settings


_NOT_SIMULATED = {
    "workers": "The number of simulated workers belongs at the top of the scenario",
    "channel": "Describe the channel by latency and bandwidth",
}
"""Settings of `train` that a simulation does not have -> what to do instead."""


def policy_name(config: TrainConfig) -> str:
    """A policy as it is written for a comparison, such as "ssp:3"."""
    numbers = (getattr(config, name) for name in POLICIES[config.consistency].parameters())
    return ":".join(map(str, (config.consistency, *numbers)))


def policy_settings(policies: str | Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each policy of "bsp,ssp:3,asp,backup:4,local:8" with its settings.

    Raises:
        UsageError: there is no such policy, it takes no number, or it is named twice.
    """
    texts = parts_of(list(policies) if not isinstance(policies, str) else policies)
    result: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        name, *numbers = text.split(":")
        takes = tuple(POLICIES[name].parameters()) if name in POLICIES else ()
        fits = len(numbers) <= len(takes) and all(number.isdecimal() for number in numbers)
        if name not in POLICIES or not fits:
            numbered = [name for name, policy in POLICIES.items() if policy.parameters()]
            raise refuse(
                "policies", text, f"Give some of {', '.join(POLICIES)}, with a whole number after "
                f"{one_of(tuple(numbered))}, such as ssp:3",
            )  # fmt: skip
        if any(text == other for other, _ in result):
            raise UsageError(f"{spelled('policies')} names {text} twice", "Name each policy once")
        settings = dict(zip(takes, map(int, numbers), strict=False))
        result.append((text, {"consistency": name, **settings}))
    return result


def simulated_config(
    file: dict[str, Any],
    given: dict[str, Any],
    origins: dict[str, str],
    policy: dict[str, Any] | None = None,
) -> TrainConfig:
    """The settings of a simulated training; arguments override those of the scenario.

    Args:
        file: the table ``[train]`` of a scenario.
        given: settings by name, which override those of the file.
        origins: where those of ``given`` come from that are no arguments; see `Spelling`.
        policy: the settings of one of the policies that are compared, which override flags.

    Raises:
        UsageError: a setting is unknown, given twice, cannot be used, or is not simulated.
    """
    for name, hint in _NOT_SIMULATED.items():
        if name in {*file, *given}:
            raise UsageError(f"{name} is no setting of a simulated training", hint)
    origins = {**dict.fromkeys(set(file) - set(given), "[train] of the scenario"), **origins}
    for name in policy or {}:
        if name in origins and name in given:
            by, also = spelled("policies"), spelling().with_origins(origins)
            raise UsageError(
                f"{name} is given twice: by {by} and by {also.given(name, given[name])}",
                "Give it once",
            )
        origins[name] = spelled("policies")
    return config_from({**file, **given, **(policy or {})}, origins)
