"""The flags, figures and numbers that the lecture's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

__all__ = [
    "DatasetFlag", "ExamplesFlag", "LossFlag", "PlotFlag", "SeedFlag", "WorkersFlag", "checked",
    "drawn", "numbers", "reals",
]  # fmt: skip

DatasetFlag = Annotated[str, typer.Option(help="cifar10, sample, or a dataset folder.")]
LossFlag = Annotated[str, typer.Option(help="softmax or svm.")]
PlotFlag = Annotated[Path | None, typer.Option(help="Draw a figure: a .png or .svg file.")]
SeedFlag = Annotated[int, typer.Option(min=0, help="Fixes what is drawn.")]
WorkersFlag = Annotated[int, typer.Option(min=0, help="Processes on Ray; 0: here, without Ray.")]
ExamplesFlag = Annotated[
    int | None, typer.Option(help="Training examples to measure on. (default: all)")
]


def numbers(flag: str, text: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        UsageError: it is something else.
    """
    return _parsed(flag, text, int, "16,64,256")


def reals(flag: str, text: str) -> list[float]:
    """Numbers with commas between; errors as `numbers`."""
    return _parsed(flag, text, float, "1e-3,1e-5")


def _parsed(flag: str, text: str, kind: Callable[[str], Any], example: str) -> list[Any]:
    from distsgd.errors import UsageError

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{flag} cannot be {text}", f"Give numbers, as {example}") from None


def checked(plot: Path | None) -> None:
    """Refuse a figure that cannot be drawn before anything is computed."""
    from distsgd.lecture.drawing import check_plot

    if plot is not None:
        check_plot(plot)


def drawn(plot: Path | None, draw: Callable[[Any], Figure], found: Any) -> None:
    """Draw what was found, if a figure was asked for."""
    from distsgd.lecture.drawing import save_figure

    if plot is not None:
        save_figure(draw(found), plot)
        say(f"the figure is {plot}")
