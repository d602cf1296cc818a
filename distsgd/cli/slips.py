"""What was probably meant by a command or an option that typer does not know.

Typer itself suggests a command of the same group, and an option of the same command. Here are the
slips that it has no word for: a command of another group, one dash for two, and a digest after
`audit --head`, which took one before there was `--expect`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

__all__ = ["meant"]

_NEAR = 0.6


def meant(error: Any, words: Sequence[str]) -> str:
    """A suggestion to add to an error about usage; empty if there is none.

    Args:
        error: of typer.
        words: the command line, without the name of the program.
    """
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if "ou mean" in message or "ossible option" in message or context is None:
        return ""
    if message.startswith("No such command"):
        word = next((one for one in words if not one.startswith("-")), "")
        found = _elsewhere(word, context.find_root().command)
        return f"Did you mean `distsgd {found}`?" if found else ""
    if message.startswith("No such option"):
        names = [name for one in context.command.params for name in one.opts if name[:2] == "--"]
        for word in words:
            name = word.partition("=")[0]
            if len(name) > 2 and name[0] == "-" and name[1] != "-":
                near = difflib.get_close_matches(f"-{name}", names, 1, _NEAR)
                return f"Did you mean {near[0]}?" if near else ""
    if context.command.name == "audit" and any(word.startswith("--head") for word in words):
        return "--head takes no digest: did you mean --expect?"
    return ""


def _elsewhere(word: str, root: Any) -> str:
    """The command of a group, such as "runs list", that a word is nearest to."""
    inner = {
        name: f"{group} {name}"
        for group, command in reversed(root.commands.items())
        for name in getattr(command, "commands", {})
    }
    near = difflib.get_close_matches(word, inner, 1, _NEAR)
    return inner[near[0]] if near else ""
