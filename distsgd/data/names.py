"""Names of classes and columns, as people and programs write them."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["escaped", "is_printable", "nearest", "normal", "some_of"]

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates, and separators of lines."""

_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of the text that follows."""

_FIRST, _LAST = 12, 3


def normal(name: str) -> str:
    """A name in the composed form of Unicode (NFC), in which é is one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_printable(name: str) -> bool:
    """Whether a name can be printed as it is: no control characters, no turns of direction."""
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
    """The one of ``names`` that was probably meant: the same but for case and form, or similar."""
    folded = {normal(one).casefold(): one for one in names}
    found = difflib.get_close_matches(normal(name).casefold(), folded, 1, 0.6)
    return folded[found[0]] if found else None


def some_of(names: Sequence[str]) -> str:
    """Names as a list; of many the first and the last, and how many there are."""
    shown = list(map(escaped, names))
    if len(shown) > _FIRST + _LAST + 1:
        between = f"... ({len(shown)} in all)"
        shown = [*shown[:_FIRST], between, *shown[-_LAST:]]
    return ", ".join(shown)
