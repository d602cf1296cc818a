"""Reading a journal, from its beginning or from any mark, each line checked against the chain.

A journal may grow, or lose its beginning, while it is read: read its beginning and its lines by one
`whole_journal` where they must go together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsgd.core.messages import Lease
from distsgd.errors import JournalError, UsageError, machine_trouble
from distsgd.run.journal import DIGEST_LENGTH, JOURNAL, Entry, Mark, Record, Resumed, chained

__all__ = [
    "Journal",
    "MarkMissing",
    "check_head",
    "find_head",
    "read_journal",
    "resumptions",
    "whole_journal",
]

_LONGEST = 1 << 20
"""Bytes of the longest line."""


class MarkMissing(JournalError):
    """A journal does not have the place that it is to be read from."""


@dataclass(frozen=True)
class Journal:
    """A journal as it was at one moment.

    Attributes:
        begin: the mark where it begins.
        content: the bytes after it.
    """

    begin: Mark
    content: bytes

    def entries(self) -> Iterator[tuple[Entry, Mark]]:
        """Its lines, each with the mark after it; a last line that was cut short is left out.

        Raises:
            JournalError: names the first line that does not hold.
        """
        return _checked(self.content, self.begin)


def whole_journal(folder: Path, first: str) -> Journal:
    """All of a run's journal, as it is now.

    Args:
        folder: the run folder.
        first: see `first_digest`.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        with (folder / JOURNAL).open("rb") as file:
            line = file.readline()
            if dropped := _dropped(line):
                return Journal(dropped, file.read())
            return Journal(Mark(first), line + file.read())
    except FileNotFoundError:
        raise JournalError(0, f"{folder / JOURNAL} is missing") from None
    except OSError as error:
        raise machine_trouble(error, folder / JOURNAL) or JournalError(
            0, f"{folder / JOURNAL} cannot be read: {error}"
        ) from None


def read_journal(folder: Path, begin: Mark) -> Iterator[tuple[Entry, Mark]]:
    """The lines of a run's journal from a mark on, each checked against the chain.

    A last line that was cut short is not there.

    Yields:
        each line, and the mark after it.

    Raises:
        MarkMissing: the journal has no such place.
        JournalError: names the first line that does not hold.
    """
    try:
        content = _content(folder / JOURNAL, begin)
    except FileNotFoundError:
        content = b""
        if begin.lines:
            raise MarkMissing(0, f"{folder / JOURNAL} is missing") from None
    except OSError as error:
        raise machine_trouble(error, folder / JOURNAL) or JournalError(
            0, f"{folder / JOURNAL} cannot be read: {error}"
        ) from None
    yield from _checked(content, begin)


def _checked(content: bytes, begin: Mark) -> Iterator[tuple[Entry, Mark]]:
    """The whole lines of a journal after a mark, each checked against the chain."""
    digest, end = begin.digest, begin.offset
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    for number, line in enumerate(lines, begin.lines + 1):
        end += len(line)
        try:
            fields = json.loads(line)
            found = fields.pop("d")
            digest = chained(digest, fields)
            entry = _parse(fields)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            raise JournalError(number, "it is not a record") from None
        if found != digest:
            raise JournalError(number, "its digest does not follow from the records before it")
        yield entry, Mark(digest, end, number)


def check_head(head: str) -> None:
    """See that a text may be the digest of a line.

    Raises:
        UsageError: it is none.
    """
    if len(head) not in (DIGEST_LENGTH, 64) or not set(head) <= set("0123456789abcdef"):
        raise UsageError(
            f"--head {head} is no digest of a journal, of {DIGEST_LENGTH} hexadecimal digits",
            "Give the one that `distsgd train` or `distsgd audit` has shown",
        )


def find_head(journal: Journal, head: str) -> int:
    """The number of the line with a digest that was kept, from 1; 0 for the beginning.

    The chain makes everything before that line what it was when the digest was kept.

    Raises:
        JournalError: the journal has no such line, or one that does not hold.
    """
    begin = journal.begin
    if head == begin.digest:
        return begin.lines
    for _, mark in journal.entries():
        if mark.digest == head:
            return mark.lines
    dropped = (
        f"; or its line is among the first {begin.lines}, which were dropped" if begin.lines else ""
    )
    raise JournalError(
        0, f"the journal has no line with the digest {head}: it is not the one it was{dropped}"
    )


def resumptions(folder: Path) -> list[Resumed]:
    """The lines of a journal that say that the run was gone on with; unchecked, to be shown."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            lines = [line for line in file if line.startswith(b'{"r"')]
        return [entry for line in lines if isinstance(entry := _parse(json.loads(line)), Resumed)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _content(path: Path, mark: Mark) -> bytes:
    """What follows a mark, which must be a place between two lines of the file."""
    with path.open("rb") as file:
        line = file.readline()
        dropped = _dropped(line)
        least = len(line) if dropped else 0
        place = mark.offset - (dropped.offset if dropped else 0) + least
        file.seek(max(least, place - _LONGEST))
        before = file.read(max(0, place - file.tell()))
        whole = place >= least and file.tell() == place
        if place > least:
            digest = _digest_of(before[before.rfind(b"\n", 0, -1) + 1 :])
        else:
            digest = dropped.digest if dropped else mark.digest
        if not whole or digest != mark.digest:
            raise MarkMissing(mark.lines, "it is missing, or another than it was")
        return file.read()


def _digest_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["d"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _dropped(line: bytes) -> Mark | None:
    """The mark of a first line that stands for lines that were dropped."""
    try:
        content = json.loads(line)
        return Mark(str(content["d"]), int(content["o"]), int(content["l"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _parse(content: dict[str, Any]) -> Entry:
    if "r" in content:
        return Resumed(
            int(content["r"]), int(content["e"]), int(content["n"]), int(content["s"]),
            str(content["h"]),
        )  # fmt: skip
    contributions = tuple((int(worker), Lease(*map(int, lease))) for worker, *lease in content["c"])
    requeued = tuple((int(p), int(s), int(f), int(e)) for p, s, f, e in content["q"])
    return Record(int(content["v"]), int(content["s"]), contributions, requeued)
