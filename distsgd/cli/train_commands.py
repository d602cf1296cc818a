"""``distsgd train``, ``resume`` and ``scale``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli import BEGAN
from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, say, show
from distsgd.cli.settings import TakesSettings
from distsgd.cli.streams import outliving_stdout

if TYPE_CHECKING:
    from distsgd.training.results import TrainResult

__all__ = ["add_to"]

AddressFlag = Annotated[
    str | None,
    typer.Option(help="Ray cluster to train on: HOST:PORT of its head, or auto. (default: ours)"),
]


def train(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="cifar10, sample, a name, or a folder's path or URI (s3://...). (default: cifar10)"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="linear, or mlp:HIDDEN, two layers as mlp:100. (default: linear)"),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="softmax or svm. (default: softmax)")] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes; auto: what fits; 0: here, without Ray. (default: 2)"),
    ] = None,
    servers: Annotated[
        int | None, typer.Option(help="Parameter servers that W is split over. (default: 1)")
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Examples of a minibatch, shared by all workers, or full. (default: 256, or all)"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training set. (default: 10)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes every bit. (default: 0)")] = None,
    sampling: Annotated[
        str | None, typer.Option(help="shuffle, random or sequential. (default: shuffle)")
    ] = None,
    shuffle: Annotated[
        str | None,
        typer.Option(help="global, or shard: a few shards at a time. (default: global)"),
    ] = None,
    consistency: Annotated[
        str | None, typer.Option(help="bsp, ssp, asp, backup or local. (default: bsp)")
    ] = None,
    staleness: Annotated[
        int | None, typer.Option(help="ssp: how many minibatches ahead. (default: 3)")
    ] = None,
    backup: Annotated[
        int | None, typer.Option(help="backup: slots not to wait for. (default: 1)")
    ] = None,
    local_steps: Annotated[
        int | None, typer.Option(help="local: steps between averagings. (default: 8)")
    ] = None,
    compress: Annotated[
        str | None, typer.Option(help="none, fp16, topk:FRACTION or onebit. (default: none)")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd, momentum, nesterov, adagrad or adam. (default: sgd)"),
    ] = None,
    scale_lr: Annotated[
        bool | None,
        typer.Option("--scale-lr", help="Learning rate times batch size / 256, with a warm-up."),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="How pushes travel: auto, shm, tcp or ray. (default: auto)"),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Rows in memory: auto, uint8 or float32. (default: auto)")
    ] = None,
    cache_size: Annotated[
        int | None,
        typer.Option(help="MiB of remote datasets that a node keeps. (default: 0, no bound)"),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="A new folder for the run; default: among `runs list`.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings from a TOML file or a run's config.json.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any further setting, as name=value.")
    ] = None,
    chaos: Annotated[
        str | None,
        typer.Option(help="Faults on purpose, such as kill-worker:every=50; see above."),
    ] = None,
    address: AddressFlag = None,
    placement: Annotated[
        str | None, typer.Option(help="Servers near this node, or spread. (default: near)")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A file for a timeline of every process, for Perfetto.")
    ] = None,
    verify: Annotated[
        float | None,
        typer.Option(help="Share of updates to recompute independently. (default: 0)"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Train a classifier with minibatch SGD; the same bits for any number of workers.

    Example: distsgd train --loss svm --workers 2 --epochs 10 --set optimizer=momentum

    Example: distsgd train --model mlp:100 --epochs 20

    Example: distsgd train --dataset s3://bucket/cifar10 --shuffle shard --cache-size 2000

    --chaos takes faults with commas between. Of processes, after updates (every=N or at=N):
    kill-worker, stop-worker (for=TIME) and kill-server. Of pushes, with a chance (p=SHARE):
    drop-push, dup-push and delay (for=TIME). And seed=N.

    Example: distsgd train --chaos kill-worker:every=500,stop-worker:at=300:for=2s,drop-push:p=0.01
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.train_reporter import make_reporter
    from distsgd.config.sources import config_from
    from distsgd.training.preparation import train_with

    flags = {
        "dataset": dataset, "model": model, "loss": loss, "workers": workers,
        "batch_size": batch_size, "epochs": epochs, "seed": seed, "sampling": sampling,
        "consistency": consistency, "staleness": staleness, "backup": backup,
        "local_steps": local_steps, "optimizer": optimizer, "scale_lr": scale_lr,
        "compress": compress, "servers": servers, "channel": channel, "cache": cache,
        "verify": verify, "placement": placement, "shuffle": shuffle, "cache_size": cache_size,
    }  # fmt: skip
    settings = config_from(flags, config, set_)
    stop, reporter = StopSignals(), make_reporter(json)
    with outliving_stdout("training"):
        result = train_with(settings, run_dir, reporter, trace, chaos, address, stop, BEGAN)
    _show(result, json)
    if result.status == "interrupted":
        stop.leave()


def resume(
    run: Annotated[str, typer.Argument(help="Path or name of a run, or latest.")],
    workers: Annotated[
        str | None, typer.Option(help="Processes from here on, or auto. (default: as before)")
    ] = None,
    servers: Annotated[
        int | None, typer.Option(help="Parameter servers from here on. (default: as before)")
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="auto, shm, tcp or ray. (default: as before)")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of the whole run, to go on longer. (default: as before)")
    ] = None,
    chaos: Annotated[
        str | None, typer.Option(help="Faults on purpose, as for train. (default: none)")
    ] = None,
    address: AddressFlag = None,
    json: JsonFlag = False,
) -> None:
    """Go on with a run that was interrupted or killed, from its last update.

    Example: distsgd resume latest --workers 3
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.train_reporter import make_reporter
    from distsgd.training.preparation import resume_with

    given = {"workers": workers, "servers": servers, "channel": channel, "epochs": epochs}
    stop, reporter = StopSignals(), make_reporter(json)
    with outliving_stdout("training"):
        result = resume_with(run, given, reporter, chaos, address, stop, BEGAN)
    _show(result, json)
    if result.status == "interrupted":
        stop.leave()


