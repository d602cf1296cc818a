"""The flags that ``distsgd simulate`` and ``distsgd simulate compare`` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from distsgd.cli.output import JsonFlag

__all__ = [
    "Backup", "Bandwidth", "BatchSize", "Consistency", "DatasetName", "Epochs", "Fail", "Jitter",
    "Latency", "LocalSteps", "Loss", "MeasureEvery", "MeasureExamples", "Optimizer", "Plot",
    "Rejoin", "Scenario", "Seed", "Seeds", "Set", "Slow", "Speed", "Staleness",
    "TargetAccuracy", "TargetLoss", "Workers", "with_shared",
]  # fmt: skip

_FLEET, _TRAIN, _MEASURE = "The fleet", "The training", "Measuring"


def _plain(text: str) -> str:
    """Brackets are markup to typer."""
    return text.replace("[", "\\[")


def _fleet(text: str) -> typer.models.OptionInfo:
    return typer.Option(help=_plain(text), rich_help_panel=_FLEET)  # type: ignore[no-any-return]


def _train(text: str, *names: str) -> typer.models.OptionInfo:
    return typer.Option(*names, help=_plain(text), rich_help_panel=_TRAIN)  # type: ignore[no-any-return]


def _measure(text: str) -> typer.models.OptionInfo:
    return typer.Option(help=_plain(text), rich_help_panel=_MEASURE)  # type: ignore[no-any-return]


Workers = Annotated[int | None, _fleet("Simulated workers. [default: 8]")]
Speed = Annotated[
    str | None, _fleet("Examples a second that a usual worker computes. [default: 250000]")
]
Slow = Annotated[
    str | None, _fleet("COUNT:FACTOR,...: so many workers are so many times slower, such as 1:4.")
]
Jitter = Annotated[
    str | None,
    _fleet("Random slowness of each lease: lognormal:SIGMA, pareto:ALPHA or pause:CHANCE:FACTOR."),
]
Latency = Annotated[str | None, _fleet("Seconds that a message takes. [default: 0]")]
Bandwidth = Annotated[
    str | None, _fleet("Bytes a second of each worker's link. [default: no limit]")
]
Fail = Annotated[list[str] | None, _fleet("WORKER@SECONDS,...: this worker dies then.")]
Rejoin = Annotated[list[str] | None, _fleet("WORKER@SECONDS,...: it comes back then.")]
Scenario = Annotated[
    Path | None, _fleet("A TOML file with the same names, and settings in a table [train].")
]

DatasetName = Annotated[
    str | None, _train("cifar10, sample, or a dataset folder. [default: cifar10]", "--dataset")
]
Model = Annotated[str | None, _train("linear, or mlp:HIDDEN, as mlp:100. [default: linear]")]
Loss = Annotated[str | None, _train("softmax or svm. [default: softmax]")]
BatchSize = Annotated[
    int | None, _train("Examples of a minibatch, shared by all workers. [default: 256]")
]
Epochs = Annotated[int | None, _train("Passes over the training set. [default: 10]")]
Seed = Annotated[int | None, _train("Fixes every bit, random slowness included. [default: 0]")]
Consistency = Annotated[str | None, _train("bsp, ssp, asp, backup or local. [default: bsp]")]
Staleness = Annotated[int | None, _train("ssp: how many minibatches ahead. [default: 3]")]
Backup = Annotated[int | None, _train("backup: slots not to wait for. [default: 1]")]
LocalSteps = Annotated[int | None, _train("local: steps between averagings. [default: 8]")]
Optimizer = Annotated[
    str | None, _train("sgd, momentum, nesterov, adagrad or adam. [default: sgd]")
]
Set = Annotated[list[str] | None, _train("Any further setting of train, as name=value.", "--set")]

MeasureEvery = Annotated[
    int | None, _measure("Updates between two measurements. [default: 20 times an epoch]")
]
MeasureExamples = Annotated[
    int | None,
    _measure("Training and test examples measured on the way, evenly spaced. [default: 2000]"),
]
TargetLoss = Annotated[float | None, _measure("Stop at this training loss, and say when.")]
TargetAccuracy = Annotated[
    float | None, _measure("Stop at this test accuracy, such as 0.4, and say when.")
]
Plot = Annotated[Path | None, _measure("Draw the curves: a .png or .svg file.")]
Seeds = Annotated[int, _measure("How many seeds, counted up from --seed.")]

_BEFORE: dict[str, Any] = {
    "workers": Workers, "speed": Speed, "slow": Slow, "jitter": Jitter, "latency": Latency,
    "bandwidth": Bandwidth, "fail": Fail, "rejoin": Rejoin, "scenario": Scenario,
    "dataset": DatasetName, "model": Model, "loss": Loss, "batch_size": BatchSize,
    "epochs": Epochs, "seed": Seed,
}  # fmt: skip
_AFTER: dict[str, Any] = {
    "optimizer": Optimizer, "set_": Set, "measure_every": MeasureEvery,
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
