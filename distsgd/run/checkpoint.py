"""Checkpoints: W, the state of the optimiser and the recipe of features, in one .npz file.

Written beside, fsynced, renamed: a checkpoint is either whole or absent. Read without pickle,
and checked against the SHA-256 of its arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.architecture import Architecture
from distsgd.core.arrays import Floats
from distsgd.core.features import Preprocessing
from distsgd.core.models import LINEAR, make_architecture
from distsgd.data.atomic import replace_file
from distsgd.data.column_scale import ColumnScale
from distsgd.errors import RunError, machine_trouble, storage_error
from distsgd.run.place import Place

__all__ = [
    "Model",
    "checkpoint_path",
    "checkpoint_versions",
    "latest_checkpoint",
    "read_checkpoint",
    "read_if_kept",
    "read_newest",
    "remove_checkpoints",
    "shaped",
    "weights_sha256",
    "write_checkpoint",
]

_FORMAT = "distsgd checkpoint 1"
_STATE, _READ = "state.", "read."


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A classifier as it is kept in a checkpoint.

    Attributes:
        weights: W, shape (classes, features + 1), whose last column is the bias. Of more layers,
            one vector: W1 row by row, then W2.
        state: state of the optimiser, arrays of the same shape by name.
        version: updates applied to W.
        loss: "softmax" or "svm".
        classes: names of the classes.
        shape: shape of an example, (channels, rows, columns).
        preprocessing: from pixels to features.
        reads: older version -> W, of the same shape, where a later update reads it.
        place: where in its run it stands; None if that is not known.
        model: "linear" or "mlp:HIDDEN".
        columns: how numbers became pixels; None if they were pixels already.
        residuals: SHA-256 of the file beside it with the residuals of the workers, if there is one;
            see `distsgd.run.residual_file`.
    """

    weights: Floats
    state: dict[str, Floats]
    version: int
    loss: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    preprocessing: Preprocessing
    reads: dict[int, Floats] = field(default_factory=dict)
    place: Place | None = None
    model: str = LINEAR
    columns: ColumnScale | None = None
    residuals: str | None = None

    @property
    def architecture(self) -> Architecture:
        """The model without its parameters."""
        return make_architecture(self.model, self.preprocessing.features, len(self.classes))

    def padded(self) -> Floats:
        """The parameters as the core computes with them: flat and padded."""
        return self.architecture.pad(self.weights)


def weights_sha256(weights: Floats) -> str:
    """SHA-256 of W as it is kept, as C-order little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").tobytes()).hexdigest()


def write_checkpoint(folder: Path, model: Model) -> Path:
    """Write a checkpoint, named by its version.

    Raises:
        StorageError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    arrays: dict[str, Any] = {"weights": model.weights, "mean": model.preprocessing.mean}
    arrays.update({f"{_STATE}{name}": array for name, array in model.state.items()})
    arrays.update({f"{_READ}{version}": array for version, array in model.reads.items()})
    meta = {
        "format": _FORMAT,
        "version": model.version,
        "model": model.model,
        "loss": model.loss,
        "classes": model.classes,
        "shape": model.shape,
        "scale": model.preprocessing.scale,
        "sha256": _digest(arrays),
        "place": model.place.to_json() if model.place else None,
        "columns": model.columns.to_json() if model.columns else None,
        "residuals": model.residuals,
    }
    buffer = io.BytesIO()
    everything: dict[str, Any] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    np.savez(buffer, **everything, **arrays)
    path = checkpoint_path(folder, model.version)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it
        replace_file(path, buffer.getvalue())
    except OSError as error:
        raise storage_error(error, path) from None
    return path


def read_checkpoint(path: Path, model: str | None = None) -> Model:
    """Read and check a checkpoint.

    Args:
        path: its file.
        model: the model that it must be of; None for any.

    Raises:
        RunError: it is missing or damaged, or of another model.
        StorageError: the machine keeps it from being read.
    """
    found = _read(path)
    if model is not None and found.model != model:
        raise RunError(
            f"the checkpoint {path} is of {found.model}, and its run of {model}",
            "Remove it: it belongs to another run",
        )
    return found


def read_if_kept(path: Path, model: str | None = None) -> Model | None:
    """The same; None if it is missing, as a training removes those that it need not keep.

    Raises:
        RunError: it is damaged, or of another model.
    """
    try:
        return read_checkpoint(path, model)
    except RunError:
        if path.exists():
            raise
        return None


def read_newest(folder: Path, model: str | None = None) -> Model:
    """The newest checkpoint of a run, which may be training.

    Raises:
        RunError: there is none; or it is damaged, or of another model.
    """
    while True:
        path = latest_checkpoint(folder)
        if (found := read_if_kept(path, model)) is not None:
            return found
        if latest_checkpoint(folder) == path:
            return read_checkpoint(path, model)


def _read(path: Path) -> Model:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != _FORMAT or meta["sha256"] != _digest(arrays):
            raise ValueError("its checksum does not match")
        if path.name != checkpoint_path(path.parent, meta["version"]).name:
            raise ValueError(f"it is that of version {meta['version']}")
        return _model(meta, arrays)
    except FileNotFoundError:
        raise RunError(f"there is no checkpoint {path}", "Train again") from None
    except Exception as error:  # a damaged zip archive can raise almost anything
        raise machine_trouble(error, path) or RunError(
            f"the checkpoint {path} is damaged: {error}", "Remove it to go on from an older one"
        ) from None


def _model(meta: dict[str, Any], arrays: dict[str, Any]) -> Model:
    reads, residuals = _named(arrays, _READ).items(), meta.get("residuals")
    place, columns = meta["place"], meta["columns"]
    found = Model(
        weights=arrays["weights"],
        state=_named(arrays, _STATE),
        version=int(meta["version"]),
        loss=str(meta["loss"]),
        classes=tuple(meta["classes"]),
        shape=tuple(meta["shape"]),
        preprocessing=Preprocessing(arrays["mean"], float(meta["scale"])),
        reads={int(version): array for version, array in reads},
        place=Place.from_json(place) if place else None,
        model=str(meta["model"]),
        columns=ColumnScale.from_json(columns) if columns else None,
        residuals=None if residuals is None else str(residuals),
    )
    shape = found.architecture.kept_shape
    for array in (found.weights, *found.state.values(), *found.reads.values()):
        if array.shape != shape:
            raise ValueError(f"it has an array of shape {array.shape} in {found.model}")
    return found


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays whose names begin so, without the beginning."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checkpoint_path(folder: Path, version: int) -> Path:
    """The file of the checkpoint of a version."""
    return folder / f"step-{version:09d}.npz"


def checkpoint_versions(folder: Path) -> list[int]:
    """The versions that there are checkpoints of, oldest first."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.npz"))
    return sorted(int(name) for name in names if name.isdigit())


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        RunError: there is none.
    """
    found = checkpoint_versions(folder)
    if not found:
        raise RunError(f"there is no checkpoint in {folder}", "Train again")
    return checkpoint_path(folder, found[-1])


def remove_checkpoints(folder: Path, versions: Iterable[int]) -> None:
    """Remove the checkpoints of these versions, those that are there."""
    for version in versions:
        checkpoint_path(folder, version).unlink(missing_ok=True)


def shaped(flat: dict[Any, Floats], model: Architecture) -> dict[Any, Floats]:
    """Flat padded arrays as they are kept, each shaped like W."""
    return {name: model.unpad(array) for name, array in flat.items()}
