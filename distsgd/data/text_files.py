"""Text that people have written: files in any encoding, and names of classes and columns."""

from __future__ import annotations

import bz2
import codecs
import difflib
import errno
import gzip
import json
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, cast

__all__ = [
    "TEXTS",
    "encoding_of",
    "escaped",
    "is_printable",
    "kind_of",
    "nearest",
    "normal",
    "open_bytes",
    "parse_json",
    "read_text",
    "require_file",
    "some_of",
]


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_MOST_PARSED = 400 << 20
_BYTES_OF_LIST, _BYTES_OF_ITEM = 72, 64
"""Bytes of an empty list or object in Python, and of a number or short text in one."""

TEXTS = (".csv", ".tsv", ".txt")
"""Endings of text files with one row a line."""


def kind_of(path: Path) -> str:
    """The ending of a file name in lower case, without that of a compression."""
    if path.suffix.lower() in (".gz", ".bz2"):
        path = path.with_suffix("")
    return path.suffix.lower()


def encoding_of(start: bytes) -> str:
    """The encoding of a text, by the byte order mark at its start; else UTF-8."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def require_file(path: Path, *, pipes: bool = False) -> None:
    """Refuse a pipe, a device or a socket: it may never end, and cannot be read twice.

    Args:
        path: a file or folder; a missing one is accepted.
        pipes: accept pipes that this process was started with, such as a shell's ``<(command)``.

    Raises:
        OSError: it is one of those.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    inherited = str(path.absolute()).startswith(("/dev/fd/", "/proc/self/fd/", "/dev/stdin"))
    if pipes and inherited and stat.S_ISFIFO(mode):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))


def read_text(path: Path) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not valid text in its encoding.
    """
    require_file(path, pipes=True)
    content = path.read_bytes()
    return content.decode(encoding_of(content))


def parse_json(content: bytes) -> Any:
    """Parse JSON, unless the result would take far more memory than the text.

    Raises:
        ValueError: it would, it is nested too deeply, or it is not JSON.
    """
    lists = content.count(b"[") + content.count(b"{")
    needed = 2 * len(content) + _BYTES_OF_LIST * lists + _BYTES_OF_ITEM * content.count(b",")
    if needed > _MOST_PARSED:
        raise ValueError(f"it would take {needed >> 20} MiB of memory")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; a compressed one is decompressed.

    Raises:
        OSError: it cannot be opened.
    """
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix.lower() == ".bz2":
        return cast(IO[bytes], bz2.open(path))
    return path.open("rb")


_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates, and line separators."""

_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of the text that follows."""

_FIRST, _LAST = 12, 3


def normal(name: str) -> str:
    """A name in the composed form of Unicode (NFC), in which é is one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_printable(name: str) -> bool:
    """Whether a name can be printed as it is: no control characters, no changes of direction."""
    return name.isprintable() or not any(map(_is_unprintable, name))


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE or character in _TURNS


def escaped(name: str) -> str:
    """A name with its unprintable characters written as escapes, as in ``a\\nb``."""
    if is_printable(name):
        return name
    return "".join(
        character.encode("unicode_escape").decode() if _is_unprintable(character) else character
        for character in name
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that was probably meant: equal but for case and form, or similar."""
    folded = {normal(one).casefold(): one for one in names}
    found = difflib.get_close_matches(normal(name).casefold(), folded, 1, 0.6)
    return folded[found[0]] if found else None


def some_of(names: Sequence[str]) -> str:
    """A list of names for messages; of a long one the first, the last and the number."""
    shown = list(map(escaped, names))
    if len(shown) > _FIRST + _LAST + 1:
        between = f"... ({len(shown)} in all)"
        shown = [*shown[:_FIRST], between, *shown[-_LAST:]]
    return ", ".join(shown)
