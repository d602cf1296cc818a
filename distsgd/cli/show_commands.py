"""``distsgd show`` and ``distsgd bisect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import (
    JsonFlag,
    count,
    percent,
    print_json,
    print_pairs,
    print_table,
    show,
)
from distsgd.cli.settings import Run

if TYPE_CHECKING:
    from distsgd.forensics.show import ShownUpdate

__all__ = ["add_to"]


def show_update(
    run: Run,
    update: Annotated[
        str, typer.Argument(help="A number, last, last-N, or epoch:N for the last of an epoch.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The contact sheet. (default: RUN-update-N.png in this folder)"),
    ] = None,
    sheet: Annotated[
        bool, typer.Option("--sheet/--no-sheet", help="Draw the images as a contact sheet.")
    ] = True,
    worst: Annotated[int, typer.Option(min=0, help="Examples with the largest loss to list.")] = 5,
    rows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Training rows for the full gradient; 0 for none. (default: all, or a sample that "
            "takes about 0.1 s)",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show everything about one update, recomputed from the journal.

    Its examples, with a contact sheet of their images; loss before and after; the gradient beside
    the full one; the step; and who computed which slots, at which W.

    Example: distsgd show latest epoch:1 --no-sheet
    """
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.errors import storage_error
    from distsgd.forensics.show import show as compute

    multiply_as(run)
    found = compute(run, update, rows=rows)
    path = None
    if sheet and found.has_images:
        from distsgd.data.atomic import replace_file

        path = out or Path(f"{Path(found.run_dir).name}-update-{found.update}.png")
        try:
            replace_file(path, found.sheet(), shared=True)
        except OSError as error:
            raise storage_error(error, path, "Choose another file with --out") from None
    if json:
        content = {name: value for name, value in vars(found).items() if name != "rows"}
        content["pieces"] = [vars(one) for one in found.pieces]
        content["all"] = [vars(one) for one in found.all]
        print_json({**content, "sheet": None if path is None else str(path)})
        return
    print_pairs(_pairs(found, path))
    _print_pieces(found)
    if worst:
        _print_worst(found, worst)


def _pairs(found: ShownUpdate, path: Path | None) -> list[tuple[str, str]]:
    """What is shown of an update in one line each."""
    before, after = found.loss_before, found.loss_after
    pairs = [
        ("update", f"{count(found.update)} of {found.run_dir}"),
        ("epoch", f"{found.epoch}, minibatch {found.minibatch} of {found.minibatches}"),
        ("examples", count(found.examples)),
        ("loss", f"{before:.4f} before, {after:.4f} after ({after - before:+.4f})"),
        ("accuracy", f"{percent(found.accuracy_before)} before, "
                     f"{percent(found.accuracy_after)} after"),
        ("learning rate", f"{found.learning_rate:.4g}"),
        ("gradient", f"norm {found.gradient_norm:.4g}{_cosine(found.cosine)}"),
    ]  # fmt: skip
    if abs(found.loss - before) > 1e-5 * max(1.0, abs(before)):
        pairs.insert(4, ("loss as computed", f"{found.loss:.4f}, at the W that workers read"))
    if abs(found.fresh_gradient_norm - found.gradient_norm) > 1e-4 * found.gradient_norm:
        words = f"norm {found.fresh_gradient_norm:.4g}{_cosine(found.fresh_cosine)}"
        pairs.append(("of its examples", f"{words}, at W before the update"))
    if found.full_gradient_norm is not None:
        whole = found.full_examples == found.training_examples
        of = "all" if whole else f"a sample of {count(found.full_examples)} of"
        words = f"norm {found.full_gradient_norm:.4g}, over {of} "
        pairs.append(("full gradient", f"{words}{count(found.training_examples)} training rows"))
    pairs.append(("step", f"norm {found.step_norm:.4g}, {found.step_ratio:.3g} of that of W, "
                          f"{found.weight_norm:.4g}"))  # fmt: skip
    if found.state_norms:
        norms = ", ".join(f"{name} {norm:.4g}" for name, norm in found.state_norms.items())
        pairs.append((found.optimizer, f"norms of its state: {norms}"))
    if found.compression != "none":
        norms = ", ".join(f"worker {n}: {norm:.4g}" for n, norm in found.residual_norms.items())
        pairs.append((found.compression, f"norms of what is not sent yet: {norms or 'none kept'}"))
    return [*pairs, ("recomputation", _agreement(found)),
            *([] if path is None else [("images", str(path))])]  # fmt: skip


def _cosine(value: float | None) -> str:
    return "" if value is None else f", cosine {value:.3f} to the full gradient"


