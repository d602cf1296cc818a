"""Settings on the command line: their flags, ``--set``, files, and how errors name them.

The flags of settings follow from `distsgd.config.settings.SETTINGS`. That table loads numpy, so a
command reads it when its own line is parsed and not before: `distsgd --help` does not need it.

Typer bundles click or imports it, depending on its version, so commands are recognised by their
attributes alone.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from distsgd.errors import UsageError
from distsgd.spelling import Spelling

if TYPE_CHECKING:
    from distsgd.config.table import Setting

__all__ = [
    "FAULTS",
    "FLEET",
    "MORE",
    "OUTPUT",
    "CommandLine",
    "ForkCommand",
    "ResumeCommand",
    "Run",
    "SimulateCommand",
    "SimulateGroup",
    "TrainCommand",
    "flags_among",
    "in_panel",
    "spelling_of",
    "typed",
]

FLEET, OUTPUT, FAULTS, MORE = "Fleet", "Output", "Faults", "More settings and help"
"""Panels of the help of `train` that flags which are no settings are in."""

_SET = "--set"


@dataclass(frozen=True)
class _CommandSpelling(Spelling):
    """How settings are written on a command line.

    Attributes:
        flags: names of the options of the command.
        assigns: whether the command takes ``--set``.
    """

    flags: frozenset[str] = frozenset()
    assigns: bool = False

    def setting(self, name: str) -> str:
        """An option: --batch-size, --set momentum, or momentum in run.toml."""
        if not self.is_own(name):
            return super().setting(name)
        if self._is_assigned(name):
            return f"{_SET} {name}"
        return f"--{name.replace('_', '-')}" if name in self.flags else name

    def given(self, name: str, value: object) -> str:
        """An option with its value: --batch-size 64, --no-header, --set momentum=0.5.

        A tuple is a shape: --size 32x32.
        """
        if not self.is_own(name):
            return super().given(name, value)
        word = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        word = word.lower() if isinstance(value, bool) else word
        if self._is_assigned(name):
            return f"{_SET} {name}={word}"
        if name not in self.flags:
            return super().given(name, value)
        if value is False:
            return f"--no-{name.replace('_', '-')}"
        return self.setting(name) + ("" if value is True else f" {word}")

    def words(self, name: str, values: Sequence[str]) -> str:
        """An option with one text or several, as a shell reads them: --drop a --drop 'b c'."""
        return " ".join(self.given(name, shlex.quote(value)) for value in values)

    def is_own(self, name: str) -> bool:
        """Whether it is not from a file."""
        return self.origins.get(name, _SET) == _SET

    def _is_assigned(self, name: str) -> bool:
        return name in self.origins or (self.assigns and name not in self.flags)


def spelling_of(command: Any) -> Spelling:
    """How settings are written for a command: as its options, and all others with --set."""
    names = frozenset(one.name for one in command.params if one.param_type_name == "option")
    return _CommandSpelling(flags=names, assigns="set_" in names)


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


def flags_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a command that are settings, by name."""
    from distsgd.config.settings import SETTINGS

    return {name: value for name, value in options.items() if name in SETTINGS}


