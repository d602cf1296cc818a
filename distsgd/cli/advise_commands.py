"""``distsgd advise``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, say, show

if TYPE_CHECKING:
    from distsgd.advice.advise import Advice

__all__ = ["add_to"]

_ROWS = 12


def advise(
    dataset: Annotated[str, typer.Option(help="cifar10, sample, or a dataset folder.")] = "cifar10",
    model: Annotated[str, typer.Option(help="linear, or mlp:HIDDEN such as mlp:100.")] = "linear",
    loss: Annotated[str, typer.Option(help="softmax or svm.")] = "softmax",
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 10,
    workers: Annotated[
        int | None, typer.Option(help="Most workers to consider. [default: one a core]")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Measure the nodes of this cluster: HOST:PORT of its head, or auto."),
    ] = None,
    machines: Annotated[
        int | None,
        typer.Option(
            help="Number of machines of this kind to predict for. [default: those measured]"
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(help="Seconds of a message between machines. [default: measured, or 0.0002]"),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Bytes a second between machines. [default: measured, or 1.25e9]"),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="Minibatches to compare. [default: 256; with a target 64,256,1024]"),
    ] = None,
    policies: Annotated[
        str, typer.Option(help="Policies to compare, such as bsp,ssp:3,asp,local:8.")
    ] = "bsp,ssp,asp,local",
    compress: Annotated[
        str, typer.Option(help="Compressions to compare, such as none,fp16,topk:0.01,onebit.")
    ] = "none",
    slow: Annotated[
        str | None, typer.Option(help="COUNT:FACTOR: COUNT workers are FACTOR times slower.")
    ] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Find what reaches this training loss first.")
    ] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="Find what reaches this test accuracy first, such as 0.4.")
    ] = None,
    machine: Annotated[Path | None, typer.Option(help="Use the measurements of this file.")] = None,
    save_machine: Annotated[
        Path | None, typer.Option(help="Write the measurements to this file.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure once, for 5 s, without the start of Ray.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Measure this machine or cluster for half a minute, and say what to train with on it.

    Example: distsgd advise --dataset sample --target-loss 1.8 --quick
    """
    from distsgd.advice.advise import Question
    from distsgd.advice.advise import advise as find_advice
    from distsgd.advice.measuring import QUICK, Effort
    from distsgd.config.settings import TrainConfig
    from distsgd.errors import UsageError
    from distsgd.simulation.probe import Measuring
    from distsgd.simulation.scenario import fleet_from, parts_of

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--batch-sizes cannot be {text}", "Give whole numbers with commas")
        return int(text)

    for name, value in (("--workers", workers), ("--machines", machines)):
        if value is not None and not 1 <= value <= 1000:
            raise UsageError(f"{name} cannot be {value}", "Give a whole number from 1 to 1,000")
    for name, amount in (("--latency", latency), ("--bandwidth", bandwidth)):
        if amount is not None and not (amount > 0 and math.isfinite(amount)):
            raise UsageError(f"{name} cannot be {amount}", "Give a number above 0")
    if address is not None and machine is not None:
        raise UsageError("--address and --machine are both given", "Give one of them")
    Measuring(target_loss=target_loss, target_accuracy=target_accuracy)
    slowness = fleet_from({"workers": 1000, "slow": slow}).slow if slow else ()
    question = Question(
        workers=workers,
        machines=machines,
        batch_sizes=None if batch_sizes is None else tuple(map(number, parts_of(batch_sizes))),
        policies=tuple(parts_of(policies)),
        compress=tuple(parts_of(compress)),
        target_loss=target_loss,
        target_accuracy=target_accuracy,
        slow=tuple(factor for times, factor in slowness for _ in range(times)),
    )
    config = TrainConfig(dataset=dataset, model=model, loss=loss, epochs=epochs)
    for way in question.compress:
        TrainConfig(dataset=dataset, compress=way)
    advice = find_advice(
        config, question, effort=QUICK if quick else Effort(), machine_file=machine,
        save_to=save_machine, latency=latency, bandwidth=bandwidth, address=address, tell=say,
    )  # fmt: skip
    if json:
        print_json(advice)
    else:
        _show(advice, address, has_target=question.has_target)


def _show(advice: Advice, address: str | None, *, has_target: bool) -> None:
    """The recommendation, then the table, then what was measured."""
    show(*advice.words)
    where = f" --address {address}" if address is not None and advice.best.workers else ""
    show("", f"  distsgd train {advice.best.flags}{where}", "")
    rows = [
        (
            f"{one.policy}" if one.workers else "alone",
            str(one.workers), str(one.machines), str(one.batch_size), one.compress,
            count(one.images_per_second), f"± {one.doubt:.0%}".replace("%", " %"),
            "" if one.updates is None else count(one.updates),
            "not reached" if one.seconds is None else f"{one.seconds:.1f}",
        )
        for one in advice.choices[:_ROWS]
    ]  # fmt: skip
    several = {one.machines for one in advice.choices} != {1}
    packed = {one.compress for one in advice.choices} != {"none"}
    keep = [True, True, several, True, packed, True, True, has_target, True]
    headings = (
        "policy", "workers", "machines", "batch", "compress", "images/s", "doubt", "updates",
        "s to target" if has_target else f"s of {advice.epochs} epochs",
    )  # fmt: skip
    print_table(
        [name for name, kept in zip(headings, keep, strict=True) if kept],
        [[cell for cell, kept in zip(row, keep, strict=True) if kept] for row in rows],
        f"predicted, best {min(_ROWS, len(advice.choices))} of {len(advice.choices)}",
    )
    print_pairs(_measured(advice))


def _measured(advice: Advice) -> list[tuple[str, str]]:
    machine = advice.machine
    found = [("machine", f"{machine.cores} cores, {machine.name or 'unknown processor'}")]
    if len(machine.node_cores) > 1:
        cores = ", ".join(map(str, machine.node_cores))
        found = [("nodes", f"{len(machine.node_cores)} of {cores} cores"), *found]
        found[1] = ("slowest", found[1][1])
    if machine.latency:
        found.append(("link, one way", f"{machine.latency * 1e3:.3g} ms"))
        found.append(("link, width", f"{machine.bandwidth / 1e6:,.3g} MB/s"))
    found.append(("BLAS kernel", machine.kernel))
    if "memory" in machine.trials:
        found.append(("memory", f"{machine.trials['memory'].value / 1e9:.1f} GB/s"))
    for name, trial in machine.trials.items():
        kind, *rest = name.split()
        if kind == "kernel":
            processes, examples = map(int, rest)
            rate = examples * processes / trial.value
            found.append((f"kernel, {processes} at once", f"{rate:,.0f} images/s by {examples}"))
    if machine.rounds > 1:
        found.append(("rounds differ by", f"± {machine.spread:.0%}".replace("%", " %")))
    found.append(("start of Ray", f"{machine.start_seconds:.1f} s"))
    return found


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(advise)
