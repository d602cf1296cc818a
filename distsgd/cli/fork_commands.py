"""``distsgd fork``."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli import BEGAN
from distsgd.cli.settings import (
    FAULTS,
    MORE,
    OUTPUT,
    ForkCommand,
    Run,
    flags_among,
    in_panel,
    typed,
)
from distsgd.cli.streams import outliving_stdout
from distsgd.cli.train_commands import (
    AddressFlag,
    JsonOutput,
    MetricsPortFlag,
    TensorBoardFlag,
    WatchFlag,
    command_line,
    followers_of,
    page_if,
    show_result,
)

__all__ = ["add_to"]


def fork(
    context: typer.Context,
    run: Run,
    at: Annotated[
        str,
        typer.Option(
            help="Where: a number of updates, last, epoch:N (its end), or a time of training such "
            "as 90s or 2m.",
            metavar="update",
        ),
    ],
    order: Annotated[
        str | None,
        typer.Option(
            help="Make the updates in the recorded order of the run, in one process, or live. "
            "(default: recorded where live would differ)",
            metavar="recorded|live",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Copy the history, so that the fork stands alone.")
    ] = False,
    address: AddressFlag = None,
    run_dir: Annotated[
        Path | None,
        in_panel(
            OUTPUT,
            "A new folder for the fork. (default: one that `runs list` shows)",
            metavar="folder",
        ),
    ] = None,
    tensorboard: TensorBoardFlag = None,
    metrics_port: MetricsPortFlag = None,
    watch: WatchFlag = False,
    tag: Annotated[
        list[str] | None,
        in_panel(
            OUTPUT,
            "A word to find the fork by, as in `runs list`; may be repeated.",
            "--tag",
            metavar="text",
        ),
    ] = None,
    json: JsonOutput = False,
    chaos: Annotated[
        str | None,
        in_panel(FAULTS, "Inject faults, as for train. (default: none)", metavar="text"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        in_panel(
            MORE,
            "Any setting, flag or not; `distsgd docs fork` says which can change where.",
            "--set",
            metavar="name=value",
        ),
    ] = None,
) -> None:
    """Fork a run: a new run that shares its history up to an update, and goes on differently.

    Example: distsgd fork latest --at epoch:4 --learning-rate 0.0001

    Example: distsgd fork latest --at 500 --set optimizer=momentum --epochs 20
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.train_reporter import make_reporter
    from distsgd.training.forking import fork_with

    multiply_as(run)
    given, _ = typed(flags_among(context.params), set_)
    stop, page = StopSignals(), page_if(watch)
    followers = followers_of(make_reporter(json), tensorboard, metrics_port, page)
    gc.freeze()
    with page or nullcontext(), outliving_stdout("training"), followers:
        result = fork_with(
            run, at, given, followers, run_dir=run_dir, order=order, whole=whole, chaos=chaos,
            address=address, stopping=stop, began=BEGAN, command=command_line(), tags=tag or (),
        )  # fmt: skip
        followers.end(result)
        show_result(result, json)
        if page is not None and result.status == "finished":
            page.stay()
    if result.status == "interrupted":
        stop.leave()


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=ForkCommand)(fork)
