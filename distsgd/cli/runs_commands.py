"""``distsgd runs``: list, show."""

from __future__ import annotations

from typing import Any

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table, show
from distsgd.cli.settings import Run

__all__ = ["app"]

app = typer.Typer(help="Look at the runs there are.", no_args_is_help=True)

_MOST_ROWS = 1000
"""Epochs that are shown, whether or not they have a checkpoint."""


@app.command(name="list")
def list_(json: JsonFlag = False) -> None:
    """List the runs, oldest first: by name, or by path if they lie elsewhere than usual.

    Example: distsgd runs list
    """
    from distsgd.runs.folder import list_runs, runs_home

    runs = [_summary(run) for run in list_runs()]
    if json:
        print_json({"runs": runs})
    elif not runs:
        show("There are no runs yet. Make one: distsgd train")
    else:
        show(f"runs in {runs_home()}")
        print_table(
            ("run", "status", "model", "loss", "workers", "epochs", "test"),
            [
                (run["run"], run["status"], run["model"], str(run["loss"]),
                 str(run["workers"]), str(run["epochs"]), _share(run["test_accuracy"]))
                for run in runs
            ],
            optional=("workers", "loss", "model", "epochs"),
        )  # fmt: skip


def _share(value: Any) -> str:
    return "-" if value is None else percent(float(value))


def _summary(run: Any) -> dict[str, Any]:
    from distsgd.errors import RunError, StorageError
    from distsgd.runs.folder import handle

    try:
        config = run.read("config.json")
    except (RunError, StorageError):
        config = {}
    status, report = run.status(), run.report()
    settings = config.get("settings")
    if not isinstance(settings, dict):
        settings = {}
    return {
        "run": handle(run),
        "name": run.path.name,
        "run_dir": str(run.path),
        "created": config.get("created"),
        "status": status,
        **{
            name: report.get(name, settings.get(name))
            for name in ("dataset", "loss", "workers", "epochs")
        },
        "model": str(settings.get("model", "linear")),
        "test_accuracy": report.get("test_accuracy"),
    }


@app.command(name="show")
def show_(
    run: Run = "latest",
    json: JsonFlag = False,
) -> None:
    """Show one run: settings, versions, epochs, outcome.

    Of more than 1,000 epochs the table has those with a checkpoint; --json has all.

    Example: distsgd runs show latest
    """
    from distsgd.runs.checkpoint import checkpoint_versions
    from distsgd.runs.folder import find_run
    from distsgd.runs.journal import resumptions
    from distsgd.runs.metrics import best_epoch, epoch_rows

    found = find_run(run)
    config = found.read("config.json")
    found.settings()  # refuses what holds none
    status, report = found.status(), found.report()
    metrics = found.path / "metrics.jsonl"
    epochs = epoch_rows(metrics) if metrics.exists() else []
    best = best_epoch(found.path)
    again, saved = resumptions(found.path), checkpoint_versions(found.checkpoints)
    if json:
        print_json({"run_dir": str(found.path), "status": status, **config,
                    "epochs": epochs, "best": _best(best, epochs), "checkpoints": saved,
                    "resumed": [vars(entry) for entry in again], "report": report})  # fmt: skip
        return
    settings = config.get("settings", {})
    print_pairs([
        ("run", str(found.path)),
        ("status", status),
        ("created", str(config.get("created"))),
        *((name, str(value)) for name, value in settings.items()),
        *((name, str(value)) for name, value in config.get("versions", {}).items()),
        *(("resumed", _resumed(entry)) for entry in again),
    ])  # fmt: skip
    if "problem" in report:
        print_pairs([("problem", str(report["problem"]))])
    if "weights_sha256" in report:
        print_pairs([
            ("test accuracy", percent(report["test_accuracy"])),
            ("throughput", f"{count(report['examples_per_second'])} images/s"),
            ("weights", f"sha256 {report['weights_sha256']}"),
        ])  # fmt: skip
    print_pairs([("checkpoints", _checkpoints(saved, epochs))])
    if (row := _best(best, epochs)) is not None:
        share = percent(row["test_accuracy"])
        print_pairs([("best", f"epoch {row['epoch']} (update {row['version']}), test {share}")])
    print_table(
        ("epoch", "train loss", "train", "test", "seconds"),
        [
            (str(row["epoch"]), f"{row['train_loss']:.4f}", percent(row["train_accuracy"]),
             percent(row["test_accuracy"]), f"{row['seconds']:.2f}")
            for row in _shown(saved, epochs)
        ],
    )  # fmt: skip


def _shown(saved: list[int], epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of the table: all, or of very many those that have a checkpoint."""
    if len(epochs) <= _MOST_ROWS:
        return epochs
    there = set(saved)
    return [row for row in epochs if row["version"] in there]


def _best(best: Any, epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the best epoch."""
    rows = [row for row in epochs if best is not None and row.get("version") == best[-1]]
    return rows[-1] if rows else None


def _checkpoints(saved: list[int], epochs: list[dict[str, Any]]) -> str:
    """How many there are, and of how many epochs there is none (any more)."""
    gone = len({row.get("version") for row in epochs} - set(saved))
    return f"{count(len(saved))}" + (f"; none of {count(gone)} other epochs" if gone else "")


def _resumed(entry: Any) -> str:
    """With what a run was gone on with."""
    fleet = [f"workers {entry.workers}", f"epochs {entry.epochs}"]
    if entry.servers is not None:
        fleet += [f"servers {entry.servers}", f"channel {entry.channel}"]
    return f"after update {entry.version}: {', '.join(fleet)}"
