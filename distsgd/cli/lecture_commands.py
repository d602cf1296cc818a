"""``distsgd lecture``: all of it, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, print_pairs, print_table, say
from distsgd.cli.study_options import DatasetFlag, SeedFlag, WorkersFlag

__all__ = ["add_to"]


def lecture(
    quick: Annotated[bool, typer.Option("--quick", help="In a minute and a half.")] = False,
    out: Annotated[Path, typer.Option(help="Folder to write the page into.")] = Path("lecture"),
    lang: Annotated[str, typer.Option(help="en or ko.")] = "en",
    only: Annotated[
        list[str] | None, typer.Option(help="Only this chapter; may be given several times.")
    ] = None,
    dataset: DatasetFlag = "cifar10",
    workers: WorkersFlag = 2,
    seed: SeedFlag = 0,
    json: JsonFlag = False,
) -> None:
    """The whole lecture, computed now: every number checked, every figure drawn, on one page.

    Writes OUT/lecture-LANG.html, which needs no network. Exits with 1 if a number is not what it
    should be. Numbers that are of CIFAR-10 are checked on CIFAR-10 only.

    Example: distsgd lecture --quick --dataset sample --workers 0
    """
    from distsgd.lecture.page.findings import Options
    from distsgd.lecture.page.html import lecture_page, page_path, write_page
    from distsgd.lecture.page.lecture import give_lecture

    path = page_path(out, lang)
    options = Options(dataset=dataset, quick=quick, workers=workers, seed=seed, say=say)
    found = give_lecture(options, only or ())
    write_page(path, lecture_page(found, lang))
    if json:
        print_json({"page": str(path), **found.summary()})
    else:
        print_table(
            ("chapter", "numbers", "failed", "seconds"),
            [
                (one.key, str(len(one.checks)),
                 ", ".join(check.key for check in one.checks if check.passed is False) or "-",
                 f"{one.seconds:.1f}")
                for one in found.chapters
            ],
        )  # fmt: skip
        print_pairs([
            ("passed", f"{found.passed} of {found.passed + found.failed}"),
            ("page", str(path)),
        ])  # fmt: skip
    if found.failed:
        say(f"{found.failed} numbers are not what they should be: see {path}")
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lecture)
