"""``distsgd doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, say, show

if TYPE_CHECKING:
    from distsgd.advice.doctor import Diagnosis

__all__ = ["add_to"]


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a cluster's head, or auto: check its nodes, too."),
    ] = None,
    start_ray: Annotated[
        bool, typer.Option("--start-ray", help="Start a private Ray, too: some seconds more.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Check this machine: what is well, and what to do about the rest.

    The exit code is 1 if something must be mended, 0 if there are warnings alone.

    Example: distsgd doctor

    Example: distsgd doctor --address 10.0.0.1:6379 --json
    """
    from distsgd.advice.doctor import examine

    found = examine(address, start_ray=start_ray)
    if json:
        print_json({
            "problems": found.problems, "warnings": found.warnings,
            "findings": [asdict(one) for one in found.findings],
        })  # fmt: skip
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: Diagnosis) -> None:
    width = max(len(one.topic) for one in found.findings)
    for one in found.findings:
        show(f"{one.state:<7}  {one.topic:<{width}}  {one.message}")
        if one.cure:
            show(f"{'':<7}  {'':<{width}}  -> {one.cure}")
    if found.problems or found.warnings:
        say(f"{_count(found.problems, 'problem')}, {_count(found.warnings, 'warning')}")
    else:
        say("all is well")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)
