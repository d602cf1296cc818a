"""``distsgd sweep``: all combinations of settings, a table and a figure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import count, print_json, print_pairs, print_table, say
from distsgd.cli.settings import MORE, OUTPUT, TrainCommand, flags_among, in_panel, typed
from distsgd.cli.streams import outliving_stdout
from distsgd.cli.train_commands import AddressFlag, JsonOutput

if TYPE_CHECKING:
    from distsgd.tuning.sweep import SweepFollower
    from distsgd.tuning.sweep_plan import SweepPlan
    from distsgd.tuning.sweep_results import Spread, SweepResult, SweepRow

__all__ = ["PlotFlag", "StudyFlag", "add_to", "table_of"]

_STUDY = "The study"

StudyFlag = Annotated[
    Path | None,
    in_panel(
        OUTPUT,
        "The folder of the study; the same command goes on with what is in it. (default: one that "
        "follows from what is asked)",
        metavar="folder",
    ),
]

PlotFlag = Annotated[
    Path | None, in_panel(OUTPUT, "Draw a figure: a .png or .svg file.", metavar="file")
]


def sweep(
    context: typer.Context,
    vary: Annotated[
        list[str] | None,
        in_panel(
            _STUDY,
            "A setting and its values, such as consistency=bsp,ssp:3,asp,local:8; may be repeated. "
            "A range has a number of values, as learning_rate=log:0.001..0.1:5.",
            "--vary",
            metavar="name=values",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        in_panel(
            _STUDY, "Trainings of each combination, with seeds from --seed on. (default: 1)",
            metavar="whole number",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        in_panel(
            _STUDY,
            "Go on with a sweep, in place of all that says what to do: its folder, its name, or "
            "latest.",
            metavar="study",
        ),
    ] = None,
    address: AddressFlag = None,
    study: StudyFlag = None,
    plot: PlotFlag = None,
    figure: Annotated[
        str,
        in_panel(
            OUTPUT,
            "Of --plot: accuracy, loss, learning-rate, throughput, bytes, staleness or workers.",
            metavar="name",
        ),
    ] = "accuracy",
    json: JsonOutput = False,
    config: Annotated[
        Path | None,
        in_panel(
            MORE, "Settings from a TOML file; its table [vary] has what varies.", metavar="file"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        in_panel(MORE, "Any setting, flag or not.", "--set", metavar="name=value"),
    ] = None,
) -> None:  # fmt: skip
    """Train all combinations of some settings, each with several seeds, on one Ray.

    Each training is a run of its own. The study folder has their tables as CSV and Arrow files. The
    same command again goes on after an interruption or a crash.

    Example: distsgd sweep --dataset sample --workers 0 --epochs 3 --vary loss=softmax,svm --seeds 3

    Example: distsgd sweep --vary consistency=bsp,ssp:3,asp,local:8 --seeds 3 --plot sweep.png
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.figures.drawn import check_plot
    from distsgd.tuning.sweep import sweep_with
    from distsgd.tuning.sweep_figure import check_figure

    if plot is not None:
        check_figure(figure)
        check_plot(plot)
    folder, plan = _planned(context, vary, seeds, resume, study, config, set_)
    stop = StopSignals("stopping after this update; the same command goes on from there")
    with outliving_stdout("sweep"):
        result = sweep_with(plan, folder, _follower(json), address, stop)
        if plot is not None:
            _draw(result, plot, figure)
        if json:
            print_json(result)
        else:
            _show(result)
    if result.status == "interrupted":
        say(
            f"interrupted after {len(result.runs)} of {result.planned} trainings; to go on: "
            f"distsgd sweep --resume {shlex.quote(result.study_dir)}"
        )
        stop.leave()


