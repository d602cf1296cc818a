"""``distsgd runs``: list, show."""

from __future__ import annotations

from typing import Any

import typer

from distsgd.cli.arguments import Run
from distsgd.cli.output import JsonFlag, count, percent, print_json, print_pairs, print_table

__all__ = ["app"]

app = typer.Typer(help="Look at the runs there are.", no_args_is_help=True)


@app.command(name="list")
def list_(json: JsonFlag = False) -> None:
    """List the runs, oldest first.

    Example: distsgd runs list
    """
    from distsgd.run.folder import list_runs

    runs = [_summary(run) for run in list_runs()]
    if json:
        print_json({"runs": runs})
    elif not runs:
        print("There are no runs yet. Make one: distsgd train")
    else:
        print_table(
            ("run", "status", "loss", "workers", "epochs", "test"),
            [
                (run["name"], run["status"], str(run["loss"]), str(run["workers"]),
                 str(run["epochs"]), _share(run["test_accuracy"]))
                for run in runs
            ],
        )  # fmt: skip


def _share(value: Any) -> str:
    return "-" if value is None else percent(float(value))


def _summary(run: Any) -> dict[str, Any]:
    from distsgd.errors import RunError

    try:
        config = run.read("config.json")
    except RunError:
        config = {}
    try:
        report = run.read("report.json")
    except RunError:
        report = {}
    settings = config.get("settings")
    if not isinstance(settings, dict):
        settings = {}
    return {
        "name": run.path.name,
        "run_dir": str(run.path),
        "created": config.get("created"),
        "status": run.status(),
        **{name: settings.get(name) for name in ("dataset", "loss", "workers", "epochs")},
        "test_accuracy": report.get("test_accuracy"),
    }


@app.command()
def show(
    run: Run = "latest",
    json: JsonFlag = False,
) -> None:
    """Show one run: settings, versions, epochs, outcome.

    Example: distsgd runs show latest
    """
    from distsgd.errors import RunError
    from distsgd.run.folder import find_run
    from distsgd.run.metrics import read_metrics

    found = find_run(run)
    config = found.read("config.json")
    found.settings()  # refuses what holds none
    try:
        report = found.read("report.json")
    except RunError:
        report = {}
    epochs = [
        record for record in read_metrics(found.path / "metrics.jsonl")
        if record.get("kind") == "epoch"
    ]  # fmt: skip
    if json:
        print_json({"run_dir": str(found.path), "status": found.status(), **config,
                    "epochs": epochs, "report": report})  # fmt: skip
        return
    settings = config.get("settings", {})
    print_pairs([
        ("run", str(found.path)),
        ("status", found.status()),
        ("created", str(config.get("created"))),
        *((name, str(value)) for name, value in settings.items()),
        *((name, str(value)) for name, value in config.get("versions", {}).items()),
    ])  # fmt: skip
    if "problem" in report:
        print_pairs([("problem", str(report["problem"]))])
    if "weights_sha256" in report:
        print_pairs([
            ("test accuracy", percent(report["test_accuracy"])),
            ("throughput", f"{count(report['examples_per_second'])} images/s"),
            ("weights", f"sha256 {report['weights_sha256']}"),
        ])  # fmt: skip
    print_table(
        ("epoch", "train loss", "train", "test", "seconds"),
        [
            (str(row["epoch"]), f"{row['train_loss']:.4f}", percent(row["train_accuracy"]),
             percent(row["test_accuracy"]), f"{row['seconds']:.2f}")
            for row in epochs
        ],
    )  # fmt: skip
