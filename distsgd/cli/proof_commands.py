"""``distsgd audit`` and ``distsgd replay``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, show
from distsgd.cli.settings import Run
from distsgd.errors import JournalError

__all__ = ["add_to"]


def audit(
    run: Run = "latest",
    head: Annotated[
        str | None,
        typer.Option(help="Digest that must be in the journal: a head that was kept elsewhere."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show from the journal that each example of each epoch was applied exactly once.

    Exit code 1, and the first record that is wrong, when the journal does not hold: a digest, or
    a step, slot, version, worker or resumption that the plan of the run does not have, or that its
    checkpoints and report contradict. None of these has a key, so a run folder that was forged
    with care is found by --head alone. Gradients are not computed: `distsgd replay` does that.
    A run may be training: then its journal is checked as far as it has come.

    Example: distsgd audit latest
    """
    from distsgd.proof.audit import audit as check

    with _telling("holds", json):
        found = check(run, head)
    if json:
        print_json({"holds": True, **vars(found)})
        return
    print_pairs([
        ("run", found.run_dir),
        *_running(found.running),
        ("updates", count(found.updates)),
        *_beginning(found.begins_after),
        ("examples", f"{count(found.examples)}, each applied exactly once in its epoch"),
        ("epochs", f"{found.epochs} whole" + ("" if found.complete else ", and a part")),
        ("oldest gradient", f"{found.largest_gradient_age} updates"),
        ("checkpoints", f"{count(found.checkpoints)} tell the same of the journal"),
        ("head", found.head),
    ])  # fmt: skip
    print_table(
        ("class", "examples applied", "examples put off"),
        [
            (name, count(applied), count(found.class_delays[name]))
            for name, applied in found.class_examples.items()
        ],
    )
    until = f" up to update {count(found.updates)}" if found.running else ""
    kept = "" if head is None else f", and has the digest {head}"
    show(f"the journal holds{until}{kept}")


def replay(run: Run = "latest", json: JsonFlag = False) -> None:
    """Compute a run anew, serially, from its journal, and compare every bit of its checkpoints.

    Exit code 1, and the first record that is wrong, when they differ.

    Example: distsgd replay latest
    """
    from distsgd.proof.replay import replay as compute

    with _telling("same_bits", json):
        found = compute(run)
    if json:
        print_json({"same_bits": True, **vars(found)})
        return
    print_pairs([
        ("run", found.run_dir),
        *_running(found.running),
        ("updates", count(found.updates)),
        *_beginning(found.begins_after),
        ("checkpoints", f"{found.checkpoints} compared, all with the same bits"),
        ("weights", f"sha256 {found.weights_sha256}"),
    ])  # fmt: skip


def _running(running: bool) -> list[tuple[str, str]]:
    """That a run goes on meanwhile."""
    return [("status", "running; this is how far it has come")] if running else []


def _beginning(update: int) -> list[tuple[str, str]]:
    """What is told of a journal whose beginning was dropped."""
    words = f"after update {count(update)}; of what was before, the checkpoint there tells"
    return [("journal begins", words)] if update else []


@contextmanager
def _telling(claim: str, json: bool) -> Iterator[None]:
    """With --json, a journal that is wrong is told on stdout too."""
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
