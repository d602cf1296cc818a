"""``distsgd simulate`` and ``distsgd simulate compare``: their shared flags, and their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table, say
from distsgd.cli.settings import SimulateCommand, SimulateGroup, flags_among, in_panel, typed
from distsgd.errors import UsageError
from distsgd.simulation.results import Comparison, CurvePoint, SimulationResult

if TYPE_CHECKING:
    from distsgd.config.settings import TrainConfig
    from distsgd.simulation.fleet import Fleet
    from distsgd.simulation.probe import Measuring

__all__ = ["add_to"]


_FLEET_PANEL, _TRAIN, _MEASURE = "The fleet", "The training", "Measuring"


def _fleet(text: str) -> Any:
    return in_panel(_FLEET_PANEL, text)


def _measure(text: str) -> Any:
    return in_panel(_MEASURE, text)


Workers = Annotated[int | None, _fleet("Simulated workers. [default: 8]")]
Speed = Annotated[
    str | None, _fleet("Examples a second that a usual worker computes. [default: 250000]")
]
Slow = Annotated[
    str | None, _fleet("COUNT:FACTOR,...: COUNT workers are FACTOR times slower, such as 1:4.")
]
Jitter = Annotated[
    str | None,
    _fleet("Random slowness of each lease: lognormal:SIGMA, pareto:ALPHA or pause:CHANCE:FACTOR."),
]
Latency = Annotated[str | None, _fleet("Seconds that a message takes. [default: 0]")]
Bandwidth = Annotated[
    str | None, _fleet("Bytes a second of each worker's link. [default: no limit]")
]
Fail = Annotated[list[str] | None, _fleet("WORKER@SECONDS,...: this worker fails at that time.")]
Rejoin = Annotated[
    list[str] | None, _fleet("WORKER@SECONDS,...: this worker rejoins at that time.")
]
Scenario = Annotated[
    Path | None, _fleet("A TOML file with the same names, and settings in a table [train].")
]

Set = Annotated[
    list[str] | None,
    in_panel(_TRAIN, "Any further setting of train, as name=value.", "--set"),
]

MeasureEvery = Annotated[
    int | None, _measure("Updates between two measurements. [default: 20 times an epoch]")
]
MeasureExamples = Annotated[
    int | None,
    _measure("Training and test examples to measure on, evenly spaced. [default: 2000]"),
]
TargetLoss = Annotated[float | None, _measure("Stop at this training loss, and report the time.")]
TargetAccuracy = Annotated[
    float | None, _measure("Stop at this test accuracy, such as 0.4, and report the time.")
]
Plot = Annotated[Path | None, _measure("Draw the curves: a .png or .svg file.")]
Seeds = Annotated[int, _measure("Number of seeds, from --seed upward.")]

_BEFORE: dict[str, Any] = {
    "workers": Workers, "speed": Speed, "slow": Slow, "jitter": Jitter, "latency": Latency,
    "bandwidth": Bandwidth, "fail": Fail, "rejoin": Rejoin, "scenario": Scenario,
}  # fmt: skip
_AFTER: dict[str, Any] = {
    "set_": Set, "measure_every": MeasureEvery,
    "measure_examples": MeasureExamples, "target_loss": TargetLoss,
    "target_accuracy": TargetAccuracy, "plot": Plot, "json": JsonFlag,
}  # fmt: skip


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """Put the flags of both commands around those of one; it takes them as ``**given``."""

    def flags(named: dict[str, Any]) -> list[inspect.Parameter]:
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if kind is JsonFlag else None,
                annotation=kind,
            )
            for name, kind in named.items()
        ]

    context, *own, _given = inspect.signature(command, eval_str=True).parameters.values()
    own = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in own]
    parameters = [context, *flags(_BEFORE), *own, *flags(_AFTER)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


_ROWS = 12
"""Rows of the curve that are shown; --json has all."""


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.4g} s"


def show_result(result: SimulationResult) -> None:
    """Show the curve and the result of a simulation."""
    print_table(
        ("virtual seconds", "updates", "training loss", "test accuracy"),
        [
            (f"{point.seconds:.4g}", count(point.update), f"{point.train_loss:.4f}",
             percent(point.test_accuracy))
            for point in _thinned(result.curve)
        ],
    )  # fmt: skip
    print_pairs(_pairs(result))


def _pairs(result: SimulationResult) -> Iterator[tuple[str, str]]:
    yield "policy", f"{result.policy}, {len(result.waiting_shares)} workers"
    yield "ended", f"{result.status} after {_seconds(result.seconds)}"
    if result.target_loss is not None:
        yield f"to loss {result.target_loss:g}", _seconds(result.time_to_loss)
    if result.target_accuracy is not None:
        yield f"to {percent(result.target_accuracy)}", _seconds(result.time_to_accuracy)
    yield "updates", count(result.updates)
    yield "test accuracy", percent(result.test_accuracy)
    least, most = min(result.waiting_shares), max(result.waiting_shares)
    yield "waiting", f"{percent(result.waiting_share)} ({percent(least)} to {percent(most)})"
    yield "staleness", _histogram(result.staleness)
    yield "dropped, requeued", f"{count(result.dropped)}, {count(result.requeued)}"
    yield "weights", f"sha256 {result.weights_sha256}"


def _histogram(ages: dict[str, int]) -> str:
    total = sum(ages.values()) or 1
    shown = [f"{age}: {percent(n / total)}" for age, n in list(ages.items())[:10]]
    return ", ".join(shown) + (", ..." if len(ages) > 10 else "")


def _thinned(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most _ROWS points, evenly spaced, with the first and the last."""
    if len(curve) <= _ROWS:
        return list(curve)
    return [curve[i * (len(curve) - 1) // (_ROWS - 1)] for i in range(_ROWS)]


def show_comparison(found: Comparison) -> None:
    """Show one row for each policy."""
    headings = ["policy"]
    if found.target_loss is not None:
        headings.append(f"s to loss {found.target_loss:g}")
    if found.target_accuracy is not None:
        headings.append(f"s to {percent(found.target_accuracy)}")
    headings += [
        "s",
        "loss",
        "accuracy",
        "waiting",
        "staleness",
        "updates",
        "dropped",
        "requeued",
    ]
    rows = []
    for row in found.rows:
        cells = [row.policy + (f" ({row.diverged} diverged)" if row.diverged else "")]
        if found.target_loss is not None:
            cells.append(_spread(row.times_to_loss))
        if found.target_accuracy is not None:
            cells.append(_spread(row.times_to_accuracy))
        cells += [
            f"{row.seconds:.4g}", f"{row.train_loss:.4f}", percent(row.test_accuracy),
            percent(row.waiting_share), f"{row.mean_staleness:.1f}", count(row.updates),
            count(row.dropped), count(row.requeued),
        ]  # fmt: skip
        rows.append(cells)
    title = f"means over {len(found.seeds)} seeds" if len(found.seeds) > 1 else ""
    print_table(headings, rows, title, optional=("dropped", "requeued", "updates", "staleness"))


def _spread(times: Sequence[float | None]) -> str:
    """Mean, least and most; or how many reached the target."""
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return f"{len(known)} of {len(times)}" if len(times) > 1 else "-"
    mean = f"{sum(known) / len(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4g}-{max(known):.4g})"


_FLEET = ("workers", "speed", "slow", "jitter", "latency", "bandwidth", "fail", "rejoin")
_MEASURING = {
    "measure_every": "every", "measure_examples": "examples",
    "target_loss": "target_loss", "target_accuracy": "target_accuracy",
}  # fmt: skip

app = typer.Typer(cls=SimulateGroup)


@app.callback(invoke_without_command=True)
@with_shared
def simulate(
    context: typer.Context,
    **given: Any,
) -> None:
    """Train on a virtual clock, with any number of workers of any speed.

    Example: distsgd simulate --dataset sample --workers 8 --slow 1:4 --consistency ssp

    `distsgd simulate compare` compares policies.
    """
    if context.invoked_subcommand is not None:
        others = {name: value for name, value in context.params.items() if name != "json"}
        _refuse_before_command(others, given["json"])
        return
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.simulation.simulate import simulate as run_simulation

    fleet, make, measuring = _read(context.params)
    stop = StopSignals()
    result = run_simulation(make({}), fleet, measuring, stop)
    _draw(given["plot"], [result])
    if given["json"]:
        print_json(result)
    else:
        show_result(result)
    if result.status == "interrupted":
        stop.leave()


@app.command(cls=SimulateCommand)
@with_shared
def compare(
    context: typer.Context,
    policies: Annotated[
        str, typer.Option(help="Policies, such as bsp,ssp:3,asp,backup:2,local:8.")
    ] = "bsp,ssp:3,asp",
    seeds: Seeds = 1,
    **given: Any,
) -> None:
    """Simulate several policies on one fleet: a table, and a figure with --plot.

    Example: distsgd simulate compare --dataset sample --policies bsp,ssp:3,asp --slow 1:4
    """
    from distsgd.simulation.simulate import compare as run_comparison
    from distsgd.simulation.simulate import policy_configs

    fleet, make, measuring = _read(context.params)
    configs = policy_configs(policies, make)

    def progress(policy: str, number: int) -> None:
        say(f"{policy}, seed {number}")

    found = run_comparison(configs, fleet, measuring, seeds, progress)
    _draw(given["plot"], found.runs)
    if given["json"]:
        print_json(found)
    else:
        show_comparison(found)


def _read(
    given: dict[str, Any],
) -> tuple[Fleet, Callable[[dict[str, Any]], TrainConfig], Measuring]:
    """The fleet, what makes the settings of a policy, and when to measure, from flags and file."""
    from distsgd.figures.drawn import check_plot
    from distsgd.simulation.probe import Measuring
    from distsgd.simulation.scenario import fleet_from, read_scenario, simulated_config

    file, train = read_scenario(given["scenario"]) if given["scenario"] else ({}, {})
    expressions = {
        name: _joined(given[name]) for name in _FLEET if given[name] not in (None, [], ())
    }
    fleet = fleet_from({**file, **expressions})
    measuring = Measuring(
        **{name: given[flag] for flag, name in _MEASURING.items() if given[flag] is not None}
    )
    if given["plot"]:
        check_plot(given["plot"])
    flags = {name: value for name, value in flags_among(given).items() if name not in _FLEET}
    settings, origins = typed(flags, given["set_"])

    def make(policy: dict[str, Any]) -> TrainConfig:
        return simulated_config(train, settings, origins, policy)

    return fleet, make, measuring


def _joined(value: Any) -> Any:
    """Flags that may be given several times are one list with commas."""
    return ",".join(value) if isinstance(value, list | tuple) else value


def _refuse_before_command(given: dict[str, Any], json: bool) -> None:
    names = [name for name, value in given.items() if value not in (None, [], ())]
    if names or json:
        flag = (names or ["json"])[0].rstrip("_").replace("_", "-")
        raise UsageError(
            f"--{flag} stands before compare", "Write flags after it: distsgd simulate compare ..."
        )


def _draw(plot: Path | None, runs: list[Any]) -> None:
    if plot is not None:
        from distsgd.figures.drawn import look, save_figure
        from distsgd.simulation.figures import draw_curves

        with look():
            save_figure(draw_curves(runs), plot)
        say(f"wrote {plot}")


def add_to(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="simulate")
