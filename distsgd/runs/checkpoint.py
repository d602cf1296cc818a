"""Checkpoints: W, the state of the optimiser and the preprocessing, in one .npz file.

A checkpoint is written beside its place, fsynced and renamed, so it is whole or absent. It is read
without pickle and checked against the SHA-256 of its arrays. Its `Place` says where in the run it
stands, so that training resumes from it without the journal before it.

A long run keeps the newest checkpoints, from which it resumes, and a series of older ones that
thins out, from which `landscape` draws the path of W; see `superfluous`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distsgd.config.settings import RESUMABLE_SETTINGS, TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.model import (
    ARITHMETICS,
    EXACT,
    LINEAR,
    LOSSES,
    Architecture,
    Preprocessing,
    make_architecture,
)
from distsgd.core.server import Ledger
from distsgd.data.columns import Columns
from distsgd.data.folder_files import names_inside, reader_inside, remove_inside, replace_inside
from distsgd.data.text_files import is_printable, parse_json
from distsgd.errors import RunError, in_short, machine_trouble, storage_error
from distsgd.on_ray.capacity import free_memory
from distsgd.runs.array_archive import ArrayArchive
from distsgd.runs.journal import Mark, Resumed

__all__ = [
    "Model", "Place", "checkpoint_path", "checkpoint_versions",
    "latest_checkpoint", "read_checkpoint", "read_description", "read_if_kept", "read_newest",
    "read_place",
    "remove_checkpoints", "resumed_settings", "shaped", "superfluous", "wanted", "weights_sha256",
    "write_checkpoint",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """The point in its run where a checkpoint stands.

    Attributes:
        mark: the place in the journal.
        ledger: which slots have been applied, as JSON; see `distsgd.core.server.position.Ledger`.
        settings: the values of `RESUMABLE_SETTINGS` there.
        usable: whether the checkpoint has everything older that later updates read.
        fleet: the most workers since the run started or resumed; None for those of ``settings``.
    """

    mark: Mark
    ledger: dict[str, Any]
    settings: dict[str, Any]
    usable: bool
    fleet: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Place:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: the content is malformed.
        """
        mark = Mark(**content["mark"])
        counts = [mark.offset, mark.lines, content.get("fleet") or 0]
        if any(type(n) is not int or not 0 <= n < _MOST for n in counts):
            raise ValueError("its place in the journal is invalid")
        if set(content["settings"]) != set(RESUMABLE_SETTINGS) or type(mark.digest) is not str:
            raise ValueError("its settings are not those that a resume may change")
        place = cls(**{**content, "mark": mark})
        Ledger.from_json(place.ledger)
        return place

    def config(self, origin: TrainConfig) -> TrainConfig:
        """The settings here, given those at the start of the run.

        Raises:
            UsageError: one cannot be used.
        """
        return replace(origin, **self.settings)


def resumed_settings(config: TrainConfig, entry: Resumed) -> TrainConfig:
    """The settings after a line of the journal that records a resume.

    Raises:
        UsageError: one cannot be used.
    """
    return replace(config, **{name: getattr(entry, name) for name in RESUMABLE_SETTINGS})


_FORMAT = "distsgd checkpoint 1"
_NAME = re.compile(r"step-(\d+)\.npz", re.ASCII)
_STATE, _READ = "state.", "read."
_LONGEST_META = 1 << 24
_MOST = 1 << 62
_SCALES = (1e-6, 1e30)
"""Bounds of what pixels are divided by; see the setting `pixel_scale`."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A classifier as a checkpoint holds it.

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
        place: where in its run it stands; None if unknown.
        model: "linear" or "mlp:HIDDEN".
        columns: how columns became features; None for pixels.
        residuals: SHA-256 of the file beside it with the residuals of the workers, if there is one;
            see `distsgd.runs.residual_file`.
        arithmetic: "float" or "exact".
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
    columns: Columns | None = None
    residuals: str | None = None
    arithmetic: str = ARITHMETICS[0]

    @property
    def architecture(self) -> Architecture:
        """The model without its parameters."""
        features = self.preprocessing.features
        return make_architecture(self.model, features, len(self.classes), self.arithmetic)

    def padded(self) -> Floats:
        """The parameters as the core computes with them: flat and padded."""
        return self.architecture.pad(self.weights)


def weights_sha256(weights: Floats) -> str:
    """SHA-256 of W as C-order little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").tobytes()).hexdigest()


