"""Residuals on disk: a file beside a checkpoint, which names it by its SHA-256.

Residuals are as large as W for each worker, and needed only to resume, from the newest checkpoints:
so they have a file of their own, which is removed when there are newer ones. Written before its
checkpoint and named by its content, it never replaces one that a checkpoint still names.

A line of JSON (format, version, type, length, and [worker, serial, whether values follow] of each
worker), then the values, one worker after another, as little-endian floats.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.optim import Residual, Residuals
from distsgd.data.folder_files import names_inside, reader_inside, remove_inside, replace_inside
from distsgd.errors import RunError, machine_trouble, storage_error

__all__ = ["read_residuals", "remove_residuals", "write_residuals"]

_FORMAT = "distsgd residuals 1"
_LONGEST_LINE, _MOST_NUMBER, _MOST_SERIAL = 1 << 20, 1 << 16, 1 << 62
_MOST_VECTORS = 1024
"""Workers with a residual."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"residuals-\d{9,}-[0-9a-f]{16}\.bin", re.ASCII)


def _path(folder: Path, version: int, digest: str) -> Path:
    return folder / f"residuals-{version:09d}-{digest[:16]}.bin"


def write_residuals(
    folder: Path, version: int, residuals: Residuals, dtype: str, *, durable: bool = True
) -> str:
    """Write the residuals that belong to a version of W; returns the SHA-256 of the file.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    kind, rows = np.dtype(dtype).newbyteorder("<"), sorted(residuals.items())
    vectors = [row.values for _, row in rows if row.values is not None]
    head = {
        "format": _FORMAT,
        "version": version,
        "dtype": dtype,
        "parameters": vectors[0].size if vectors else 0,
        "workers": [[worker, row.serial, row.values is not None] for worker, row in rows],
    }
    parts = [np.ascontiguousarray(vector, kind).tobytes() for vector in vectors]
    content = b"".join([json.dumps(head).encode() + b"\n", *parts])
    digest = hashlib.sha256(content).hexdigest()
    path = _path(folder, version, digest)
    try:
        replace_inside(path, content, below=folder.parent, durable=durable)
    except OSError as error:
        raise storage_error(error, path) from None
    return digest


def read_residuals(
    folder: Path, version: int, digest: str, dtype: str, parameters: int
) -> dict[int, Residual]:
    """Read and check the residuals that a checkpoint names.

    Args:
        folder: that of the checkpoint.
        version: of W.
        digest: SHA-256 of the file, as the checkpoint has it.
        dtype: that of the run.
        parameters: length of flat W, padded.

    Raises:
        RunError: they are missing or damaged, or of another run.
        StorageError: the machine cannot read them.
    """
    path = _path(folder, version, digest)
    try:
        if not _DIGEST.fullmatch(digest):
            raise ValueError("its checkpoint has no digest of it")
        with reader_inside(path, below=folder.parent) as file:
            head = file.readline(_LONGEST_LINE)
            rows = _rows(json.loads(head), version, dtype, parameters)
            kind = np.dtype(dtype).newbyteorder("<")
            size = kind.itemsize * parameters * sum(has for _, _, has in rows)
            whole = os.fstat(file.fileno()).st_size == len(head) + size
            body = file.read(size + 1) if whole else b""
        if len(body) != size or hashlib.sha256(head + body).hexdigest() != digest:
            raise ValueError("its checksum does not match")
        values = np.frombuffer(body, kind).astype(dtype).reshape(-1, parameters)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
    except FileNotFoundError:
        raise RunError(f"{path} is missing", "It belongs to the checkpoint beside it") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise machine_trouble(error, path) or RunError(
            f"{path} is damaged: {reason}", "Remove it"
        ) from None
    return _with_values(rows, list(values))


def _rows(
    head: dict[str, Any], version: int, dtype: str, parameters: int
) -> list[tuple[int, int, bool]]:
    rows = [(worker, serial, has) for worker, serial, has in head["workers"]]
    some = any(has for _, _, has in rows)
    expected = [_FORMAT, version, dtype, parameters if some else 0]
    if [head["format"], head["version"], head["dtype"], head["parameters"]] != expected:
        raise ValueError("it belongs to another run")
    for worker, serial, has in rows:
        if not (type(worker) is type(serial) is int and type(has) is bool):
            raise ValueError("it has a worker that is not a number")
        if not (0 <= worker < _MOST_NUMBER and 0 <= serial < _MOST_SERIAL):
            raise ValueError(f"it has a worker {worker} with serial {serial}")
    if len({worker for worker, _, _ in rows}) < len(rows):
        raise ValueError("it has a worker twice")
    if sum(has for _, _, has in rows) > _MOST_VECTORS:
        raise ValueError("it has more workers than there can be")
    return rows


def _with_values(rows: list[tuple[int, int, bool]], values: list[Floats]) -> dict[int, Residual]:
    return {
        worker: Residual(serial, values.pop(0) if has else None) for worker, serial, has in rows
    }


def remove_residuals(folder: Path, keep: Collection[tuple[int, str]]) -> None:
    """Remove all residuals but those of these versions and digests.

    Raises:
        OSError: the folder cannot be listed.
    """
    kept = {_path(folder, version, digest).name for version, digest in keep}
    for name in names_inside(folder, below=folder.parent):
        if _NAME.fullmatch(name) and name not in kept:
            with suppress(OSError):
                remove_inside(folder / name, below=folder.parent)