def typed(
    flags: Mapping[str, Any], assignments: Iterable[str] | None, file: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a command line, for `distsgd.config.sources.config_from`.

    Flags and ``--set`` override the file.

    Args:
        flags: settings by name; None for a flag that is not there.
        assignments: what follows each ``--set``.
        file: what follows ``--config``.

    Returns:
        The settings by name, and where those come from that are no flags.

    Raises:
        UsageError: a file cannot be read, a setting is unknown or given twice.
    """
    from distsgd.config.sources import check_name, read_config_file
    from distsgd.spelling import spelling

    settings = read_config_file(file) if file else {}
    origins = dict.fromkeys(settings, str(file))
    given = {name: value for name, value in flags.items() if value is not None}
    for name in given:
        origins.pop(name, None)
    for text in assignments or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f"{_SET} {text} has no value", f"Write it as {_SET} name=value")
        check_name(name, value, spelling().with_origins({name: _SET}))
        if name in given:
            by = spelling().with_origins(origins).setting(name)
            raise UsageError(f"{name} is given twice: by {by} and by {_SET} {text}", "Give it once")
        given[name], origins[name] = value, _SET
    return {**settings, **given}, origins


class _HasFlags:
    """A command whose flags are settings, read from the table when they are first needed.

    Attributes:
        panel: the panel of all these flags in the help; empty for that of their group.
    """

    panel: ClassVar[str] = ""
    _callback: Callable[..., Any] | None
    _own: list[Any]
    _all: list[Any] | None = None

    def wanted(self, one: Setting) -> bool:
        """Whether a setting is a flag of the command."""
        return one.flag

    def usually(self, one: Setting) -> str:
        """The default of a flag in words."""
        return one.usually

    @property
    def params(self) -> list[Any]:
        """The options of the command, in the order of their panels."""
        if self._all is None:
            self._all = _in_order([*_flags(self.wanted, self.usually, self.panel), *self._own])
        return self._all

    @params.setter
    def params(self, own: list[Any]) -> None:
        self._own, self._all = own, None

    @property
    def callback(self) -> Callable[..., Any] | None:
        """The function of the command, which finds the settings in the params of its context."""
        run, names = self._callback, {one.name for one in self._own}
        if run is None:
            return None
        return lambda **given: run(**{name: given[name] for name in given if name in names})

    @callback.setter
    def callback(self, run: Callable[..., Any] | None) -> None:
        self._callback = run

    def get_help_option(self, ctx: Any) -> Any:
        """--help, in the panel of what is no setting."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None and not self.panel:
            option.rich_help_panel = MORE
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the setting that is probably meant to a NoSuchOption error."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc, no-any-return]
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":
                raise
            from distsgd.config.sources import ALIASES, meant_by

            found: Any = error
            unknown = found.option_name.lstrip("-").replace("-", "_")
            near, how = meant_by(unknown), spelling_of(self)
            if near is not None and (unknown in {near, *ALIASES} or not found.possibilities):
                hint = how.given(near, near.upper())
                found.possibilities = [hint] if hint.startswith("--") else found.possibilities
            raise


class TrainCommand(_HasFlags, TyperCommand):
    """`train`: the flags of all settings that have one, and --set."""


class ResumeCommand(_HasFlags, TyperCommand):
    """`resume`: the settings that a resume may change."""

    def wanted(self, one: Setting) -> bool:
        """Whether a resume may change it."""
        return one.resumable

    def usually(self, one: Setting) -> str:
        """All are as they were."""
        return "as before"


class ForkCommand(ResumeCommand):
    """`fork`: those, and the learning rate."""

    def wanted(self, one: Setting) -> bool:
        """Whether it has a flag; any other is given with --set."""
        return one.resumable or one.name == "learning_rate"


_SIMULATED = (
    "dataset", "model", "loss", "batch_size", "epochs", "seed", "learning_rate", "regularization",
    "optimizer", "consistency",
)  # fmt: skip


class _Simulates(_HasFlags):
    panel = "The training"

    def wanted(self, one: Setting) -> bool:
        """Some, and the parameters of policies."""
        of_policy = one.belongs_to is not None and one.belongs_to[0] == "consistency"
        return one.name in _SIMULATED or of_policy


class SimulateCommand(_Simulates, TyperCommand):
    """A command that simulates a training."""


class SimulateGroup(_Simulates, TyperGroup):
    """A group of commands that is one itself."""


def in_panel(panel: str, help: str, *names: str, metavar: str | None = None) -> Any:
    """An option in a panel of the help.

    Args:
        panel: its title.
        help: what the option is.
        names: of the option, if they are not its variable's.
        metavar: its type in plain words.
    """
    plain = help.replace("[", "\\[")  # brackets are markup to typer
    return typer.Option(*names, help=plain, rich_help_panel=panel, metavar=metavar)


_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}
_METAVARS = {"int": "whole number", "float": "number", "str": "name", "bool": "switch"}


def _flags(
    wanted: Callable[[Setting], bool], usually: Callable[[Setting], str], panel: str
) -> list[Any]:
    """Options for some settings."""
    from distsgd.config.settings import SETTINGS
    from distsgd.config.table import described

    def command() -> None:
        """Takes them."""

    options = []
    for name, one in SETTINGS.items():
        if not wanted(one):
            continue
        kind = str if one.special else _TYPES[one.kind]
        words = usually(one)
        help = described(one) + (f" (default: {words})" if words else "")
        metavar = f"number or {one.special}" if one.special else _METAVARS[one.kind]
        option = in_panel(panel or one.group, help, f"--{name.replace('_', '-')}", metavar=metavar)
        kind = Annotated[kind | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(name, keyword, default=None, annotation=kind))
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    return typer.main.get_command(alone).params


def _in_order(options: list[Any]) -> list[Any]:
    """Options by panel; those without one come last."""
    from distsgd.config.table import GROUPS

    def place(option: Any) -> int:
        panel = getattr(option, "rich_help_panel", None)
        return GROUPS.index(panel) if panel in GROUPS else len(GROUPS)

    return sorted(options, key=place)


Run = Annotated[str, typer.Argument(help="Path or name of a run, or latest.")]
