"""``distsgd runs``: list, show, compare, export, rm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsgd.cli.output import (
    JsonFlag,
    confirmed,
    count,
    pass_on,
    percent,
    print_json,
    print_pairs,
    print_table,
    say,
    show,
)
from distsgd.cli.settings import Run
from distsgd.errors import RunError, StorageError, UsageError

if TYPE_CHECKING:
    from distsgd.runs.branch import Branch
    from distsgd.runs.listing import RunSummary

__all__ = ["app"]

app = typer.Typer(
    help="List, inspect, compare, export and remove runs.", no_args_is_help=True
)  # fmt: skip

_MOST_ROWS = 1000
"""Up to this number, all epochs are shown, with or without a checkpoint."""


@app.command(name="list")
def list_(
    sort: Annotated[
        str | None,
        typer.Option(
            help="created, name, accuracy (test), validation, loss, train-loss, time, epochs, "
            "or a setting. (default: created, with forks below their parents)"
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs with this value of a setting, or the forks of a run (parent=RUN); may "
            "be repeated.",
            metavar="SETTING=VALUE",
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="Only runs that are running, finished, interrupted, failed, dead or diverged."
        ),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Forks by their dates too, not below their parents.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List runs, oldest first: by name, or by path for those outside the usual folder.

    The settings that differ among them are columns. Forks stand below their parents, unless
    --sort or --flat is given.

    Example: distsgd runs list --sort accuracy

    Example: distsgd runs list --where loss=softmax --state finished
    """  # fmt: skip
    from distsgd.runs.folder import runs_home
    from distsgd.runs.listing import find_runs, summaries, tree

    every = summaries()
    runs = find_runs(
        every, sort=sort or "created", reverse=reverse, where=where or (), state=state, tag=tag
    )  # fmt: skip
    branches = tree(runs) if sort is None and not flat else [("", run) for run in runs]
    if json:
        print_json({"runs": [_summary(run) for run in runs]})
    elif not every:
        show("There are no runs yet. Make one: distsgd train")
    elif not runs:
        show(f"None of the {count(len(every))} runs is like that.")
    else:
        show(f"runs in {runs_home()}")
        _print_list(branches)


_ALWAYS = ("model", "loss", "workers", "epochs")
"""Settings that are columns of the list, whether they differ or not."""


def _print_list(branches: Sequence[tuple[str, RunSummary]]) -> None:
    from distsgd.runs.listing import differing

    runs = [run for _, run in branches]
    forked = any(run.parent is not None for run in runs)
    different = differing(runs)
    others = [name for name in different if name not in _ALWAYS]
    shown = [name for name in different if name in (*_ALWAYS, *others)]
    same = [name for name in ("workers", "epochs", "loss", "model") if name not in different]
    tagged = any(run.tags for run in runs)
    validated = any(run.best_accuracy is not None for run in runs)
    headings = (
        "run",
        *["fork"] * forked,
        "status",
        *_ALWAYS,
        *others,
        "test %",
        *["val. %"] * validated,
        "seconds",
        *["tags"] * tagged,
    )
    print_table(
        headings,
        [
            (branch + run.name, *[_fork(run, bool(branch))] * forked, run.state,
             *(_value(run.settings.get(name)) for name in (*_ALWAYS, *others)),
             _hundredths(run.test_accuracy), *[_hundredths(run.best_accuracy)] * validated,
             _tenths(run.seconds),
             *[" ".join(run.tags)] * tagged)
            for branch, run in branches
        ],
        optional=(*same, "test %", *["tags"] * tagged, "seconds", *reversed(shown)),
    )  # fmt: skip


def _fork(run: RunSummary, below: bool) -> str:
    """Where a run was forked, and what it changed; of a parent that is not above it, its name."""
    from distsgd.runs.branch import changed_in_words

    if run.parent is None:
        return ""
    of = "" if below else f" of {run.parent}" + (", which is gone" if run.parent_gone else "")
    changed = f": {changed_in_words(run.changed)}" if run.changed else ""
    return f"at update {run.forked_at}{of}{changed}"


