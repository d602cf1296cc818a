"""Write the metrics or the weights of a run to a file that another program reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.data.atomic import replace_file
from distsgd.data.locations import expanded
from distsgd.errors import UsageError, storage_error
from distsgd.runs.checkpoint import Model
from distsgd.runs.chosen import LAST, chosen_model
from distsgd.runs.export.layers import ExportedModel, exported
from distsgd.runs.export.onnx_file import onnx_bytes
from distsgd.runs.export.sklearn_model import skops_bytes
from distsgd.runs.folder import RunFolder, find_run
from distsgd.runs.metrics import metrics_columns, metrics_table
from distsgd.spelling import spelling

__all__ = ["FORMATS", "Exported", "export_run"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written.

    Attributes:
        run_dir: the run.
        to: the format.
        path: the file.
        bytes: its size.
        updates: of the checkpoint whose weights are in it; None if it has metrics alone.
    """

    run_dir: str
    to: str
    path: str
    bytes: int
    updates: int | None


@dataclass(frozen=True)
class _Format:
    """A format: the end of its file names, its content, and whether it holds weights."""

    suffix: str
    content: Callable[[RunFolder, ExportedModel | None], bytes]
    weights: bool


def _csv(run: RunFolder, model: ExportedModel | None) -> bytes:
    columns = metrics_columns(run.path / "metrics.jsonl")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _arrow(run: RunFolder, model: ExportedModel | None) -> bytes:
    import pyarrow as pa

    config = run.read("config.json")
    about = {"run": run.path.name, "settings": json.dumps(config.get("settings", {}))}
    table = metrics_table(run.path / "metrics.jsonl").replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _npz(run: RunFolder, model: ExportedModel | None) -> bytes:
    assert model is not None
    arrays: dict[str, Any] = model.arrays()
    columns = metrics_columns(run.path / "metrics.jsonl")
    kinds = np.array(columns.pop("kind"))
    for kind in ("progress", "epoch"):
        rows = kinds == kind
        for name, values in columns.items():
            column = np.array([np.nan if value is None else value for value in values], np.float64)
            if rows.any() and not np.isnan(column[rows]).all():
                arrays[f"{kind}.{name}"] = column[rows]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _onnx(run: RunFolder, model: ExportedModel | None) -> bytes:
    assert model is not None
    return onnx_bytes(model)


def _sklearn(run: RunFolder, model: ExportedModel | None) -> bytes:
    assert model is not None
    return skops_bytes(model)


FORMATS: dict[str, _Format] = {
    "csv": _Format("csv", _csv, weights=False),
    "arrow": _Format("arrow", _arrow, weights=False),
    "npz": _Format("npz", _npz, weights=True),
    "onnx": _Format("onnx", _onnx, weights=True),
    "sklearn": _Format("skops", _sklearn, weights=True),
}
"""csv and arrow have the metrics, onnx and sklearn the model, npz both."""


def export_run(
    run: str | Path,
    to: str,
    out: str | Path | None = None,
    checkpoint: str | int = LAST,
    read: Callable[[RunFolder, str | int], Model] = chosen_model,
) -> Exported:
    """Write a run to a file for another program.

    Args:
        run: path or name of a run, or "latest".
        to: "csv" or "arrow" (metrics, one row a record), "npz" (weights, preprocessing and metrics
            as arrays), "onnx" or "sklearn" (a model that takes raw pixels).
        out: the file; None for the name of the run with the suffix of the format, in the working
            folder. An existing file is replaced.
        checkpoint: whose weights: "last", "best", or a number of updates.
        read: what finds it; `distsgd.training.past.model_after` recomputes one that is not kept.

    Raises:
        UsageError: the format or the checkpoint is unknown.
        RunError: there is no such run, or it is damaged.
        StorageError: the file cannot be written.
        DistsgdError: a package is not installed.
    """
    form = FORMATS.get(to)
    if form is None:
        raise UsageError(
            f"{spelling().setting('to')} cannot be {to}", f"Give one of {', '.join(FORMATS)}"
        )
    if not form.weights and checkpoint != LAST:
        raise UsageError(
            f"{to} has metrics and no weights, so that "
            f"{spelling().given('checkpoint', checkpoint)} means nothing",
            "Leave it out, or export to npz, onnx or sklearn",
        )
    folder = find_run(run)
    model = exported(read(folder, checkpoint)) if form.weights else None
    path = expanded(out) if out else Path(f"{folder.path.name}.{form.suffix}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", f"Give a file, as {path / f'run.{form.suffix}'}")
    content = form.content(folder, model)
    try:
        replace_file(path, content, shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
    return Exported(
        run_dir=str(folder.path), to=to, path=str(path.absolute()), bytes=len(content),
        updates=model.version if model else None,
    )  # fmt: skip
