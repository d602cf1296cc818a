"""``distsgd train``, ``resume`` and ``scale``."""

from __future__ import annotations

import gc
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli import BEGAN
from distsgd.cli.log_lines import as_json
from distsgd.cli.output import JsonFlag, count, log, percent, print_json, print_pairs, say, show
from distsgd.cli.settings import (
    FAULTS,
    FLEET,
    MORE,
    OUTPUT,
    ResumeCommand,
    Run,
    TrainCommand,
    flags_among,
    in_panel,
    typed,
)
from distsgd.cli.streams import outliving_stdout

if TYPE_CHECKING:
    from distsgd.cli.watch_page import Page
    from distsgd.config.settings import TrainConfig
    from distsgd.training.callbacks.callback import Followers
    from distsgd.training.results import Reporter, TrainResult

__all__ = [
    "AddressFlag", "JsonOutput", "MetricsPortFlag", "TensorBoardFlag", "WatchFlag", "add_to",
    "command_line", "followers_of", "page_if", "show_result",
]  # fmt: skip

AddressFlag = Annotated[
    str | None,
    in_panel(
        FLEET,
        "Ray cluster to train on: HOST:PORT of its head node, or auto. (default: a private Ray)",
        metavar="text",
    ),
]

JsonOutput = Annotated[
    bool,
    in_panel(
        OUTPUT, "Print one JSON object on stdout, all else on stderr.", "--json", metavar="switch"
    ),
]

TensorBoardFlag = Annotated[
    Path | None,
    in_panel(OUTPUT, "Write events for TensorBoard into this folder.", metavar="folder"),
]

MetricsPortFlag = Annotated[
    int | None,
    in_panel(
        OUTPUT,
        "Serve metrics for Prometheus at this port of 127.0.0.1; 0: a free one.",
        metavar="whole number",
    ),
]

WatchFlag = Annotated[
    bool,
    in_panel(OUTPUT, "Show the run in a browser, as `distsgd watch`.", "--watch", metavar="switch"),
]