def _agreement(found: ShownUpdate) -> str:
    """Whether the recomputed W is the recorded one."""
    if found.same_bits is None:
        return "the run has recorded nothing of W after this update to compare it with"
    same = "has the same bits as" if found.same_bits else "DIFFERS from"
    return f"{same} the {found.recorded} of the run"


def _print_pieces(found: ShownUpdate) -> None:
    leaf = "replica" if found.policy == "local" else "slots"
    print_table(
        ("worker", "step", leaf, "read version", "updates old", "examples", "loss", "accuracy"),
        [
            (str(one.worker), count(one.step),
             str(one.first) if one.last == one.first + 1 else f"{one.first} to {one.last - 1}",
             count(one.version), count(one.staleness), count(one.examples), f"{one.loss:.4f}",
             percent(one.accuracy))
            for one in found.pieces
        ],
    )  # fmt: skip
    for step, first, last in found.deferred:
        slots = f"slot {first}" if last == first + 1 else f"slots {first} to {last - 1}"
        show(f"deferred to a later update: {slots} of step {count(step)}")


def _print_worst(found: ShownUpdate, worst: int) -> None:
    rows: list[tuple[Any, ...]] = [
        (count(one.example), one.label, one.guess, f"{one.loss_before:.3f}",
         f"{one.loss_after:.3f}", f"{one.gradient_norm:.4g}", f"{one.step}/{one.slot}")
        for one in found.worst(worst)
    ]  # fmt: skip
    headings = ("example", "label", "guess", "loss before", "after", "gradient norm", "step/slot")
    print_table(headings, rows, "largest losses", ("step/slot", "gradient norm"))


def bisect_run(
    run: Run,
    until: Annotated[
        str, typer.Option(help="The condition, such as 'loss > 3', 'test_accuracy[cat] < 20%'.")
    ],
    start: Annotated[
        str, typer.Option("--from", help="The update to begin at: a number, last-N or epoch:N.")
    ] = "1",
    every: Annotated[
        bool, typer.Option("--every", help="Measure test_, train_ and validation_ at every update.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Find the first update at which a condition holds. Exit code 1 if there is none.

    Of every update: loss, minibatch_accuracy, gradient_norm, weight_norm, step_norm, step_ratio,
    learning_rate, staleness, deferred. Measured after it: test_, train_ and validation_accuracy
    and _loss, and an accuracy of a class, as test_accuracy[cat]: at ends of epochs, and by halves
    between two. Compare with <, <=, >, >=, falls or rises; join with and, or. Or diverged.

    Example: distsgd bisect latest --until 'test_accuracy falls 0.5%'
    """
    from distsgd.cli.progress_bar import ProgressBar
    from distsgd.cli.run_kernel import multiply_as
    from distsgd.errors import RuntimeFailure
    from distsgd.forensics.bisect import bisect

    multiply_as(run)
    with ProgressBar(rows=True) as bar:
        found = bisect(run, until, start=start, every=every, progress=bar.update)
    if json:
        print_json(found)
    if found.update is None:
        looked = "" if found.exact else "; --every measures at each update, not at ends of epochs"
        raise RuntimeFailure(
            f"'{found.condition}' holds at none of the {count(found.looked_at)} updates of "
            f"{found.run_dir} that were looked at, from {count(found.first)} to "
            f"{count(found.last)}{looked}",
            "Try another condition",
        )
    if json:
        return
    words = "" if found.applied else ", which was never applied: the training diverged with it"
    after = found.after or {}
    print_pairs([
        ("condition", found.condition),
        ("first at", f"update {count(found.update)}{words}"),
        ("place", f"epoch {found.epoch}, minibatch {found.minibatch}"),
        *((name, _change(found.before, name, value)) for name, value in after.items()),
        ("looked at", f"{count(found.looked_at)} updates" + ("" if found.exact else
         ", at ends of epochs and then by halves: it is assumed to hold from there on")),
    ])  # fmt: skip
    if found.before is None and found.applied:
        show(f"it holds at the first update of the search; --from {found.update + 1} goes on")
    name = Path(found.run_dir).name if found.run_dir.count("/runs/") else found.run_dir
    if shown := found.update if found.applied else found.last:
        show(f"distsgd show {name} {shown}")
    show(f"distsgd fork {name} --at {found.update - 1} --learning-rate ...")


def _change(before: dict[str, float] | None, name: str, value: float) -> str:
    earlier = "" if before is None else f"{before[name]:.6g} at the update before it, "
    return f"{earlier}{value:.6g}"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("show")(show_update)
    app.command("bisect")(bisect_run)
