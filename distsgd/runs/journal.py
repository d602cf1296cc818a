"""The journal: every applied update in order, chained so that damage is found.

A line is a JSON object. Each carries a digest of itself and of the digest before it; the first
digest is made from the settings of the run, so that a journal belongs to its run. The chain has no
key: it detects changes by a disk, a program or a mix-up, but not a forgery that recomputes all
later digests. The digest of the last line, the head, covers all lines before it: a copy kept out of
reach detects that too. A record has:

    v   version of W after the update
    s   step of the plan that its learning rate belongs to
    c   contributions in the order in which they were added, each
        [worker, step, first leaf, one past the last, version read, steps, replicas, serial]
    q   pieces deferred to a later update, each
        [place in the reduction tree, step, first slot, one past the last]
    f   fingerprint of W after the update, 16 hexadecimal digits (`distsgd.core.fingerprint`); not
        where W is split over several servers, nor with compression "onebit"
    d   digest

Where a run was resumed, there is a line that has

    r   version of W from which it resumes
    e   epochs asked for from there on
    n   worker processes from there on
    s   servers from there on
    h   channel from there on
    d   digest

Where the number of workers changed during training, there is a line that has

    w   worker processes from there on
    d   digest

A journal whose earlier lines were dropped (the setting `journal`) begins with a line that has

    o   bytes of the lines that were dropped
    l   how many they were
    d   digest of the last of them

The journal of a fork begins with the same line, which stands for the lines of its parent up to the
fork, and then has one that binds its own settings to the chain:

    a   version of W after which it begins
    b   digest of its settings and dataset, see `first_digest`
    d   digest

A journal may grow, or lose its first lines, while it is read: where its beginning and its lines
must match, read both from one `whole_journal`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distsgd.core.messages import Applied, Lease
from distsgd.data.folder_files import reader_inside, replace_inside
from distsgd.errors import JournalError, RunError, UsageError, machine_trouble, storage_error
from distsgd.runs.line_file import LineFile
from distsgd.spelling import spelling

__all__ = [
    "JOURNAL", "Entry", "Forked", "Journal", "JournalWriter", "Mark", "MarkMissing", "Record",
    "Resized", "Resumed", "begin_fork", "chained", "check_digest", "first_digest",
    "has_mark", "lines_until", "read_journal", "recorded_first", "recorded_journal", "resumptions",
    "whole_journal",
]  # fmt: skip


JOURNAL = "journal.jsonl"

_decoded = json.JSONDecoder().decode
_sorted = json.JSONEncoder(sort_keys=True).encode
# Made once: `json.loads` and `json.dumps` cost a third more for each of 100,000 lines.

DIGEST_LENGTH = 32
"""Hexadecimal digits of the digest of a line."""


@dataclass(frozen=True)
class Record:
    """One update.

    Attributes:
        version: version of W after it.
        step: step of the plan that its learning rate belongs to.
        contributions: worker and lease of each piece, in the order in which they were added.
        requeued: pieces deferred to a later update, as in `distsgd.core.messages.Applied`.
        fingerprint: of W after it; None in journals that have none.
    """

    version: int
    step: int
    contributions: tuple[tuple[int, Lease], ...]
    requeued: tuple[tuple[int, int, int, int], ...]
    fingerprint: int | None = None


@dataclass(frozen=True)
class Resumed:
    """The run was resumed.

    Attributes:
        version: version of W from which it resumes.
        epochs: epochs asked for from there on.
        workers: worker processes from there on; 0 for one process without Ray.
        servers: parameter servers from there on.
        channel: from there on.
    """

    version: int
    epochs: int
    workers: int
    servers: int
    channel: str


@dataclass(frozen=True)
class Resized:
    """The number of workers changed during training.

    Attributes:
        workers: worker processes from there on.
    """

    workers: int


@dataclass(frozen=True)
class Mark:
    """A place between two lines of a journal.

    Attributes:
        digest: of the line before; the first digest, if there is none.
        offset: bytes of all lines before, also of those that have been dropped since.
        lines: how many they are.
    """

    digest: str
    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Forked:
    """Here the run begins, after an update of its parent.

    Attributes:
        version: version of W from which it begins.
        settings: digest of its settings and dataset, see `first_digest`.
    """

    version: int
    settings: str


Entry = Record | Resumed | Resized | Forked


def first_digest(settings: Mapping[str, Any], dataset_digest: str) -> str:
    """The digest before the first line.

    Args:
        settings: exactly those of the run's config.json; later versions may know more settings.
        dataset_digest: digest of the dataset's manifest.
    """
    text = json.dumps([dict(settings), dataset_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def chained(before: str, content: dict[str, Any]) -> str:
    """The digest of a line, from that of the line before and its content."""
    text = before + _sorted(content)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def begin_fork(folder: Path, parent: Mark, entry: Forked) -> Mark:
    """Write the journal of a new fork; returns where it ends.

    Args:
        folder: the run folder.
        parent: where the journal of its parent is left.
        entry: where it begins.

    Raises:
        StorageError: it cannot be written.
    """
    content = {"a": entry.version, "b": entry.settings}
    digest = chained(parent.digest, content)
    line = json.dumps({**content, "d": digest}) + "\n"
    try:
        replace_inside(folder / JOURNAL, (_stands_for(parent) + line).encode())
    except OSError as error:
        raise storage_error(error, folder / JOURNAL) from None
    return Mark(digest, parent.offset + len(line), parent.lines + 1)


def _stands_for(mark: Mark) -> str:
    """The first line of a journal, which stands for all lines before a mark."""
    return json.dumps({"o": mark.offset, "l": mark.lines, "d": mark.digest}) + "\n"


class JournalWriter(LineFile):
    """Appends updates to the journal of a run.

    Args:
        folder: the run folder.
        end: where its journal ends; an incomplete line after it is removed.
    """

    def __init__(self, folder: Path, end: Mark) -> None:
        super().__init__(folder / JOURNAL)
        self._digest, self._lines = end.digest, end.lines
        self._moved = end.offset - self._size  # from a place in the file to one in the journal

    @property
    def head(self) -> str:
        """Digest of the last line."""
        return self._digest

    def add(self, update: Applied) -> None:
        """Append one update.

        Raises:
            StorageError: the disk is full.
        """
        content = {
            "v": update.version,
            "s": update.step,
            "c": [[worker, *lease] for worker, lease in update.contributions],
            "q": update.requeued,
        }
        if update.fingerprint is not None:
            content["f"] = f"{update.fingerprint:016x}"
        self._append(content)

    def resumed(self, entry: Resumed) -> None:
        """Append that the run resumes.

        Raises:
            StorageError: the disk is full.
        """
        self._append({
            "r": entry.version, "e": entry.epochs, "n": entry.workers, "s": entry.servers,
            "h": entry.channel,
        })  # fmt: skip

    def resized(self, entry: Resized) -> None:
        """Append a new number of workers.

        Raises:
            StorageError: the disk is full.
        """
        self._append({"w": entry.workers})

    def mark(self) -> Mark:
        """Where the journal ends now, after an fsync.

        Raises:
            StorageError: the disk is full.
        """
        self.sync()
        return Mark(self._digest, self._size + self._moved, self._lines)

    def drop_before(self, mark: Mark) -> None:
        """Drop all lines before a mark, whole or not at all.

        Raises:
            StorageError: the disk is full; the journal is as it was.
        """
        self.sync()
        line = _stands_for(mark)
        try:
            with reader_inside(self.path) as file:
                file.seek(mark.offset - self._moved)
                replace_inside(self.path, line.encode() + file.read())
        except OSError as error:
            raise storage_error(error, self.path) from None
        self._moved = mark.offset - len(line)
        self.reopen()

    def _append(self, content: dict[str, Any]) -> None:
        self._digest = chained(self._digest, content)
        self._lines += 1
        self.write({**content, "d": self._digest})


_LONGEST = 1 << 23
"""Bytes of the longest line: one of more than 100,000 pieces."""

_LONGEST_NAME, _LONGEST_MARK = 100, 1000
_PIECE = 1 << 20
_MOST = 1 << 63
"""Every number of a record is smaller."""


class MarkMissing(JournalError):
    """The place to read a journal from does not exist in it."""


class Journal:
    """A journal at one moment, read piece by piece.

    Args:
        begin: the mark where it begins.
        file: descriptor of the file, closed with this object. Lines appended later are not read,
            and a file that replaces this one has no effect.
        start: where in the file the first line begins.

    Attributes:
        begin: the mark where it begins.
    """

    def __init__(self, begin: Mark, file: int, start: int) -> None:
        self.begin, self._file, self._start = begin, file, start
        self._end = os.fstat(file).st_size

    def __del__(self) -> None:
        os.close(self._file)

    def entries(self) -> Iterator[tuple[Entry, Mark]]:
        """Its lines, each with the mark after it; an incomplete last line is left out.

        Raises:
            JournalError: names the first invalid line.
        """
        # A generator of this object's own, so that the file stays open for as long as it is read.
        yield from _checked(self._file, self._start, self._end, self.begin)


def whole_journal(folder: Path, first: str) -> Journal:
    """The whole journal of a run, as it is now.

    Args:
        folder: the run folder.
        first: see `first_digest`.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        with reader_inside(folder / JOURNAL) as file:
            line = file.readline(_LONGEST)
            dropped = _dropped(line)
            start = len(line) if dropped else 0
            return Journal(dropped or Mark(first), os.dup(file.fileno()), start)
    except FileNotFoundError:
        raise JournalError(0, f"{folder / JOURNAL} is missing") from None
    except OSError as error:
        raise machine_trouble(error, folder / JOURNAL) or JournalError(
            0, f"{folder / JOURNAL} cannot be read: {error}"
        ) from None


