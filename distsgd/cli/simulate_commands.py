"""``distsgd simulate`` and ``distsgd simulate compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli import simulate_flags as flags
from distsgd.cli.output import print_json, say
from distsgd.cli.settings import GroupTakesSettings, TakesSettings
from distsgd.errors import UsageError

if TYPE_CHECKING:
    from distsgd.config.settings import TrainConfig
    from distsgd.simulation.fleet import Fleet
    from distsgd.simulation.probe import Measuring

__all__ = ["add_to"]

_FLEET = ("workers", "speed", "slow", "jitter", "latency", "bandwidth", "fail", "rejoin")
_MEASURING = {
    "measure_every": "every", "measure_examples": "examples",
    "target_loss": "target_loss", "target_accuracy": "target_accuracy",
}  # fmt: skip

app = typer.Typer(cls=GroupTakesSettings)


@app.callback(invoke_without_command=True)
@flags.with_shared
def simulate(
    context: typer.Context,
    consistency: flags.Consistency = None,
    staleness: flags.Staleness = None,
    backup: flags.Backup = None,
    local_steps: flags.LocalSteps = None,
    **given: Any,
) -> None:
    """Train on a virtual clock: the same server and gradients, workers of any number and speed.

    Example: distsgd simulate --dataset sample --workers 8 --slow 1:4 --consistency ssp

    `distsgd simulate compare` sets policies side by side.
    """
    if context.invoked_subcommand is not None:
        others = {name: value for name, value in context.params.items() if name != "json"}
        _refuse_before_command(others, given["json"])
        return
    from distsgd.cli.simulate_tables import show_result
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.simulation.simulate import simulate_with

    fleet, make, measuring = _read(context.params)
    stop = StopSignals()
    result = simulate_with(make({}), fleet, measuring, stop)
    _draw(given["plot"], [result])
    if given["json"]:
        print_json(result)
    else:
        show_result(result)
    if result.status == "interrupted":
        stop.leave()


@app.command(cls=TakesSettings)
@flags.with_shared
def compare(
    context: typer.Context,
    policies: Annotated[
        str, typer.Option(help="Policies, such as bsp,ssp:3,asp,backup:2,local:8.")
    ] = "bsp,ssp:3,asp",
    seeds: flags.Seeds = 1,
    **given: Any,
) -> None:
    """Simulate several policies on one fleet: a table, and a figure with --plot.

    Example: distsgd simulate compare --dataset sample --policies bsp,ssp:3,asp --slow 1:4
    """
    from distsgd.cli.simulate_tables import show_comparison
    from distsgd.simulation.simulate import compare_with, policy_configs

    fleet, make, measuring = _read(context.params)
    configs = policy_configs(policies, make)

    def progress(policy: str, number: int) -> None:
        say(f"{policy}, seed {number}")

    found = compare_with(configs, fleet, measuring, seeds, progress)
    _draw(given["plot"], found.runs)
    if given["json"]:
        print_json(found)
    else:
        show_comparison(found)


def _read(
    given: dict[str, Any],
) -> tuple[Fleet, Callable[[dict[str, Any]], TrainConfig], Measuring]:
    """The fleet, what makes the settings of a policy, and when to measure, from flags and file."""
    from distsgd.simulation.plots import check_plot
    from distsgd.simulation.probe import Measuring
    from distsgd.simulation.scenario import fleet_from, read_scenario
    from distsgd.simulation.simulated_settings import simulated_config

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
    settings = {
        name: given.get(name)
        for name in ("dataset", "model", "loss", "batch_size", "epochs", "seed", "consistency",
                     "staleness", "backup", "local_steps", "optimizer")
    }  # fmt: skip

    def make(policy: dict[str, Any]) -> TrainConfig:
        return simulated_config(train, settings, given["set_"], policy)

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
        from distsgd.simulation.plots import plot_curves

        plot_curves(plot, runs)
        say(f"drew {plot}")


def add_to(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="simulate")
