"""The difference between two JSON values, small where columns have only grown.

A change is an object with one or two of these keys: "v", the new value; "a", items to append to a
list; "l", changes of items by their place in a list of the same length; "d", changes of the
entries of an object, with "x", the names of those that are gone. None says that nothing changed.
The page applies it (``page/source.js``).
"""

from __future__ import annotations

from typing import Any

__all__ = ["applied", "change"]


def change(old: Any, new: Any) -> dict[str, Any] | None:
    """What turns one JSON value into another; None if they are equal."""
    if type(old) is type(new):
        if old == new:
            return None
        if isinstance(new, dict):
            return _of_objects(old, new)
        if isinstance(new, list) and old:
            return _of_lists(old, new)
    return {"v": new}


def _of_objects(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in new.items():
        if name not in old:
            found[name] = {"v": value}
        elif (inner := change(old[name], value)) is not None:
            found[name] = inner
    gone = [name for name in old if name not in new]
    return {"d": found, "x": gone} if gone else {"d": found}


def _of_lists(old: list[Any], new: list[Any]) -> dict[str, Any]:
    if len(new) > len(old) and new[: len(old)] == old:
        return {"a": new[len(old) :]}
    if len(new) == len(old) and isinstance(new[0], dict | list):
        inner = {str(at): change(*pair) for at, pair in enumerate(zip(old, new, strict=True))}
        return {"l": {at: one for at, one in inner.items() if one is not None}}
    return {"v": new}


def applied(old: Any, what: dict[str, Any] | None) -> Any:
    """The value that a change leads to; ``old`` may be changed in place."""
    if what is None:
        return old
    if "v" in what:
        return what["v"]
    if "a" in what:
        return [*old, *what["a"]]
    if "l" in what:
        for at, inner in what["l"].items():
            old[int(at)] = applied(old[int(at)], inner)
        return old
    for name, inner in what["d"].items():
        old[name] = applied(old.get(name), inner)
    for name in what.get("x", ()):
        del old[name]
    return old
