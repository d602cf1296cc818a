"""Output of commands: lines, pairs and tables for people, one JSON object for machines.

Nothing else in ``cli/`` prints or imports rich. Text is shown as it is: brackets are no markup,
``:cat:`` is no emoji, and control characters are escaped, so that neither a class name nor a path
can colour, move or hide what stands beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from distsgd.cli.log_lines import as_json, log_line, noticed, plain
from distsgd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TextColumn

__all__ = [
    "JsonFlag", "confirmed", "count", "log", "pass_on", "percent", "print_json", "print_pairs",
    "print_table", "say", "show", "show_markdown", "stacked", "terminal", "text_column", "visible",
]  # fmt: skip

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")
]

_MARGIN = "  "
_FOLDED_WIDTH = 40
"""Only words longer than this are broken, and into pieces no shorter."""

_JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian, Hindi and others are written."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    r"""Text as one line that shows everything in it.

    Control characters (newlines, escape sequences, marks that turn the direction of writing) are
    escaped, as ``\n`` or ``\x1b``; so are the bytes of a file name that is not UTF-8, as ``\xff``.
    """
    text = os.fsencode(text).decode("utf-8", "surrogateescape") if _has_bytes(text) else text
    return "".join(map(_visible_character, text))


def _has_bytes(text: str) -> bool:
    """Whether some characters stand for bytes that the file system's encoding lacks."""
    return any("\udc80" <= one <= "\udcff" for one in text) and _encodes(text)


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _visible_character(one: str) -> str:
    if "\udc80" <= one <= "\udcff":
        return f"\\x{ord(one) - 0xDC00:02x}"
    if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") and one not in _JOINERS:
        return one.encode("unicode_escape").decode("ascii")
    return one


def _write(stream: TextIO, text: str) -> None:
    print(text, file=stream, flush=True)


def show(*lines: str) -> None:
    """Lines of a result, on stdout."""
    for line in lines or ("",):
        _write(sys.stdout, visible(line))


def say(*lines: str, level: str = "info") -> None:
    """Lines about progress and problems, on stderr.

    Args:
        *lines: each a line of text; with ``--log-format json``, a "notice" of the log.
        level: of the log.
    """
    for line in lines or ("",):
        if not as_json():
            _write(sys.stderr, visible(line))
        elif line:
            _write(sys.stderr, noticed(line, level))


def log(event: str, level: str = "info", **fields: Any) -> None:
    """An event on stderr, if the log is JSON; see `log_line`. People are told in other ways."""
    if as_json():
        _write(sys.stderr, log_line(event, level, **fields))