def recorded_journal(folder: Path, config: Mapping[str, Any]) -> Journal:
    """The same by what a run recorded of itself, for where its dataset is not at hand.

    Args:
        folder: the run folder.
        config: its config.json.

    Raises:
        RunError: config.json is damaged.
        JournalError: the journal cannot be read.
    """
    return whole_journal(folder, recorded_first(folder, config))


def recorded_first(folder: Path, config: Mapping[str, Any]) -> str:
    """The digest before the first line, by what a run recorded of itself.

    Raises:
        RunError: config.json is damaged.
    """
    try:
        return first_digest(config["settings"], str(config["dataset"]["digest"]))
    except (KeyError, TypeError):
        raise RunError(f"{folder / 'config.json'} is damaged", "Train again") from None


def lines_until(folder: Path, mark: Mark) -> bytes:
    """The file of a journal up to a place in it.

    Raises:
        MarkMissing: it has no such place.
        OSError: it cannot be read.
    """
    with reader_inside(folder / JOURNAL) as file:
        place = _place_of(file, mark)
        file.seek(0)
        return file.read(place)


def has_mark(folder: Path, mark: Mark, first: str) -> bool:
    """Whether the journal of a run has a place, found without reading the lines before.

    Args:
        folder: the run folder.
        mark: the place.
        first: the digest before its first line.
    """
    if not mark.lines:
        return mark == Mark(first)
    try:
        with reader_inside(folder / JOURNAL) as file:
            _place_of(file, mark)
    except (OSError, MarkMissing):
        return False
    return True


