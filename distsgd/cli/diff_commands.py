"""``distsgd diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import JsonFlag, count, print_json, print_pairs, print_table, show

if TYPE_CHECKING:
    from distsgd.forensics.difference import Difference, Distance
    from distsgd.forensics.one_update import UpdateDifference

__all__ = ["add_to"]

_LINES = 8
"""Lines of the table of distances."""


def diff(
    run: Annotated[str, typer.Argument(help="Path or name of a run, or latest.")] = "latest",
    other: Annotated[
        str | None,
        typer.Argument(metavar="[RUN2]", help="Another run. (default: the replay of the first)"),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw how the distance grows into this file: .png or .svg."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Find the first update after which two runs have different W, and the likely cause.

    Shows which settings, versions, kernels and data differ, then that update: its minibatch, slots,
    workers, the entries of W that differ, and how far apart the runs go. With one run it is
    compared with its own replay: where they part, a fault changed something, and a single bit of W,
    of a slot's gradient or of an image is looked for.

    Example: distsgd diff latest
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.forensics.difference import diff as compare

    multiply_as(run)
    if figure is not None:
        from distsgd.figures.drawn import check_plot

        check_plot(figure)
    found = compare(run, other)
    if figure is not None:
        from distsgd.figures.drawn import look, save_figure
        from distsgd.forensics.distance_figure import draw_distances

        with look():
            save_figure(draw_distances(found), figure)
    if json:
        print_json(found)
        return
    _print(found)
    if figure is not None:
        show(f"figure: {figure}")


def _print(found: Difference) -> None:
    """The comparison for people."""
    if found.update is not None:
        show(f"W differs from update {count(found.update)} on")
    elif found.same:
        show("the same bits")
    elif found.after is not None and "between" in found.cause:
        show(f"W differs after update {count(found.after)}")
    else:
        show("they differ")
    pairs = [("run" if len(found.runs) == 1 else "first", found.runs[0])]
    if len(found.runs) > 1:
        pairs.append(("second", found.runs[1]))
    pairs.append(("cause", found.cause))
    if found.shared:
        pairs.append(("common history", f"{count(found.shared)} updates"))
    if found.method:
        pairs.append(("compared", found.method))
    if found.record is not None:
        pairs.append(("records", f"differ from update {count(found.record)} on"))
    if found.there is not None:
        pairs += _there(found.there)
    pairs += [("note", note) for note in found.notes]
    print_pairs(pairs)
    _print_outside(found)
    if found.distances:
        print_table(
            ("after update", "distance / norm of W", "largest difference"),
            [
                (count(one.update), f"{one.relative:.2e}", f"{one.largest:.2e}")
                for one in _some(found.distances)
            ],
        )


def _there(update: UpdateDifference) -> list[tuple[str, str]]:
    """Lines about the update itself."""
    step, epoch = _once(update.steps), _once(update.epochs)
    pairs = [
        ("minibatch", f"step {step}, epoch {epoch}, learning rate {_once(update.learning_rates)}")
    ]
    names = ("pieces",) if len(set(map(str, update.contributions))) == 1 else ("pieces", "of other")
    pairs += [
        (name, "; ".join(map(_piece, group[:_LINES])) + "; ..." * (len(group) > _LINES))
        for name, group in zip(names, update.contributions, strict=False)
    ]
    if len(update.contributions) > 1:
        unlike = [
            *["other pieces"] * update.pieces, *["versions read"] * update.reads,
            *["order"] * update.order, *["examples"] * update.examples,
            *[f"pixels of image {number}" for number in update.pixels],
            *[f"label of example {number}" for number in update.labels],
            *["mean image or scale"] * update.preprocessing,
        ]  # fmt: skip
        pairs.append(("inputs", f"differ: {', '.join(unlike)}" if unlike else "the same"))
    if (entries := update.entries) is not None:
        one, other = entries.values
        after = update.entries_after
        later = "" if after == update.update else f" after update {count(after)}"
        pairs += [
            ("entries of W", f"{count(entries.differing)} of {count(entries.of)} differ{later}"),
            ("largest", f"{entries.largest:.3g}, in {entries.place}"),
            ("there", f"{one!r} and {other!r}, {count(entries.ulps)} units in the last place"),
        ]
    return pairs


def _once(values: tuple[Any, ...]) -> str:
    """Values of both runs; one if they are the same."""
    return " and ".join(f"{value:g}" for value in dict.fromkeys(values))


def _piece(piece: dict[str, Any]) -> str:
    first, last = piece["slots"]
    slots = f"slot {first}" if last == first + 1 else f"slots {first} to {last - 1}"
    return f"{slots} of step {piece['step']} by worker {piece['worker']} at W {piece['version']}"


def _print_outside(found: Difference) -> None:
    """Tables of what differs outside of the updates."""
    if found.settings:
        print_table(
            ("setting", "first", "second", ""),
            [
                (one.name, str(one.first), str(one.second), "" if one.matters else "not for W")
                for one in found.settings
            ],
        )
    if found.versions:
        print_table(
            ("version", "first", "second"),
            [(one.name, str(one.first), str(one.second)) for one in found.versions],
        )
    if (data := found.data) is not None:
        lines = [("dataset", f"digests {data.digests[0][:16]} and {data.digests[1][:16]}")]
        if data.changed is None:
            lines.append(("", data.note))
        else:
            lines.append(("training rows", f"{count(data.count)} differ"))
            for row in data.changed[:_LINES]:
                what = f"{row.values} values, first {row.place}" if row.values else ""
                what = ", ".join(filter(None, (what, "its label" * row.label)))
                uses = "/".join(str(use) for use in dict.fromkeys(row.used) if use is not None)
                used = f"first used in update {uses}, slot {row.slot}" if uses else "never used"
                lines.append((f"example {row.example}", f"{what}; {used}"))
            lines.append(("mean image", "differs" if data.mean else "the same"))
        print_pairs(lines)


def _some(distances: tuple[Distance, ...]) -> list[Distance]:
    """A few of the distances, denser near the first."""
    if len(distances) <= _LINES:
        return list(distances)
    last = len(distances) - 1
    places = {round(last ** (n / (_LINES - 2))) for n in range(_LINES - 1)} | {0, last}
    return [distances[place] for place in sorted(places)]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(diff)