def _planned(
    context: typer.Context, vary: list[str] | None, seeds: int | None, resume: str | None,
    study: Path | None, config: Path | None, set_: list[str] | None,
) -> tuple[Path | None, SweepPlan]:  # fmt: skip
    """The folder and the plan of a sweep, from flags and a file."""
    from distsgd.tuning.from_python import resumed_sweep
    from distsgd.tuning.sweep_plan import sweep_plan

    flags = flags_among(context.params)
    if resume is not None:
        beside = {"vary": vary, "seeds": seeds, "study": study, "config": config, "set": set_}
        return resumed_sweep(resume, {**beside, **flags})
    settings, origins = typed(flags, set_, config)
    table: Any = settings.pop("vary", {})
    origins.pop("vary", None)
    axes = vary or table_of("vary", table, config)
    return study, sweep_plan(axes, 1 if seeds is None else seeds, settings, origins)


def table_of(name: str, found: Any, config: Path | None) -> dict[str, Any]:
    """A table of a file, as a user has written it.

    Raises:
        UsageError: it is no table.
    """
    from distsgd.errors import UsageError

    if not isinstance(found, dict):
        raise UsageError(
            f"{name} in {config} is no table", f'Write a line [{name}], then loss = ["softmax"]'
        )
    return found


def _draw(result: SweepResult, path: Path, name: str) -> None:
    """One figure of all trainings that have finished."""
    from distsgd.data.atomic import replace_file
    from distsgd.errors import UsageError, storage_error
    from distsgd.figures.drawn import rendered
    from distsgd.tuning.sweep_figure import sweep_figure

    try:
        figure = sweep_figure(name, result.runs)
    except UsageError as error:
        say(f"no figure: {error}")
        return
    try:
        replace_file(path, rendered(figure, path.suffix.lower()[1:]), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
    say(f"wrote {path}")


def _follower(json: bool) -> SweepFollower:
    from distsgd.cli.sweep_follower import TerminalFollower

    return TerminalFollower(err=json)


def _show(result: SweepResult) -> None:
    seeds = len(result.seeds)
    title = f"means ± standard deviations over {seeds} seeds" if seeds > 1 else ""
    headings = ("", "test accuracy", "training loss", "seconds", "images/s", "runs")
    print_table(headings, [_cells(row) for row in result.rows], title, optional=("images/s",))
    for run in result.runs:
        if run.status != "finished":
            say(f"{run.name}, seed {run.seed}: {run.status}: {run.problem}")
    tables = "runs.csv, runs.arrow, epochs.csv, epochs.arrow"
    print_pairs([
        ("study", result.study_dir),
        ("tables", f"{tables} in it; the runs are in {Path(result.study_dir) / 'runs'}"),
        ("time", f"{result.wall_seconds:.1f} s for {len(result.runs) - result.repeated} trainings"
                 + f"; {result.repeated} had ended before" * bool(result.repeated)),
    ])  # fmt: skip


def _cells(row: SweepRow) -> Sequence[str]:
    return (
        row.name, _spread(row.test_accuracy, percent=True), _spread(row.train_loss, digits=4),
        _spread(row.seconds, digits=2), _rate(row.examples_per_second), ", ".join(_runs(row)),
    )  # fmt: skip


def _spread(found: Spread | None, *, digits: int = 1, percent: bool = False) -> str:
    """A mean and its deviation, such as "41.3 ± 0.1 %"."""
    if found is None:
        return "-"
    times, unit = (100.0, " %") if percent else (1.0, "")
    beside = "" if found.deviation is None else f" ± {times * found.deviation:.{digits}f}"
    return f"{times * found.mean:.{digits}f}{beside}{unit}"


def _rate(found: Spread | None) -> str:
    return "-" if found is None else count(found.mean)


def _runs(row: SweepRow) -> Iterator[str]:
    """How many, and what became of those that have no result."""
    yield str(row.runs)
    if row.diverged:
        yield f"{row.diverged} diverged"
    if row.failed:
        yield f"{row.failed} failed"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=TrainCommand)(sweep)