def write_checkpoint(folder: Path, model: Model, *, durable: bool = True) -> Path:
    """Write a checkpoint, named by its version.

    Args:
        folder: that of the checkpoints, in the folder of the run.
        model: what it holds.
        durable: see `distsgd.data.folder_files.replace_inside`.

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
    if model.arithmetic == EXACT:
        meta["arithmetic"] = EXACT
    buffer = io.BytesIO()
    everything: dict[str, Any] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    np.savez(buffer, **everything, **arrays)
    path = checkpoint_path(folder, model.version)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # it may have been removed
        replace_inside(path, buffer.getvalue(), below=folder.parent, durable=durable)
    except OSError as error:
        raise storage_error(error, path) from None
    return path


def read_checkpoint(path: Path, model: str | None = None) -> Model:
    """Read and check a checkpoint.

    Args:
        path: its file.
        model: the expected model; None for any.

    Raises:
        RunError: it is missing or damaged, or of another model.
        StorageError: the machine cannot read it.
    """
    found = _read(path)
    if model is not None and found.model != model:
        raise RunError(
            f"the checkpoint {path} is of {found.model}, and its run of {model}",
            "Remove it: it belongs to another run",
        )
    return found


def read_if_kept(path: Path, model: str | None = None) -> Model | None:
    """Like `read_checkpoint`, but None for a missing one: a training removes old checkpoints.

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


def read_place(path: Path) -> Place | None:
    """The place of a checkpoint, without reading its arrays; None if unknown.

    Raises:
        RunError: it is missing or damaged.
        StorageError: the machine keeps it from being read.
    """
    return _parsed(path, lambda archive: _place(_meta(archive, path)))