def _hundredths(share: float | None) -> str:
    """A share in a column of per cent, whose cells cannot be folded."""
    return "-" if share is None else f"{100 * share:.1f}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _value(value: Any) -> str:
    """A setting in a table."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _summary(run: RunSummary) -> dict[str, Any]:
    settings = run.settings
    return {
        "run": run.name,
        "name": Path(run.run_dir).name,
        "run_dir": run.run_dir,
        "created": run.created or None,
        "status": run.state,
        **{name: settings.get(name) for name in ("dataset", "loss", "workers", "epochs")},
        "model": str(settings.get("model", "linear")),
        "tags": list(run.tags),
        "epochs_ended": run.epochs,
        "seconds": run.seconds,
        "test_accuracy": run.test_accuracy,
        "best_accuracy": run.best_accuracy,
        "train_loss": run.train_loss,
        "test_loss": run.test_loss,
        "parent": run.parent,
        "forked_at": run.forked_at,
        "parent_gone": run.parent_gone,
        "changed": {name: list(values) for name, values in run.changed.items()},
        "settings": settings,
    }


@app.command(name="show")
def show_(
    run: Run = "latest",
    all_: Annotated[
        bool, typer.Option("--all", help="Show every setting, and the versions of packages.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show one run: its result, its epochs, and the settings that differ from the defaults.

    Of more than 1,000 epochs the table has those with a checkpoint; --json has all.

    Example: distsgd runs show latest
    """
    from distsgd.config.settings import chosen_settings
    from distsgd.runs.branch import branch_of
    from distsgd.runs.checkpoint import checkpoint_versions
    from distsgd.runs.folder import find_run
    from distsgd.runs.history import filled_settings
    from distsgd.runs.journal import resumptions
    from distsgd.runs.listing import forks_of
    from distsgd.runs.metrics import best_epoch, epoch_rows

    found = find_run(run)
    config = found.read("config.json")
    found.settings()  # refuses a file that holds none
    status, report = found.status(), found.report()
    metrics = found.path / "metrics.jsonl"
    epochs = epoch_rows(metrics) if metrics.exists() else []
    best = best_epoch(found.path)
    again, saved = resumptions(found.path), checkpoint_versions(found.checkpoints)
    parent, forks = branch_of(found, config), forks_of(found)
    if parent is not None and again and again[0].version == parent.update:
        again = again[1:]  # the start of a fork is in its journal too
    if json:
        told = [{"run": name, "update": one.update, "changed": one.changed} for name, one in forks]
        print_json({"run_dir": str(found.path), "status": status, **config, "forks": told,
                    "epochs": epochs, "best": _best(best, epochs), "checkpoints": saved,
                    "resumed": [vars(entry) for entry in again], "report": report})  # fmt: skip
        return
    settings = config.get("settings", {})
    print_pairs([
        ("run", str(found.path)),
        ("status", status),
        *([("parent", _parent(parent))] if parent is not None else []),
        *(("fork", f"{name}, {one.words.removeprefix('fork ')}") for name, one in forks),
        *([("ended", report["reason"])] if report.get("reason") else []),
        *_result(report),
        *_best_pair(_best(best, epochs)),
        ("checkpoints", _checkpoints(saved, epochs)),
        ("created", str(config.get("created"))),
        *(("resumed", _resumed(entry)) for entry in again),
    ])  # fmt: skip
    validated = any("validation_accuracy" in row for row in epochs)
    print_table(
        ("epoch", "train loss", "train", *["validation"] * validated, "test", "seconds"),
        [
            (str(row["epoch"]), f"{row['train_loss']:.4f}", percent(row["train_accuracy"]),
             *[_share(row.get("validation_accuracy"))] * validated,
             percent(row["test_accuracy"]), f"{row['seconds']:.2f}")
            for row in _shown(saved, epochs)
        ],
    )  # fmt: skip
    listed = settings if all_ else chosen_settings(settings, filled_settings(config))
    show("settings:" if all_ else "settings that differ from the defaults (--all shows every one):")
    print_pairs((name, str(value)) for name, value in listed.items())
    if all_:
        show("versions:")
        print_pairs((name, str(value)) for name, value in config.get("versions", {}).items())


def _parent(parent: Branch) -> str:
    """What a run was forked from, where, and what it changed."""
    gone = ", which is gone" if parent.gone else ""
    return f"{parent.name}{gone}, {parent.words.removeprefix('fork ')}"


