"""Checks of the arguments of Python functions: a wrong type is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

from distsgd.config.settings import SETTINGS
from distsgd.config.sources import check_name
from distsgd.config.table import described
from distsgd.errors import UsageError
from distsgd.spelling import spelling
from distsgd.training.results import Reporter

__all__ = ["as_path", "as_reporter", "as_text", "as_whole_number", "with_settings"]

_CALLS = ("started", "progress", "epoch", "notice", "ended")
"""What a reporter must have; `stage` it may have."""


F = TypeVar("F", bound=Callable[..., Any])


def with_settings(function: F) -> F:
    """Complete a function that takes settings as arguments.

    The meaning of every setting is put in place of SETTINGS in its docstring, and an argument that
    it does not have is a `UsageError` that names the setting which was probably meant.
    """
    lines = "\n        ".join(
        f"{name}: {described(known)}" + f" (default: {known.usually})" * bool(known.usually)
        for name, known in SETTINGS.items()
    )
    function.__doc__ = (function.__doc__ or "").replace("SETTINGS", lines)
    known = frozenset(signature(function).parameters)

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        for name, value in named.items():
            if name not in known:
                check_name(name, value, spelling())
        return function(*arguments, **named)

    return cast(F, checked)


def as_path(name: str, value: Any) -> Path:
    """A path.

    Args:
        name: of the argument.
        value: what was given for it.

    Raises:
        UsageError: it is neither text nor a path.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str) or "\0" in text:
        raise UsageError(f"{name} cannot be {_shown(value)}", "Give a path, as text or a Path")
    return Path(text)


def as_text(name: str, value: Any, example: str) -> str | None:
    """A text, or None.

    Args:
        name: of the argument.
        value: what was given for it.
        example: of what can be given.

    Raises:
        UsageError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name} cannot be {_shown(value)}", f"Give a text such as {example!r}")
    return value


def as_whole_number(name: str, value: Any, least: int) -> int:
    """A whole number of a least value.

    Args:
        name: of the argument.
        value: what was given for it.
        least: the smallest that can be used.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        shown = _shown(value)
        raise UsageError(f"{name} cannot be {shown}", f"Give a whole number, {least} or more")
    return value


def as_reporter(value: Any) -> Reporter:
    """A reporter, a silent one for None.

    Args:
        value: an object with the methods of `Reporter`.

    Raises:
        UsageError: it is something else.
    """
    if value is None:
        return Reporter()
    if isinstance(value, type) or not all(callable(getattr(value, call, None)) for call in _CALLS):
        raise UsageError(
            f"reporter cannot be {_shown(value)}",
            "Give an object of a class that extends distsgd.Reporter and overrides some of "
            + ", ".join(_CALLS),
        )
    reporter: Reporter = value
    return reporter


def _shown(value: Any) -> str:
    """The value, if it is short, and its type."""
    text, kind = repr(value), type(value).__name__
    short = len(text) <= 60 and "\n" not in text and not text.startswith("<")
    return f"{text} ({kind})" if short else f"a {kind}"
