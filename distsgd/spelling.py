"""How messages write the arguments of a function, so that an error names what the user typed.

Every layer names arguments through `spelling`: in Python, a setting is ``batch_size`` or
``batch_size=64``. A command line puts its own spelling in place (`distsgd.cli.settings`), where
the same setting is ``--batch-size 64``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Self

__all__ = ["Spelling", "spelled", "spelling", "written"]


@dataclass(frozen=True)
class Spelling:
    """How arguments are written in Python.

    Attributes:
        origins: argument -> where its value comes from, such as the name of a file; those given
            in the call itself are not in it.
    """

    origins: Mapping[str, str] = field(default_factory=dict)

    def setting(self, name: str) -> str:
        """An argument: momentum, or momentum in run.toml."""
        return f"{name} in {self.origins[name]}" if name in self.origins else name

    def given(self, name: str, value: object) -> str:
        """An argument with a value: momentum=0.5, or momentum = 0.5 in run.toml."""
        if name in self.origins:
            return f"{name} = {json.dumps(value, default=str)} in {self.origins[name]}"
        return f"{name}={value!r}"

    def words(self, name: str, values: Sequence[str]) -> str:
        """An argument with one text or several: drop='a', or drop=('a', 'b')."""
        return self.given(name, tuple(values) if len(values) > 1 else values[0])

    def is_own(self, name: str) -> bool:
        """Whether an argument, if it was given, was given in the call itself."""
        return name not in self.origins

    def with_origins(self, origins: Mapping[str, str]) -> Self:
        """The same, with these origins."""
        return replace(self, origins=dict(origins))


_PYTHON = Spelling()
_current: ContextVar[Callable[[], Spelling]] = ContextVar("spelling", default=lambda: _PYTHON)


def spelling() -> Spelling:
    """The spelling in place: that of Python, unless `written` says otherwise."""
    return _current.get()()


def spelled(name: str) -> str:
    """A setting as it is written now; see `Spelling.setting`."""
    return spelling().setting(name)


@contextmanager
def written(how: Callable[[], Spelling]) -> Iterator[None]:
    """Put a spelling in place for the code within.

    Args:
        how: gives the spelling; called each time.
    """
    before = _current.set(how)
    try:
        yield
    finally:
        _current.reset(before)
