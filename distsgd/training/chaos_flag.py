"""What a user writes after --chaos: "kill-worker:every=50,drop-push:p=0.01,seed=7"."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from distsgd.core.chaos import PROCESS_FAULTS, PUSH_FAULTS, Chaos, Fault
from distsgd.errors import UsageError

__all__ = ["chaos_from"]

_UNITS = {"s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|ms)")

SILENCE = 1.5
"""Seconds that a worker says nothing after a push of its was dropped, if none are given. The server
finds a lease overdue after a second at the soonest, and gives it to others."""

_MOMENT = "every=UPDATES or at=UPDATE"
_NEEDS = {
    "kill-worker": (_MOMENT, ("every", "at")),
    "stop-worker": (f"for=TIME and {_MOMENT}", ("every", "at", "for")),
    "kill-server": (_MOMENT, ("every", "at")),
    "drop-push": ("p=CHANCE, and for=TIME if you like", ("p", "for")),
    "dup-push": ("p=CHANCE", ("p",)),
    "delay": ("p=CHANCE and for=TIME", ("p", "for")),
}


def chaos_from(text: str, seed: int, workers: int) -> Chaos:
    """The faults that a text asks for.

    Args:
        text: pieces with commas between, each FAULT:NAME=VALUE:NAME=VALUE..., or seed=N.
        seed: of the run; that of the faults, if the text has none.
        workers: of the run; one process without Ray has nobody to kill.

    Raises:
        UsageError: names the piece that cannot be used.
    """
    faults: list[Fault] = []
    seeds: list[int] = []
    for piece in (part.strip() for part in text.split(",")):
        if piece.startswith("seed="):
            seeds.append(_whole(piece, "seed", piece[5:], 0))
        else:
            faults.append(_fault(piece))
        if len(seeds) > 1:
            raise _refused(piece, "the seed is given twice", "Give it once")
        if faults and faults[-1].name in PROCESS_FAULTS and not workers:
            raise _refused(
                piece, "--workers 0 trains in one process, which has no workers or servers",
                f"Give --workers 1 or more; {', '.join(PUSH_FAULTS)} go without",
            )  # fmt: skip
    if not faults:
        raise _refused(text, "no fault is asked for", _known())
    return Chaos(tuple(faults), seeds[0] if seeds else seed, text)


def _refused(piece: str, why: str, hint: str) -> UsageError:
    return UsageError(f"--chaos: '{piece}': {why}", hint)


def _known() -> str:
    return "There are: " + ", ".join(_NEEDS)


def _fault(piece: str) -> Fault:
    name, *words = piece.split(":")
    if name not in _NEEDS:
        near = difflib.get_close_matches(name, _NEEDS, 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else _known()
        raise _refused(piece, f"there is no fault '{name}'", hint)
    wanted, allowed = _NEEDS[name]
    hint = f"Write {name}: with {wanted}"
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in allowed or not equals:
            raise _refused(piece, f"'{word}' is not understood", hint)
        if key in given:
            raise _refused(piece, f"{key} is given twice", hint)
        given[key] = _PARSERS[key](piece, value)
    if name in PROCESS_FAULTS and ("every" in given) == ("at" in given):
        raise _refused(piece, "it needs one of every= and at=", hint)
    for key in ("p", "for"):
        if key in allowed and key not in given and (name, key) != ("drop-push", "for"):
            raise _refused(piece, f"it needs {key}=", hint)
    if name == "drop-push" and given["p"] == 1:
        raise _refused(piece, "no push would ever come", "Give a p below 1")
    return Fault(
        name, given.get("every", 0), given.get("at", 0), given.get("p", 0.0),
        given.get("for", SILENCE if name == "drop-push" else 0.0),
    )  # fmt: skip


def _whole(piece: str, key: str, value: str, least: int) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise _refused(piece, f"{key} cannot be '{value}'", f"Give a whole number, {least} or more")
    return int(value)


def _chance(piece: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise _refused(piece, f"p cannot be '{value}'", "Give a number above 0, up to 1")
    return share


def _seconds(piece: str, value: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None or not float(found[1]):
        raise _refused(piece, f"for cannot be '{value}'", "Give a time such as 2s or 20ms")
    return float(found[1]) * _UNITS[found[2]]


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "every": lambda piece, value: _whole(piece, "every", value, 1),
    "at": lambda piece, value: _whole(piece, "at", value, 1),
    "p": _chance,
    "for": _seconds,
}