def _result(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What the report of a run says, once there is one."""
    lines = [("problem", str(report["problem"]))] if "problem" in report else []
    if "weights_sha256" in report:
        lines += [
            ("test accuracy", percent(report["test_accuracy"])),
            ("training loss", f"{report['train_loss']:.4f}"),
            ("throughput", f"{count(report['examples_per_second'])} images/s"),
            ("weights", f"sha256 {report['weights_sha256']}"),
        ]
    return lines


def _best_pair(row: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The epoch with the largest validation accuracy, if there is one."""
    if row is None:
        return []
    share = percent(row["validation_accuracy"])
    return [("best epoch", f"{row['epoch']} (update {row['version']}), validation {share}")]


def _shown(saved: list[int], epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of the table: all, or if there are very many, those with a checkpoint."""
    if len(epochs) <= _MOST_ROWS:
        return epochs
    there = set(saved)
    return [row for row in epochs if row["version"] in there]


def _best(best: Any, epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the best epoch."""
    rows = [row for row in epochs if best is not None and row.get("version") == best[-1]]
    return rows[-1] if rows else None


def _checkpoints(saved: list[int], epochs: list[dict[str, Any]]) -> str:
    """How many checkpoints there are, and how many epochs have none."""
    gone = len({row.get("version") for row in epochs} - set(saved))
    return f"{count(len(saved))}" + (f"; none of {count(gone)} other epochs" if gone else "")


def _resumed(entry: Any) -> str:
    """The update after which a run resumed, and its settings from there on."""
    fleet = [f"workers {entry.workers}", f"epochs {entry.epochs}"]
    if entry.servers is not None:
        fleet += [f"servers {entry.servers}", f"channel {entry.channel}"]
    return f"after update {entry.version}: {', '.join(fleet)}"


Runs = Annotated[list[str], typer.Argument(help="Paths or names of runs, or latest.")]


@app.command()
def compare(
    runs: Runs,
    epochs: Annotated[
        bool, typer.Option("--epochs", help="Also the test accuracy and loss of every epoch.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Put runs side by side: the settings that differ, the results, and with --epochs each epoch.

    Example: distsgd runs compare latest first-run --epochs
    """
    from distsgd.runs.folder import find_run
    from distsgd.runs.listing import differing, summarise
    from distsgd.runs.metrics import epoch_rows

    if len(runs) < 2:
        raise UsageError("there is one run, and nothing to compare it with", "Name another")
    folders = [find_run(run) for run in runs]
    for folder in folders:
        folder.read("config.json")
    found = [summarise(folder) for folder in folders]
    rows = [epoch_rows(folder.path / "metrics.jsonl") for folder in folders]
    settings = differing(found)
    if json:
        shown = [{**_summary(run), "epoch_rows": of} for run, of in zip(found, rows, strict=True)]
        print_json({"differ": settings, "runs": shown})
        return
    names = _short_names(found)
    if settings:
        print_table(
            ("setting", *names),
            [(name, *map(_value, values)) for name, values in settings.items()],
            title="Settings that differ",
        )
    else:
        show("all settings are the same")
    print_table(("result", *names), _results(found), title="Results")
    if epochs:
        print_table(("epoch", *names), _by_epoch(rows), title="Test accuracy and loss by epoch")


def _short_names(runs: Sequence[RunSummary]) -> list[str]:
    """Names of folders, where they tell the runs apart."""
    names = [Path(run.run_dir).name for run in runs]
    return names if len(set(names)) == len(names) else [run.run_dir for run in runs]


def _results(runs: Sequence[RunSummary]) -> list[tuple[str, ...]]:
    return [
        ("status", *(run.state for run in runs)),
        *(
            [("fork", *(_fork(run, False) or "-" for run in runs))]
            if any(run.parent is not None for run in runs)
            else []
        ),
        ("epochs", *(str(run.epochs) for run in runs)),
        ("test accuracy", *(_share(run.test_accuracy) for run in runs)),
        ("best validation", *(_share(run.best_accuracy) for run in runs)),
        ("test loss", *(_number(run.test_loss) for run in runs)),
        ("training loss", *(_number(run.train_loss) for run in runs)),
        ("time of steps", *(_seconds(run.seconds) for run in runs)),
    ]


def _by_epoch(runs: Sequence[Sequence[dict[str, Any]]]) -> list[tuple[str, ...]]:
    """A row for each epoch of any run."""
    by_epoch = [{row["epoch"]: row for row in rows} for rows in runs]

    def cell(row: dict[str, Any] | None) -> str:
        return f"{percent(row['test_accuracy'])} {row['test_loss']:.4f}" if row else "-"

    every = sorted({epoch for rows in by_epoch for epoch in rows})
    return [(str(epoch), *(cell(rows.get(epoch)) for rows in by_epoch)) for epoch in every]


@app.command()
def tag(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(help="Words to add, such as baseline.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A word to take away; may be repeated.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Give a run words to find it by (`runs list --tag`), or take them away; show what it has.

    Example: distsgd runs tag latest baseline week-3
    """
    from distsgd.runs.folder import find_run
    from distsgd.runs.origin import change_tags

    found = find_run(run)
    found.read("config.json")
    tags = change_tags(found, words or (), remove or ())
    if json:
        print_json({"run_dir": str(found.path), "tags": tags})
    else:
        show(", ".join(tags) if tags else f"{found.path} has no tags")


@app.command()
def export(
    run: Run = "latest",
    to: Annotated[
        str,
        typer.Option(
            help="csv or arrow (metrics), npz (metrics and weights), onnx or sklearn (a model that "
            "takes raw pixels)."
        ),
    ] = "npz",
    out: Annotated[
        Path | None, typer.Option(help="The file. (default: the name of the run, here)")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="Whose weights: last, best, or any update: a number, epoch:N.")
    ] = "last",
    json: JsonFlag = False,
) -> None:
    """Write the metrics or the weights of a run to a file for another program.

    onnx and sklearn need the extras of these names; the error says what to install.

    Example: distsgd runs export latest --to csv --out metrics.csv
    """
    from distsgd.cli.run_kernel import multiply_as

    if checkpoint not in ("last", "best"):
        multiply_as(run)
    from distsgd.runs.export import export_run
    from distsgd.training.past import model_after

    done = export_run(run, to, out, checkpoint, model_after)
    if json:
        print_json(done)
        return
    of = "metrics" if done.updates is None else f"weights after {count(done.updates)} updates"
    show(f"{done.path}: {of}, {count(done.bytes)} bytes")


@app.command()
def rm(
    runs: Runs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    even_if_forked: Annotated[
        bool, typer.Option("--even-if-forked", help="Also a run that is the history of forks.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Remove runs for good: their folders, with checkpoints, journal and metrics.

    A run that is training is refused, and so are a folder that holds anything else, and a run that
    is the history of forks which stay.

    Example: distsgd runs rm first-run --yes
    """
    from distsgd.runs.folder import find_run
    from distsgd.runs.removal import check_removable, check_unneeded, remove_run

    found = list({run.path: run for run in map(find_run, runs)}.values())
    size = sum(map(check_removable, found))  # all of them, before any is removed
    if not even_if_forked:
        check_unneeded(found)
    if not yes:
        what = f"{len(found)} run{'s' * (len(found) != 1)} ({count(size)} bytes)"
        for run in found:
            say(str(run.path))
        if not confirmed(f"Remove {what} for good?"):
            say("nothing was removed")
            raise typer.Exit(1)
    removed: list[str] = []
    try:
        for run in found:
            remove_run(run)
            removed.append(str(run.path))
    except (RunError, StorageError):
        if removed:
            say(f"removed before that: {', '.join(removed)}")
        raise
    if json:
        print_json({"removed": removed, "bytes": size})
    else:
        show(*(f"removed {path}" for path in removed))


@app.command(hidden=True)
def mirror(
    run: Annotated[str, typer.Argument()],
    address: Annotated[str, typer.Option(help="Of the cluster it runs on; not used.")] = "auto",
) -> None:
    """Print what is added to a run, for `distsgd watch --address`, until it has ended."""
    from distsgd.watch.mirror import printed

    for line in printed(run):
        pass_on(f"{line}\n")
