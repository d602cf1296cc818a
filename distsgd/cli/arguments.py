"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Run"]

Run = Annotated[str, typer.Argument(help="Path or name of a run, or latest.")]