def scale(
    run: Annotated[str, typer.Argument(help="Path or name of a run, or latest.")],
    workers: Annotated[int, typer.Option(help="Worker processes from here on, 1 or more.")],
    json: JsonFlag = False,
) -> None:
    """Give a run that is training another number of workers, without a restart.

    Example: distsgd scale latest --workers 4
    """
    from distsgd.training.training import scale as scale_run

    scale_run(run, workers)
    if json:
        print_json({"run": run, "workers": workers})
    else:
        say(f"{run} is told to go on with {workers} workers")


def _show(result: TrainResult, json: bool) -> None:
    if json:
        print_json(result)
    else:
        show()
        print_pairs([
            ("test accuracy", percent(result.test_accuracy)),
            ("training accuracy", percent(result.train_accuracy)),
            ("training loss", f"{result.train_loss:.4f}"),
            ("throughput", f"{count(result.examples_per_second)} images/s "
                           f"({count(result.step_examples)} in {result.step_seconds:.2f} s)"),
            ("time", _time(result)),
            ("workers", _workers(result)),
            *_cost_of_policy(result),
            *_cost_of_network(result),
            *_cost_of_chaos(result),
            *_verified(result),
            ("weights", f"sha256 {result.weights_sha256}"),
            *([("journal", f"head {result.journal_head}")] if result.journal_head else []),
            ("run", result.run_dir),
        ])  # fmt: skip
    if result.status == "interrupted":
        again = f"distsgd resume {shlex.quote(result.run_dir)}"
        say(f"interrupted after step {result.steps}; to go on: {again}")


def _time(result: TrainResult) -> str:
    """How long the user has waited, and for what."""
    rest = result.wall_seconds - result.startup_seconds - result.step_seconds
    return (
        f"{result.wall_seconds:.1f} s in all: {result.startup_seconds:.1f} s to start, "
        f"{result.step_seconds:.1f} s of steps, {max(0.0, rest):.1f} s to measure, save and end"
    )


def _workers(result: TrainResult) -> str:
    """How many, and how their gradients travelled."""
    how = "none had begun" if result.channel == "none" else result.channel
    return f"{result.workers} ({how})"


def _cost_of_policy(result: TrainResult) -> list[tuple[str, str]]:
    """What is worth a line when gradients may be old, put off, or shortened."""
    ages = ", ".join(f"{age}: {count(n)}" for age, n in result.gradient_ages.items())
    waits = ", ".join(f"{seconds:.2f} s" for _, seconds in sorted(result.waiting_seconds.items()))
    lines = [
        ("updates", f"{count(result.steps)} ({result.consistency}); gradients by age: {ages}"),
        ("put off, dropped", f"{count(result.requeued)}, {count(result.dropped)}"),
        ("waiting, by worker", waits),
    ]
    return [] if result.consistency == "bsp" else [line for line in lines if line[1]]


def _cost_of_network(result: TrainResult) -> list[tuple[str, str]]:
    """Where the time went, if gradients went over a network."""
    if "tcp" not in result.channel:
        return []
    lines = [
        (f"worker {worker}", f"{busy:.2f} s computing and on the way, "
                             f"{result.waiting_seconds.get(worker, 0.0):.2f} s waiting for others")
        for worker, busy in result.answering_seconds.items()
    ]  # fmt: skip
    size, share = count(result.bytes_per_update), percent(result.server_busy_share)
    return [*lines, ("an update", f"{size} bytes of gradients; the server was busy for {share}")]


def _cost_of_chaos(result: TrainResult) -> list[tuple[str, str]]:
    """What was done to it on purpose, and that it holds all the same."""
    if (chaos := result.chaos) is None:
        return []
    return [
        ("chaos", ", ".join(f"{name} {count(n)}" for name, n in chaos.faults.items())),
        ("its cost", f"{chaos.stalled_seconds:.1f} s without an update; "
                     f"{count(chaos.answers_in_vain)} gradients "
                     f"({count(chaos.slots_in_vain)} slots) computed in vain"),
        ("audit", f"holds: {count(chaos.audited_updates)} updates, each example exactly once"),
    ]  # fmt: skip


def _verified(result: TrainResult) -> list[tuple[str, str]]:
    """How many updates were recomputed, and how near they were."""
    if (found := result.verified) is None:
        return []
    text = f"{found['updates']} updates"
    if found["let_pass"]:
        text += f" ({found['let_pass']} more sampled, but let pass, as too many waited)"
    if found["not_compared"]:
        return [("verified", f"{text}; not compared: {found['not_compared']}")]
    off, most = found["largest_difference"], found["tolerance"]
    return [("verified", f"{text}; largest difference {off:.2g}, tolerance {most:.2g}")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=TakesSettings)(train)
    app.command()(resume)
    app.command()(scale)