def read_journal(folder: Path, begin: Mark) -> Iterator[tuple[Entry, Mark]]:
    """The lines of a run's journal from a mark on, each checked against the chain.

    An incomplete last line is left out.

    Yields:
        each line, and the mark after it.

    Raises:
        MarkMissing: the journal has no such place.
        JournalError: names the first invalid line.
    """
    try:
        with reader_inside(folder / JOURNAL) as file:
            start = _place_of(file, begin)
            end = os.fstat(file.fileno()).st_size
            yield from _checked(file.fileno(), start, end, begin)
    except FileNotFoundError:
        if begin.lines:
            raise MarkMissing(0, f"{folder / JOURNAL} is missing") from None
    except OSError as error:
        raise machine_trouble(error, folder / JOURNAL) or JournalError(
            0, f"{folder / JOURNAL} cannot be read: {error}"
        ) from None


def _lines(file: int, start: int, end: int, number: int) -> Iterator[bytes]:
    """The whole lines of a file between two places.

    Args:
        number: of the line before the first.

    Raises:
        JournalError: one is longer than any record.
    """
    rest = b""
    while piece := os.pread(file, min(_PIECE, end - start), start):
        start += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        if max(map(len, (*lines, rest))) > _LONGEST:
            raise JournalError(number + 1, "it is longer than any record")
        number += len(lines)
        yield from (line + b"\n" for line in lines)


def _checked(file: int, start: int, last: int, begin: Mark) -> Iterator[tuple[Entry, Mark]]:
    """The whole lines of a journal after a mark, each checked against the chain."""
    digest, end = begin.digest, begin.offset
    for number, line in enumerate(_lines(file, start, last, begin.lines), begin.lines + 1):
        end += len(line)
        try:
            fields = _decoded(line.decode())
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


