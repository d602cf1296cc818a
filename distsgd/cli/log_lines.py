"""The log of a command: text for people, or one JSON object a line for programs.

It goes to stderr; results go to stdout. `distsgd.cli.output` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from distsgd.errors import UsageError

__all__ = ["FLAG", "as_json", "choose", "format_among", "log_line", "noticed", "plain"]

FLAG = "--log-format"
_FORMATS = ("text", "json")
_format = _FORMATS[0]


def format_among(words: Sequence[str]) -> tuple[list[str], str]:
    """Take the flag out of a command line, where it may stand anywhere.

    Args:
        words: of the line.

    Returns:
        the other words, and the format: "text" if the flag is not there.

    Raises:
        UsageError: there is no such format.
    """
    rest, found, words = [], _FORMATS[0], list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        found = value if equals else words.pop(0) if words else ""
        if found not in _FORMATS:
            raise UsageError(f"{FLAG} cannot be {found or 'nothing'}", "Give text or json")
    return rest, found


def choose(format: str) -> None:
    """Log in a format from now on: "text" or "json"."""
    global _format
    _format = format


def as_json() -> bool:
    """Whether log lines are JSON."""
    return _format == "json"


def log_line(event: str, level: str = "info", **fields: Any) -> str:
    """One line of the log as JSON.

    Args:
        event: what happened, one word.
        level: "info", "warning" or "error".
        **fields: what is known of it; numbers that JSON does not know become null.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = {"time": now, "level": level, "event": event, **fields}
    return json.dumps(plain(content), allow_nan=False, default=str)


def noticed(text: str, level: str = "info") -> str:
    """A text for people as a line of the log, in its format."""
    return log_line("notice", level, message=text) if as_json() else text


def plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
