"""How a user writes settings, so that an error names what was typed, and a hint can be typed.

The same setting is ``--batch-size 64`` or ``--set momentum=0.5`` on a command line, a line of a
file, or an argument in Python. Every layer names arguments through this module, and only the
command line says that some of them are flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

__all__ = ["ARGUMENT", "FLAG", "SET", "Spelling", "spelled", "spelling", "written"]

FLAG, SET, ARGUMENT = "a flag", "--set", "an argument"
"""Where a setting may come from, beside files."""


@dataclass(frozen=True)
class Spelling:
    """How settings are written.

    Attributes:
        flags: settings that are flags of the command; empty in Python.
        assigns: whether the command takes ``--set``.
        origins: setting -> where its value came from: `FLAG`, `SET`, `ARGUMENT`, or the name of a
            file. The others are written as usual.
    """

    flags: frozenset[str] = frozenset()
    assigns: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)

    def usual(self, name: str) -> str:
        """How a setting is given here: `FLAG`, `SET` or `ARGUMENT`."""
        return FLAG if name in self.flags else SET if self.assigns else ARGUMENT

    def origin(self, name: str) -> str:
        """Where the value of a setting came from, or would come from."""
        return self.origins.get(name) or self.usual(name)

    def setting(self, name: str) -> str:
        """A setting: --batch-size, --set momentum, momentum in run.toml, or momentum."""
        origin = self.origin(name)
        if origin == FLAG:
            return f"--{name.replace('_', '-')}"
        if origin == SET:
            return f"--set {name}"
        return name if origin == ARGUMENT else f"{name} in {origin}"

    def given(self, name: str, value: object) -> str:
        """A setting with a value: --batch-size 64, --set momentum=0.5, or momentum=0.5.

        A tuple is a shape: --size 32x32, or size=(32, 32).
        """
        origin = self.origin(name)
        word = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        word = word.lower() if isinstance(value, bool) else word
        if origin == FLAG and value is False:
            return f"--no-{name.replace('_', '-')}"
        if origin == FLAG:
            return self.setting(name) + ("" if value is True else f" {word}")
        if origin == SET:
            return f"--set {name}={word}"
        if origin == ARGUMENT:
            return f"{name}={value!r}"
        return f"{name} = {json.dumps(value, default=str)} in {origin}"

    def with_origins(self, origins: Mapping[str, str]) -> Spelling:
        """The same, with these origins."""
        return replace(self, origins=dict(origins))


_PYTHON = Spelling()
_current: ContextVar[Callable[[], Spelling]] = ContextVar("spelling", default=lambda: _PYTHON)


def spelling() -> Spelling:
    """How settings are written now; in Python, unless `written` says otherwise."""
    return _current.get()()


def spelled(name: str) -> str:
    """A setting as it is written now; see `Spelling.setting`."""
    return spelling().setting(name)


@contextmanager
def written(how: Callable[[], Spelling]) -> Iterator[None]:
    """Within this, settings are written so.

    Args:
        how: asked each time.
    """
    before = _current.set(how)
    try:
        yield
    finally:
        _current.reset(before)