def check_digest(text: str) -> str:
    """A digest that was kept elsewhere, without a comment after it.

    Raises:
        UsageError: it cannot be the digest of a line, or a SHA-256.
    """
    digest = text.partition("#")[0].strip()
    if len(digest) not in (DIGEST_LENGTH, 64) or not set(digest) <= set("0123456789abcdef"):
        raise UsageError(
            f"{spelling().given('expect', text)} is not the digest of a record, "
            f"{DIGEST_LENGTH} hexadecimal digits, nor a SHA-256, 64",
            "Give one that `distsgd train` or `distsgd audit --head` printed",
        )
    return digest


def resumptions(folder: Path) -> list[Resumed]:
    """The resumptions in a journal, unchecked, for display."""
    try:
        with reader_inside(folder / JOURNAL) as file:
            lines = _lines(file.fileno(), 0, os.fstat(file.fileno()).st_size, 0)
            found = [json.loads(line) for line in lines if line.startswith(b'{"r"')]
        for fields in found:
            fields.pop("d")
        return [entry for fields in found if isinstance(entry := _parse(fields), Resumed)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError, JournalError):
        return []


def _place_of(file: BinaryIO, mark: Mark) -> int:
    """Where in the file a mark is, which must be a place between two lines of it.

    Raises:
        MarkMissing: it is not.
    """
    line = file.readline(_LONGEST)
    dropped = _dropped(line)
    least = len(line) if dropped else 0
    place = mark.offset - (dropped.offset if dropped else 0) + least
    whole = least <= place <= os.fstat(file.fileno()).st_size
    if whole and place > least:
        file.seek(max(least, place - _LONGEST))
        before = file.read(place - file.tell())
        digest = _digest_of(before[before.rfind(b"\n", 0, -1) + 1 :])
    else:
        digest = dropped.digest if dropped else mark.digest
    if not whole or digest != mark.digest:
        raise MarkMissing(mark.lines, "it is missing, or it has changed")
    return place


def _digest_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["d"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _dropped(line: bytes) -> Mark | None:
    """The mark in a first line that stands for dropped lines; None for any other line."""
    if len(line) > _LONGEST_MARK:
        return None
    try:
        content = json.loads(line)
        offset, lines = _whole([content["o"], content["l"]])
        return Mark(str(content["d"]), offset, lines)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _parse(content: dict[str, Any]) -> Entry:
    """Raises ValueError, LookupError or TypeError for a malformed line."""
    names = set(content)
    if names == {"r", "e", "n", "s", "h"}:
        version, epochs, workers, servers = _whole([content[name] for name in "rens"])
        if type(channel := content["h"]) is not str or len(channel) > _LONGEST_NAME:
            raise ValueError("it has no channel")
        return Resumed(version, epochs, workers, servers, channel)
    if names == {"a", "b"}:
        if type(settings := content["b"]) is not str or len(settings) > _LONGEST_NAME:
            raise ValueError("it binds no settings")
        (version,) = _whole([content["a"]])
        return Forked(version, settings)
    if names == {"w"}:
        return Resized(*_whole([content["w"]]))
    if names - {"f"} != {"v", "s", "c", "q"}:
        raise ValueError("it has other fields than a record")
    version, step = _whole([content["v"], content["s"]])
    contributions = tuple((worker, Lease(*lease)) for worker, *lease in map(_whole, content["c"]))
    requeued = [_whole(piece) for piece in content["q"]]
    if any(len(piece) != 4 for piece in requeued):
        raise ValueError("it has a piece of another shape")
    put_off = tuple((p, s, f, e) for p, s, f, e in requeued)
    return Record(version, step, contributions, put_off, _fingerprint(content.get("f")))


_FINGERPRINT = re.compile(r"[0-9a-f]{16}", re.ASCII)


def _fingerprint(text: Any) -> int | None:
    """A fingerprint that is written down as 16 digits.

    Raises:
        ValueError: it is something else.
    """
    if text is None:
        return None
    if type(text) is not str or not _FINGERPRINT.fullmatch(text):
        raise ValueError("its fingerprint is malformed")
    return int(text, 16)


def _whole(values: list[Any]) -> list[int]:
    """Check that a list has whole numbers from 0 on, and nothing that merely converts to them.

    Raises:
        ValueError: it does not.
    """
    if type(values) is not list:
        raise ValueError("it has something else than a list of whole numbers")
    for value in values:  # a plain loop: it takes half the time of `any`
        if type(value) is not int or not 0 <= value < _MOST:
            raise ValueError("it has something else than whole numbers")
    return values
