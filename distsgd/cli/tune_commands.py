"""``distsgd tune``: a search for settings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import count, percent, print_json, print_pairs, print_table, say
from distsgd.cli.settings import MORE, TrainCommand, flags_among, in_panel, typed
from distsgd.cli.streams import outliving_stdout
from distsgd.cli.sweep_commands import PlotFlag, StudyFlag, table_of
from distsgd.cli.train_commands import AddressFlag, JsonOutput

if TYPE_CHECKING:
    from distsgd.cli.tune_follower import TerminalTuneFollower
    from distsgd.tuning.tune_plan import TunePlan
    from distsgd.tuning.tune_results import TuneResult

__all__ = ["add_to"]

_SEARCH = "The search"
_MOST_ROWS = 20


def tune(
    context: typer.Context,
    search: Annotated[
        list[str] | None,
        in_panel(
            _SEARCH,
            "A setting and what to try: learning_rate=log:0.001..0.1, momentum=0.8..0.98, "
            "loss=softmax,svm, hidden=0,50,100; may be repeated. (default: ranges around the "
            "recipe of model and loss)",
            "--search",
            metavar="name=values",
        ),
    ] = None,
    method: Annotated[
        str | None,
        in_panel(
            _SEARCH,
            "random, grid, or halving: the worst are dropped on the way. (default: random)",
            metavar="name",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        in_panel(
            _SEARCH, "Settings to try. (default: 16, or all of a grid)", metavar="whole number"
        ),
    ] = None,
    reduction: Annotated[
        int | None,
        in_panel(
            _SEARCH,
            "With halving, the best 1/N of the trials go on. (default: 3)",
            metavar="whole number",
        ),
    ] = None,
    final: Annotated[
        bool,
        in_panel(
            _SEARCH,
            "Train the best settings on all training rows, and measure the test set.",
            "--final",
            metavar="switch",
        ),
    ] = False,
    resume: Annotated[
        str | None,
        in_panel(
            _SEARCH,
            "Go on with a search, in place of all that says what to try: its folder, its name, or "
            "latest.",
            metavar="study",
        ),
    ] = None,
    address: AddressFlag = None,
    study: StudyFlag = None,
    plot: PlotFlag = None,
    json: JsonOutput = False,
    config: Annotated[
        Path | None,
        in_panel(
            MORE,
            "Settings from a TOML file; its table [search] has what is searched.",
            metavar="file",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        in_panel(MORE, "Any setting, flag or not.", "--set", metavar="name=value"),
    ] = None,
) -> None:
    """Search settings: trained together in one pass over the data, chosen by rows held out.

    The test set is touched by --final alone. The best settings are in a file for `distsgd train
    --config`. The same command again goes on after an interruption or a crash.

    Example: distsgd tune --dataset sample --workers 0 --epochs 3 --trials 8

    Example: distsgd tune --search learning_rate=log:0.001..0.1 --method halving --trials 27 --final
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.tune_follower import TerminalTuneFollower
    from distsgd.figures.drawn import check_plot
    from distsgd.tuning.tune import tune_with

    if plot is not None:
        check_plot(plot)
    how = {"method": method, "trials": trials, "reduction": reduction}
    folder, plan = _planned(context, search, how, resume, study, config, set_)
    stop = StopSignals("stopping after this epoch; the same command goes on from there")
    follower = TerminalTuneFollower(err=json)
    with outliving_stdout("the search"):
        result = tune_with(plan, folder, follower, final=final, address=address, stopping=stop)
        if plot is not None:
            _draw(plan, result, follower, plot)
        if json:
            print_json(result)
        else:
            _show(result, plan)
    if result.status == "interrupted":
        say(
            f"interrupted after {count(result.epochs)} epochs of trials; to go on: "
            f"distsgd tune --resume {shlex.quote(result.study_dir)}"
        )
        stop.leave()


def _planned(
    context: typer.Context, search: list[str] | None, how: dict[str, Any], resume: str | None,
    study: Path | None, config: Path | None, set_: list[str] | None,
) -> tuple[Path | None, TunePlan]:  # fmt: skip
    """The folder and the plan of a search, from flags and a file."""
    from distsgd.tuning.from_python import resumed_tune
    from distsgd.tuning.tune_plan import tune_plan

    flags = flags_among(context.params)
    if resume is not None:
        workers = flags.pop("workers", None)
        beside = {"search": search, **how, "study": study, "config": config, "set": set_}
        return resumed_tune(resume, {**beside, **flags}, workers)
    settings, origins = typed(flags, set_, config)
    axes = search or table_of("search", settings.pop("search", {}), config)
    origins.pop("search", None)
    given = {name: value for name, value in how.items() if value is not None}
    return study, tune_plan(axes, settings=settings, origins=origins, **given)


def _draw(
    plan: TunePlan, result: TuneResult, follower: TerminalTuneFollower, path: Path
) -> None:  # fmt: skip
    from distsgd.figures.drawn import look, save_figure
    from distsgd.tuning.tune_figure import draw_search

    log = [one.name for one in plan.axes if one.log]
    with look():
        save_figure(draw_search(result, follower.records, log), path)
    say(f"wrote {path}")


def _show(result: TuneResult, plan: TunePlan) -> None:
    from distsgd.cli.tune_follower import trial_cells, trial_headings

    rows = [trial_cells(one, result.searched) for one in result.trials[:_MOST_ROWS]]
    left = len(result.trials) - len(rows)
    held = f"{percent(result.validation)} of the training rows, chosen by seed, are held out"
    print_table(
        trial_headings(result.searched), rows, f"best first; {held}", optional=("training loss",)
    )
    if left:
        say(f"and {left} more, in trials.csv")
    pairs = []
    if (best := result.best) is not None and best.validation_accuracy is not None:
        pairs.append(("best", f"trial {best.number}: {best.name}; validation accuracy "
                              f"{percent(best.validation_accuracy)}"))  # fmt: skip
    if (final := result.final) is not None:
        pairs += [
            ("test accuracy", f"{percent(final.test_accuracy)}, trained on all training rows"),
            ("weights", f"sha256 {final.weights_sha256}"),
            ("run", final.run_dir),
        ]
    if result.best_file:
        pairs.append(("settings", f"distsgd train --config {shlex.quote(result.best_file)}"))
    pairs += [
        ("study", result.study_dir),
        ("time", f"{result.wall_seconds:.1f} s, {count(result.epochs - result.repeated)} epochs of "
                 "trials" + f"; {count(result.repeated)} before" * bool(result.repeated)),
    ]  # fmt: skip
    print_pairs(pairs)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=TrainCommand)(tune)