def read_description(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the classes and the shape of an example, without reading the arrays.

    Raises:
        RunError, StorageError: as `read_place`.
    """

    def parse(archive: ArrayArchive) -> tuple[tuple[str, ...], tuple[int, ...]]:
        meta = _meta(archive, path)
        classes, shape = meta["classes"], meta["shape"]
        if not all(type(name) is str and is_printable(name) for name in classes):
            raise ValueError("its classes have no names that can be shown")
        return tuple(classes), tuple(map(int, shape))

    return _parsed(path, parse)


def _read(path: Path) -> Model:
    return _parsed(path, lambda archive: _checked_model(archive, path))


def _parsed(path: Path, parse: Callable[[ArrayArchive], T]) -> T:
    """Parse a checkpoint file; everything wrong with it becomes one kind of error."""
    try:
        with reader_inside(path, below=path.parent.parent) as file:
            archive = ArrayArchive(file)
            needed, free = os.fstat(file.fileno()).st_size, free_memory()
            if free is not None and needed > free:
                raise MemoryError
            return parse(archive)
    except FileNotFoundError:
        raise RunError(f"there is no checkpoint {path}", "Train again") from None
    except Exception as error:  # a damaged zip archive can raise almost anything
        raise machine_trouble(error, path) or RunError(
            f"the checkpoint {path} is damaged: {in_short(error)}",
            "Remove it to resume from an older one",
        ) from None


def _meta(archive: ArrayArchive, path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint."""
    if archive.dtype("meta") != np.uint8 or math.prod(archive.shape("meta")) > _LONGEST_META:
        raise ValueError("its metadata is not text")
    meta = parse_json(archive["meta"].tobytes())
    if type(meta) is not dict or meta["format"] != _FORMAT:
        raise ValueError("it is of another format")
    if path.name != checkpoint_path(path.parent, meta["version"]).name:
        raise ValueError(f"it is that of version {meta['version']}")
    return meta


def _place(meta: dict[str, Any]) -> Place | None:
    return None if meta["place"] is None else Place.from_json(meta["place"])


def _checked_model(archive: ArrayArchive, path: Path) -> Model:
    """The model; shapes are checked before any array is read."""
    meta = _meta(archive, path)
    classes, shape, scale = meta["classes"], meta["shape"], meta["scale"]
    sizes = [meta["version"], len(classes), *shape]
    if any(type(size) is not int or not 0 <= size < _MOST for size in sizes):
        raise ValueError("its classes or shape are invalid")
    if type(scale) is not float or not _SCALES[0] <= scale <= _SCALES[1]:
        raise ValueError(f"its pixel scale {scale} is out of range")
    if not all(type(name) is str and is_printable(name) for name in classes):
        raise ValueError("its classes have no names that can be shown")
    if meta["loss"] not in LOSSES:
        raise ValueError(f"its loss is {str(meta['loss'])[:20]}")
    if meta.get("arithmetic", EXACT) not in ARITHMETICS:
        raise ValueError(f"its arithmetic is {str(meta['arithmetic'])[:20]}")
    features = math.prod(shape)
    kept = make_architecture(meta["model"], features, len(classes)).kept_shape
    for name in archive:
        if name != "meta" and archive.dtype(name) not in (np.float32, np.float64):
            raise ValueError(f"it has an array of {archive.dtype(name)}")
        expected = (features,) if name == "mean" else kept
        if name != "meta" and archive.shape(name) != expected:
            raise ValueError(f"it has an array of shape {archive.shape(name)} in {meta['model']}")
    arrays = {name: archive[name] for name in archive if name != "meta"}
    if meta["sha256"] != _digest(arrays):
        raise ValueError("its checksum does not match")
    if not (np.isfinite(arrays["weights"]).all() and np.isfinite(arrays["mean"]).all()):
        raise ValueError("it has entries that are not finite")
    reads, residuals = _named(arrays, _READ).items(), meta.get("residuals")
    columns = meta["columns"]
    return Model(
        weights=arrays["weights"],
        state=_named(arrays, _STATE),
        version=meta["version"],
        loss=meta["loss"],
        classes=tuple(classes),
        shape=tuple(shape),
        preprocessing=Preprocessing(arrays["mean"], scale),
        reads={int(version): array for version, array in reads},
        place=_place(meta),
        model=meta["model"],
        columns=None if columns is None else Columns.from_json(columns),
        residuals=None if residuals is None else str(residuals),
        arithmetic=meta.get("arithmetic", ARITHMETICS[0]),
    )


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays whose names start with a prefix, by their names without it."""
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
    """The versions of the checkpoints in a folder, oldest first.

    Raises:
        RunError: the folder cannot be read.
        StorageError: it is a link.
    """
    try:
        names = names_inside(folder, below=folder.parent)
    except OSError as error:
        raise machine_trouble(error, folder) or RunError(
            f"{folder} cannot be read: {error.strerror}", "It must be a folder of checkpoints"
        ) from None
    found = map(_NAME.fullmatch, names)
    return sorted(int(match[1]) for match in found if match)


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
    """Remove the checkpoints of some versions, if they exist."""
    for version in versions:
        remove_inside(checkpoint_path(folder, version), below=folder.parent)


def shaped(flat: dict[Any, Floats], model: Architecture) -> dict[Any, Floats]:
    """Flat padded arrays as a checkpoint holds them, each shaped like W."""
    return {name: model.unpad(array) for name, array in flat.items()}


_NEWEST = 8
"""How many of the newest checkpoints stay, within the limit."""


def wanted(epoch: int, keep: int) -> bool:
    """Whether the checkpoint of an epoch that has just ended belongs to the series.

    The series of a later epoch is a subset of the epochs for which this was true.

    Args:
        epoch: which, from 1.
        keep: how many checkpoints stay; 0 for all.
    """
    return not keep or _in_series(epoch, epoch - min(keep, _NEWEST), keep)


def superfluous(versions: Sequence[int], epochs: int, version: int, keep: int) -> set[int]:
    """The versions of the checkpoints that need not stay.

    The newest stay, 8 or ``keep``, whatever is less. Of the others those of every epoch stay, or
    of every 2nd, 4th, 8th, ..., with epochs 1, 2, 4, 8, ..., so that all are at most ``keep``. A
    checkpoint within an epoch counts as one of the nearest end of an epoch.

    Args:
        versions: of W that there are checkpoints of, ascending.
        epochs: that have ended, at least 1.
        version: of W at the end of the last of them.
        keep: how many stay; 0 for all.
    """
    if not keep:
        return set()
    newest = min(keep, _NEWEST)
    updates = max(1, version) / epochs  # of an epoch; with some policies that is a mean
    return {
        older
        for older in versions[:-newest]
        if not _in_series(round(older / updates), epochs - newest, keep)
    }


def _in_series(epoch: int, epochs: int, keep: int) -> bool:
    """Whether an epoch is in the series of the first ``epochs``, which has room beside the newest.

    Powers of two take half of the room at most; if they need more, there are none.
    """
    room, epochs = keep - min(keep, _NEWEST), max(0, epochs)
    for powers in (True, False):
        most = room // 2 if powers else epochs.bit_length()
        for doublings in range(most + 1):
            # From 1 on, as many powers of two as doublings are no multiples of the stride.
            if (epochs >> doublings) + (doublings if powers else 0) <= room:
                return epoch % (1 << doublings) == 0 or (powers and epoch & (epoch - 1) == 0)
    return False
