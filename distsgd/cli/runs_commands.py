"""``distsgd runs``: list, show."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table, show
from distsgd.cli.settings import Run

__all__ = ["app"]

app = typer.Typer(help="List and inspect runs.", no_args_is_help=True)

_MOST_ROWS = 1000
"""Up to this number, all epochs are shown, with or without a checkpoint."""


@app.command(name="list")
def list_(json: JsonFlag = False) -> None:
    """List all runs, oldest first: by name, or by path for those outside the usual folder.

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
    from distsgd.runs.checkpoint import checkpoint_versions
    from distsgd.runs.folder import find_run
    from distsgd.runs.journal import resumptions
    from distsgd.runs.metrics import best_epoch, epoch_rows

    found = find_run(run)
    config = found.read("config.json")
    found.settings()  # refuses a file that holds none
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
        *_result(report),
        *_best_pair(_best(best, epochs)),
        ("checkpoints", _checkpoints(saved, epochs)),
        ("created", str(config.get("created"))),
        *(("resumed", _resumed(entry)) for entry in again),
    ])  # fmt: skip
    print_table(
        ("epoch", "train loss", "train", "test", "seconds"),
        [
            (str(row["epoch"]), f"{row['train_loss']:.4f}", percent(row["train_accuracy"]),
             percent(row["test_accuracy"]), f"{row['seconds']:.2f}")
            for row in _shown(saved, epochs)
        ],
    )  # fmt: skip
    listed = settings if all_ else chosen_settings(settings)
    show("settings:" if all_ else "settings that differ from the defaults (--all shows every one):")
    print_pairs((name, str(value)) for name, value in listed.items())
    if all_:
        show("versions:")
        print_pairs((name, str(value)) for name, value in config.get("versions", {}).items())


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
    """The epoch with the largest test accuracy, if one has ended."""
    if row is None:
        return []
    share = percent(row["test_accuracy"])
    return [("best epoch", f"{row['epoch']} (update {row['version']}), test {share}")]


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
