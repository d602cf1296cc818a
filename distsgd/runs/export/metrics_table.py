"""The metrics of a run as one table, for Arrow, pandas and spreadsheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distsgd.runs.metrics import read_metrics

__all__ = ["COLUMNS", "metrics_columns", "metrics_table"]

COLUMNS: dict[str, str] = {
    "kind": "string",
    "step": "int64",
    "epoch": "int64",
    "seconds": "float64",
    "loss": "float64",
    "accuracy": "float64",
    "learning_rate": "float64",
    "examples_seen": "int64",
    "examples_per_second": "float64",
    "train_loss": "float64",
    "train_accuracy": "float64",
    "test_loss": "float64",
    "test_accuracy": "float64",
}
"""Columns and their types. A row of kind "progress" lacks the last four, one of kind "epoch" those
from loss to examples_per_second. Epochs count from 1."""

_KINDS = ("progress", "epoch")


def metrics_columns(path: Path) -> dict[str, list[Any]]:
    """The records of metrics.jsonl, as written, by column; None where a record has no value.

    Raises:
        RunError: a line is damaged.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for record in read_metrics(path):
        if record.get("kind") not in _KINDS:
            continue
        if record["kind"] == "epoch":
            record = {**record, "step": record["version"]}
        else:
            record = {**record, "epoch": record["epoch"] + 1}
        for name, column in columns.items():
            column.append(record.get(name))
    return columns


def metrics_table(path: Path) -> Any:
    """The same as a `pyarrow.Table`."""
    import pyarrow as pa

    columns = metrics_columns(path)
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    return pa.table(columns, schema=schema)
