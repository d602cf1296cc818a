"""What is wrong with how a command line ended, by its exit code and what it printed."""

from __future__ import annotations

import re
from collections.abc import Collection

FAULT = re.compile(
    r"bug in distsgd|Traceback \(most recent|Exception ignored|Fatal Python|Segmentation|OpenBLAS"
    r"|\b[A-Z][A-Za-z]*Warning: "
)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain_lines(text: str) -> list[str]:
    """The lines of a text, without the colours of a terminal."""
    return [line.rstrip("\r") for line in ANSI.sub("", text).splitlines()]


def errors_in(lines: list[str]) -> list[str]:
    """The lines that say what went wrong."""
    return [line for line in lines if line.startswith("error: ")]


def last_of(lines: list[str]) -> str:
    """The last line that is not blank."""
    return next((line for line in reversed(lines) if line.strip()), "nothing is printed")


def faults_of(
    code: int | None, text: str, *, expected: Collection[int], allowed: str = "",
    reason_is_read: bool = True, usage_is_read: bool = True,
) -> list[str]:  # fmt: skip
    """What every command line has to keep to; empty if it does.

    Args:
        code: the exit code, negative for a signal; None if the command did not end.
        text: what it printed.
        expected: exit codes that are fine.
        allowed: a character that is not printable and may be in an error.
        reason_is_read: whether the stream of errors was read. They say in one line why the exit
            code is 1 or 2, unless the parser's box does.
        usage_is_read: whether the stream of that box was read.
    """
    found, lines = [], plain_lines(text)
    if code is None:
        found.append("it does not end when it is interrupted")
    elif code not in expected:
        found.append(f"exit code {code}: {last_of(lines)}")
    found += [line.strip() for line in lines if FAULT.search(line)][:1]
    errors = errors_in(lines)
    by_parser = code == 2 and not errors and ("Usage: " in text or not usage_is_read)
    if code in (1, 2) and reason_is_read and len(errors) + by_parser != 1:
        found.append(f"{len(errors)} error lines with exit code {code}: {last_of(lines)}")
    raw = errors_in([line.rstrip("\r") for line in text.splitlines()])
    odd = [line for line in raw if not all(c.isprintable() or c in allowed for c in line)]
    return found + [f"control characters in an error: {line!r:.200}" for line in odd[:1]]