def confirmed(question: str) -> bool:
    """Ask a question on stderr; True for y or yes.

    Raises:
        UsageError: stdin is no terminal, so that nobody can be asked.
    """
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("there is no terminal to ask on", "Give --yes")
    print(f"{visible(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def pass_on(text: str, err: bool = False) -> None:
    """Lines that another program has printed; colours are left out."""
    pieces = _COLOUR.sub("", text).replace("\r\n", "\n")
    safe = re.sub(r"[^\n\t]+", lambda found: visible(found[0]), pieces)
    print(safe, end="", file=sys.stderr if err else sys.stdout, flush=True)


def show_markdown(text: str, rendered: str) -> None:
    """A page of text on stdout: laid out on a terminal, as it is elsewhere.

    Args:
        text: Markdown.
        rendered: the same Markdown for a terminal, where links cannot be followed.
    """
    console = terminal()
    if console is None:
        _write(sys.stdout, text)
        return
    from rich.markdown import Markdown

    console.print(Markdown(rendered, hyperlinks=False))


def print_json(content: Any) -> None:
    """One JSON object on stdout; numbers that JSON does not know become null."""
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        content = dataclasses.asdict(content)
    _write(sys.stdout, json.dumps(plain(content), indent=2, allow_nan=False))


def percent(share: float) -> str:
    """0.4132 as 41.3 %; - for that of nothing (NaN)."""
    if math.isnan(share):
        return "-"
    return f"{share:.1%}".replace("%", " %")


def count(number: float) -> str:
    """50000 as 50,000."""
    return f"{number:,.0f}"


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, never folded: they may be copied."""
    pairs = [(_encodable(name), value) for name, value in pairs]
    width = max((_cells(name) for name, _ in pairs), default=0)
    show(*(f"{_MARGIN}{_padded(name, width)}  {value}" for name, value in pairs))


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    optional: Sequence[str] = (),
) -> None:
    """A table on stdout; the first column is text, the others numbers.

    It is as wide as the terminal at most, and as wide as it wants where stdout is none, unless
    COLUMNS says how wide. Headings and cells are folded between words; then optional columns are
    left out; a table that is too wide even then is printed as a list of pairs for each row.

    Args:
        headings: one for each column.
        rows: one cell for each column.
        title: stands above.
        optional: headings of columns that may be left out, the least important first.
    """
    names = [_encodable(heading) for heading in headings]
    cells = [[_encodable(cell) for cell in row] for row in rows]
    if title:
        show("", _MARGIN + title)
    left_out: list[str] = []
    whole = names, cells
    while (widths := _fitting_widths(names, cells, _width())) is None and len(left_out) < len(
        optional
    ):
        left_out.append(optional[len(left_out)])
        column = names.index(left_out[-1])
        names = names[:column] + names[column + 1 :]
        cells = [row[:column] + row[column + 1 :] for row in cells]
    if widths is None:
        names, cells = whole
        for row in cells:
            show("")
            print_pairs(zip(names, row, strict=True))
        show("")
        return
    rule = "─" if _encodable("─") == "─" else "-"
    # Bold headings, unless NO_COLOR is set.
    bold = _drawable(sys.stdout) and not os.environ.get("NO_COLOR")
    show("")
    for line in _folded(names, widths):
        _write(sys.stdout, f"\x1b[1m{visible(line)}\x1b[0m" if bold else visible(line))
    show(" " + rule * (sum(widths) + 2 * len(widths)))
    for row in cells:
        show(*_folded(row, widths))
    show("")
    if left_out:
        say(f"too narrow for all columns: {', '.join(left_out)} left out; --json shows them")


def _encodable(text: str) -> str:
    """Text as stdout shows it, so that columns can be measured."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)


def _width() -> int | None:
    """Columns that a line on stdout may have; None for any number."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else None


def _cells(text: str) -> int:
    """Columns that a text takes; East Asian characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _fitting_widths(names: list[str], rows: list[list[str]], width: int | None) -> list[int] | None:
    """A width for each column so that the table fits; None if words would have to be broken."""
    columns = [[name, *cells] for name, *cells in zip(names, *rows, strict=True)]
    widths = [max(map(_cells, column)) for column in columns]
    if width is None:
        return widths
    room = width - 2 * len(columns) - 1
    least = [
        min(_FOLDED_WIDTH, max(_cells(word) for cell in column for word in cell.split(" ")))
        for column in columns
    ]
    if sum(least) > room:
        return None
    widths = [min(wide, max(room, low)) for wide, low in zip(widths, least, strict=True)]
    while sum(widths) > room:
        loose = max(range(len(widths)), key=lambda i: widths[i] - least[i])
        widths[loose] -= 1
    return widths


def _folded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row as lines: text to the left in the first column, numbers to the right in the others."""
    folded = [_fold(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for i in range(max(map(len, folded))):
        parts = [pieces[i] if i < len(pieces) else "" for pieces in folded]
        first, *others = (
            _padded(part, width, right=column > 0)
            for column, (part, width) in enumerate(zip(parts, widths, strict=True))
        )
        lines.append((_MARGIN + "  ".join((first, *others))).rstrip())
    return lines


def _fold(text: str, width: int) -> list[str]:
    """Text in lines of at most ``width``, broken between words if that can be."""
    from rich.cells import chop_cells

    if _cells(text) <= width:
        return [text]
    lines = [""]
    for word in text.split(" "):
        if not lines[-1] and _cells(word) <= width:
            lines[-1] = word
        elif _cells(lines[-1]) + 1 + _cells(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, width) or [""]
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def _padded(text: str, width: int, right: bool = False) -> str:
    blank = " " * (width - _cells(text))
    return blank + text if right else text + blank


def _drawable(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor. FORCE_COLOR makes no file one."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def terminal(err: bool = False) -> Console | None:
    """A console for a live display on stdout or stderr; None where there is no terminal."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    if not _drawable(stream) or (err and as_json()):
        return None
    return Console(file=stream, force_terminal=True, markup=False, emoji=False, highlight=False)


def text_column(template: str) -> TextColumn:
    """A column of a progress display; ``template`` is formatted with `task`, and is no markup."""
    from rich.progress import TextColumn

    return TextColumn(template, markup=False)


def stacked(lines: Iterable[str], last: RenderableType) -> RenderableType:
    """Lines of text above something else of a live display; no markup, and cut at the edge."""
    from rich.console import Group
    from rich.text import Text

    texts = [Text(line, no_wrap=True, overflow="crop") for line in lines]
    return Group(*texts, last)
