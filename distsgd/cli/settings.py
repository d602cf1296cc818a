"""Settings on the command line: how errors name them, and suggestions for unknown options.

Typer bundles click or imports it, depending on its version, so commands are recognised by their
attributes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from distsgd.spelling import Spelling

__all__ = ["CommandLine", "GroupTakesSettings", "Run", "TakesSettings", "spelling_of"]


def spelling_of(command: Any) -> Spelling:
    """How settings are written for a command: as its options, others with --set."""
    names = {one.name for one in command.params if one.param_type_name == "option"}
    return Spelling(frozenset(names), "set_" in names)


class CommandLine:
    """The command line as typed.

    Args:
        words: its words, without the name of the program.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.root: Any = None  # the whole program, once it has been parsed

    def spelling(self) -> Spelling:
        """How settings are written for the command that runs."""
        command = self.root
        for word in self._words:
            command = getattr(command, "commands", {}).get(word, command)
        return Spelling() if command is None else spelling_of(command)


class _Meant:
    """Suggests a setting for an unknown option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the setting that is probably meant to a NoSuchOption error."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":
                raise
            from distsgd.config.sources import ALIASES, meant_by

            found: Any = error
            typed = found.option_name.lstrip("-").replace("-", "_")
            near = meant_by(typed)
            if near is not None and (typed in {near, *ALIASES} or not found.possibilities):
                found.possibilities = [spelling_of(self).given(near, near.upper())]
            raise


class TakesSettings(_Meant, TyperCommand):
    """A command with --set."""


class GroupTakesSettings(_Meant, TyperGroup):
    """A group of commands that is itself a command with --set."""


Run = Annotated[str, typer.Argument(help="Path or name of a run, or latest.")]
