"""``distsgd audit``, ``distsgd replay`` and ``distsgd verify-install``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, show
from distsgd.cli.settings import Run
from distsgd.errors import JournalError, RuntimeFailure

if TYPE_CHECKING:
    from distsgd.proof.audit import Expected

__all__ = ["add_to"]


_HEAD = ("run_dir", "running", "updates", "head", "checkpoint", "checkpoint_sha256", "expected")
"""What `audit --head --json` prints of an audit."""

OwnFlag = Annotated[
    bool,
    typer.Option("--own", help="Of a fork, what is its own, without the runs that it came from."),
]


def audit(
    run: Run = "latest",
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIGEST",
            help="A digest kept elsewhere, of a record that the journal must contain, or the "
            "SHA-256 of W of one of its checkpoints; may be given several times.",
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option(
            "--head",
            help="Print what to keep elsewhere for --expect: the digest of the last record, and "
            "the SHA-256 of W of the newest checkpoint.",
        ),
    ] = False,
    own: OwnFlag = False,
    json: JsonFlag = False,
) -> None:
    """Check the journal: each example of each epoch was applied exactly once.

    Exit code 1, with the first wrong record, if the journal is invalid: a digest does not match,
    or a step, slot, version, worker or resumption contradicts the plan, the checkpoints or the
    report. Digests have no key, so only --expect detects a run folder that was forged with care.
    Gradients are not recomputed; `distsgd replay` does that. The journal of a run in training is
    checked up to its last update.

    Example: distsgd audit latest
    """
    from distsgd.proof.audit import audit as check

    with _telling("holds", json):
        found = check(run, expect, own)
    if json:
        fields = asdict(found)
        print_json({"holds": True} | ({name: fields[name] for name in _HEAD} if head else fields))
        return
    if head:
        show(
            f"{found.head}  # record of update {found.updates}",
            f"{found.checkpoint_sha256}  # W of the checkpoint of update {found.checkpoint}",
        )
        return
    until = f" up to update {count(found.updates)}" if found.running else ""
    show(f"the journal holds{until}")
    print_pairs([
        ("run", found.run_dir),
        *_running(found.running),
        ("updates", count(found.updates)),
        *_history(found.parents),
        *_beginning(found.begins_after),
        ("examples", f"{count(found.examples)}, each applied exactly once in its epoch"),
        ("epochs", f"{found.epochs} complete" + (", and part of one" if found.partial else "")),
        ("oldest gradient", f"{found.largest_staleness} updates"),
        ("checkpoints", f"{count(found.checkpoints)} agree with the journal"),
        ("head", found.head),
        *(("expected", _where(one, found.run_dir)) for one in found.expected),
    ])  # fmt: skip
    print_table(
        ("class", "examples applied", "examples deferred"),
        [
            (name, count(applied), count(found.class_delays[name]))
            for name, applied in found.class_examples.items()
        ],
    )


def replay(run: Run = "latest", own: OwnFlag = False, json: JsonFlag = False) -> None:
    """Recompute a run serially from its journal, and compare every bit of its checkpoints.

    Exit code 1, with the first wrong record, if they differ.

    Example: distsgd replay latest
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.proof.replay import replay as compute

    multiply_as(run)
    with _telling("same_bits", json):
        found = compute(run, own)
    if json:
        print_json({"same_bits": True, **vars(found)})
        return
    show("the replay has the same bits")
    print_pairs([
        ("run", found.run_dir),
        *_running(found.running),
        ("updates", count(found.updates)),
        *_history(found.parents),
        *_beginning(found.begins_after),
        ("checkpoints", f"{found.checkpoints} compared, all with the same bits"),
        ("fingerprints", f"{count(found.fingerprints)} updates have that of their W"),
        ("throughput", f"{found.images_per_second:,.0f} images/s, {found.seconds:.2f} s of steps"),
        ("weights", f"sha256 {found.weights_sha256}"),
    ])  # fmt: skip


def verify_install(
    dataset: Annotated[
        str, typer.Option(help="sample, or cifar10, which takes some ten times as long.")
    ] = "sample",
    json: JsonFlag = False,
) -> None:
    """Check that this machine gives the weights that every machine gives.

    Trains two epochs of the embedded images with exact arithmetic, of each kind of model, in this
    process, and compares the SHA-256 of W with known ones. Exit code 1 if one differs: then
    numpy, its BLAS or the processor does not compute as IEEE 754 says.

    Example: distsgd verify-install
    """
    from distsgd.engine.blas import blas_kernel
    from distsgd.proof.install import verify_install as check

    found = check(dataset)
    same = all(training.same for training in found)
    if json:
        print_json({
            "same": same, "blas": blas_kernel(), "trainings": [vars(one) for one in found]
        })  # fmt: skip
    else:
        print_table(
            ("training", "weights", "sha256"),
            [(one.name, "as known" if one.same else "DIFFERENT", one.found) for one in found],
        )
    if not same:
        raise RuntimeFailure(
            f"exact arithmetic gives other weights here, with {blas_kernel()}",
            "Report it, with the processor and the version of numpy",
        )


def _running(running: bool) -> list[tuple[str, str]]:
    """A line for a run that is training."""
    return [("status", "still running; checked up to its last update")] if running else []


def _history(parents: int) -> list[tuple[str, str]]:
    """A line for a fork whose history was checked."""
    runs = "the run" if parents == 1 else f"the {parents} runs"
    return [("history", f"with {runs} that it was forked from")] if parents else []


def _beginning(update: int) -> list[tuple[str, str]]:
    """A line for a journal whose earlier lines were dropped."""
    words = f"after update {count(update)}, with the checkpoint there; earlier lines are not here"
    return [("journal begins", words)] if update else []


def _where(found: Expected, run_dir: str) -> str:
    """Where a digest is that was expected."""
    of = f" of {found.run_dir}" if found.run_dir != run_dir else ""
    if found.checkpoint:
        return (
            f"{found.digest} is W of the checkpoint of update {count(found.update)}{of}: compared "
            "with the file, nothing was recomputed (`distsgd replay` does that)"
        )
    return f"{found.digest} is the digest after update {count(found.update)}{of}"


@contextmanager
def _telling(claim: str, json: bool) -> Iterator[None]:
    """With --json, an invalid journal is also reported on stdout."""
    try:
        yield
    except JournalError as error:
        if json:
            print_json({claim: False, "record": error.line, "problem": error.why})
        raise


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (audit, replay):
        app.command()(command)
    app.command("verify-install")(verify_install)