def train(
    context: typer.Context,
    address: AddressFlag = None,
    run_dir: Annotated[
        Path | None,
        in_panel(
            OUTPUT,
            "A new folder for the run. (default: one that `runs list` shows)",
            metavar="folder",
        ),
    ] = None,
    resume_if_exists: Annotated[
        bool,
        in_panel(
            OUTPUT,
            "Continue the run in --run-dir, if there is one.",
            "--resume-if-exists",
            metavar="switch",
        ),
    ] = False,
    trace: Annotated[
        Path | None,
        in_panel(OUTPUT, "Write a timeline of all processes, for Perfetto.", metavar="file"),
    ] = None,
    tensorboard: TensorBoardFlag = None,
    metrics_port: MetricsPortFlag = None,
    watch: WatchFlag = False,
    tag: Annotated[
        list[str] | None,
        in_panel(
            OUTPUT,
            "A word to find the run by, as in `runs list`; may be repeated.",
            "--tag",
            metavar="text",
        ),
    ] = None,
    json: JsonOutput = False,
    chaos: Annotated[
        str | None,
        in_panel(
            FAULTS,
            "Inject faults, such as kill-worker:every=50; see `distsgd docs faults`.",
            metavar="text",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        in_panel(MORE, "Settings from a TOML file or a run's config.json.", metavar="file"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        in_panel(
            MORE,
            "Any setting, flag or not; `distsgd docs settings` lists them.",
            "--set",
            metavar="name=value",
        ),
    ] = None,
) -> None:
    """Train a classifier with minibatch SGD; any number of workers gives the same bits.

    Example: distsgd train --loss svm --workers 2 --epochs 10 --optimizer momentum

    Example: distsgd train --model mlp:100 --epochs 20

    Example: distsgd train --dataset s3://bucket/cifar10 --shuffle shard --cache-size 2000

    Example: distsgd train --epochs 20 --watch

    Example: distsgd train --tensorboard events --metrics-port 0

    Example: distsgd train --chaos kill-worker:every=500,drop-push:p=0.01

    Example: distsgd train --run-dir nightly --resume-if-exists
    """
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.train_reporter import make_reporter
    from distsgd.config.sources import config_from
    from distsgd.training.idempotent import resumable_among
    from distsgd.training.preparation import resume_with, train_with

    given, origins = typed(flags_among(context.params), set_, config)
    settings = config_from(given, origins)
    begun = _begun(run_dir, settings) if resume_if_exists else None
    stop, page = StopSignals(), page_if(watch)
    followers = followers_of(make_reporter(json), tensorboard, metrics_port, page)
    gc.freeze()  # what is loaded stays: it need not be looked through again and again
    with page or nullcontext(), outliving_stdout("training"), followers:
        if begun is None:
            result = train_with(
                settings, run_dir, followers, trace, chaos, address, stop, BEGAN, command_line(),
                tag or (),
            )  # fmt: skip
        else:
            changes = resumable_among(given)
            result = resume_with(
                begun, changes, followers, chaos, address, stop, BEGAN, command_line()
            )
        followers.end(result)
        show_result(result, json)
        if page is not None and result.status == "finished":
            page.stay()
    if result.status == "interrupted":
        stop.leave()


def _begun(run_dir: Path | None, settings: TrainConfig) -> Path | None:
    """The run that the command continues; it then multiplies as that run did."""
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.training.idempotent import run_to_resume

    begun = run_to_resume(run_dir, settings)
    if begun is not None:
        multiply_as(str(begun))
    return begun


def resume(
    context: typer.Context,
    run: Run,
    address: AddressFlag = None,
    tensorboard: TensorBoardFlag = None,
    metrics_port: MetricsPortFlag = None,
    watch: WatchFlag = False,
    json: JsonOutput = False,
    chaos: Annotated[
        str | None,
        in_panel(FAULTS, "Inject faults, as for train. (default: none)", metavar="text"),
    ] = None,
) -> None:
    """Resume a run that was interrupted or killed, from its last update; --epochs makes it longer.

    Example: distsgd resume latest --workers 3
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.cli.stop_signals import StopSignals
    from distsgd.cli.train_reporter import make_reporter
    from distsgd.training.preparation import resume_with

    multiply_as(run)
    changes = flags_among(context.params)
    stop, page = StopSignals(), page_if(watch)
    followers = followers_of(make_reporter(json), tensorboard, metrics_port, page)
    gc.freeze()
    with page or nullcontext(), outliving_stdout("training"), followers:
        result = resume_with(run, changes, followers, chaos, address, stop, BEGAN, command_line())
        followers.end(result)
        show_result(result, json)
        if page is not None and result.status == "finished":
            page.stay()
    if result.status == "interrupted":
        stop.leave()


def page_if(wanted: bool) -> Page | None:
    """The page that --watch shows."""
    from distsgd.cli.watch_page import Page

    return Page() if wanted else None


def followers_of(
    reporter: Reporter, tensorboard: Path | None, metrics_port: int | None, page: Page | None
) -> Followers:
    """Who follows a training: the terminal, and what flags ask for."""
    from distsgd.training.callbacks.callback import Callback, Followers

    callbacks: list[Callback] = []
    if tensorboard is not None:
        from distsgd.training.callbacks.tensorboard import TensorBoard

        callbacks.append(TensorBoard(tensorboard))
    if metrics_port is not None:
        from distsgd.training.callbacks.prometheus import Prometheus, metrics_token_file

        served = Prometheus(metrics_port)
        say(f"metrics at http://127.0.0.1:{served.port}/metrics; token in {metrics_token_file()}")
        callbacks.append(served)
    return Followers([reporter, *filter(None, [page])], callbacks)


def scale(
    run: Run,
    workers: Annotated[int, typer.Option(help="Worker processes from now on, 1 or more.")],
    json: JsonFlag = False,
) -> None:
    """Change the number of workers of a running training, without a restart.

    Example: distsgd scale latest --workers 4
    """
    from distsgd.training.training import scale as scale_run

    scale_run(run, workers)
    if json:
        print_json({"run": run, "workers": workers})
    else:
        say(f"{run} changes to {workers} workers")


def command_line() -> list[str]:
    """What the user has typed."""
    return ["distsgd", *sys.argv[1:]]


def show_result(result: TrainResult, json: bool) -> None:
    """The result on stdout; if the log is JSON, only there, unless --json asks for it."""
    log("result", **asdict(result))
    if json:
        print_json(result)
    elif not as_json():
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
        say(f"interrupted after step {result.steps}; to resume: {again}", level="warning")


def _time(result: TrainResult) -> str:
    """How long the user has waited, and for what."""
    rest = result.wall_seconds - result.startup_seconds - result.step_seconds
    return (
        f"{result.wall_seconds:.1f} s in all: {result.startup_seconds:.1f} s to start, "
        f"{result.step_seconds:.1f} s of steps, {max(0.0, rest):.1f} s to measure, save and end"
    )


def _workers(result: TrainResult) -> str:
    """How many, and how their gradients travelled."""
    how = "none started" if result.channel == "none" else result.channel
    return f"{result.workers} ({how})"


def _cost_of_policy(result: TrainResult) -> list[tuple[str, str]]:
    """What is worth a line when gradients may be old, put off, or shortened."""
    ages = ", ".join(f"{age}: {count(n)}" for age, n in result.staleness.items())
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
    app.command(cls=TrainCommand)(train)
    app.command(cls=ResumeCommand)(resume)
    app.command()(scale)
