"""What the lecture's commands share: flags, and how a result is shown, drawn or printed as JSON."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from distsgd.cli.output import JsonFlag, print_json, say

__all__ = [
    "DatasetFlag", "ExamplesFlag", "LossFlag", "SeedFlag", "Steps", "WorkersFlag", "experiment",
    "integers", "reals",
]  # fmt: skip

DatasetFlag = Annotated[str, typer.Option(help="cifar10, sample, or a dataset folder.")]
LossFlag = Annotated[str, typer.Option(help="softmax or svm.")]
PlotFlag = Annotated[Path | None, typer.Option(help="Draw a figure: a .png or .svg file.")]
SeedFlag = Annotated[int, typer.Option(min=0, help="Random seed.")]
WorkersFlag = Annotated[
    int, typer.Option(min=0, help="Worker processes on Ray; 0: in this process, without Ray.")
]
ExamplesFlag = Annotated[
    int | None, typer.Option(help="Training examples to measure on. (default: all)")
]

Steps = Iterator[tuple[Any, Any]]
"""A command that `experiment` wraps: yields its result and what draws it, then shows it."""


def experiment(command: Callable[..., Steps]) -> Callable[..., None]:
    """Give a command the flags --plot and --json.

    Args:
        command: yields once, its result and the function that draws it. What follows the yield
            shows the result to people, and does not run with --json.
    """

    @functools.wraps(command)
    def run(*, plot: Path | None, json: bool, **given: Any) -> None:
        from distsgd.figures.drawn import check_plot, look, save_figure

        if plot is not None:
            check_plot(plot)  # before anything is computed
        steps = command(**given)
        result, draw = next(steps)
        if plot is not None:
            with look():
                save_figure(draw(result), plot)
            say(f"wrote {plot}")
        if json:
            print_json(result)
        else:
            next(steps, None)

    own = inspect.signature(command, eval_str=True)
    shared = (("plot", PlotFlag, None), ("json", JsonFlag, False))
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in shared
    ]
    parameters = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.parameters.values()
    ]
    signature = inspect.Signature([*parameters, *flags])
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def integers(flag: str, text: str) -> list[int]:
    """Comma-separated whole numbers.

    Raises:
        UsageError: one is not a whole number.
    """
    return _parsed(flag, text, int, "16,64,256")


def reals(flag: str, text: str) -> list[float]:
    """Comma-separated numbers.

    Raises:
        UsageError: one is not a number.
    """
    return _parsed(flag, text, float, "1e-3,1e-5")


def _parsed(flag: str, text: str, kind: Callable[[str], Any], example: str) -> list[Any]:
    from distsgd.errors import UsageError

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{flag} cannot be {text}", f"Give numbers, such as {example}") from None
