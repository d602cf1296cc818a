"""The file of residuals: whole, of its checkpoint, of finite values, or refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.messages import INCARNATION
from distsgd.core.optim import Residual, Residuals
from distsgd.errors import RunError, StorageError
from distsgd.runs.residual_file import read_residuals, remove_residuals, write_residuals

VECTOR = np.array([1.5, -0.0, 1e-40, -7.0], dtype=np.float32)
RESIDUALS = {
    0: Residual(7, VECTOR),
    3: Residual(INCARNATION + 2, 2 * VECTOR),
    5: Residual(INCARNATION, None),
}


def written(folder: Path, residuals: Residuals = RESIDUALS, dtype: str = "float32") -> str:
    return write_residuals(folder, 12, residuals, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_written_is_read(dtype: str, tmp_path: Path) -> None:
    vectors = {
        worker: residual._replace(
            values=None if residual.values is None else residual.values.astype(dtype)
        )
        for worker, residual in RESIDUALS.items()
    }
    found = read_residuals(tmp_path, 12, written(tmp_path, vectors, dtype), dtype, 4)
    assert [(worker, row.serial) for worker, row in found.items()] == [
        (0, 7), (3, INCARNATION + 2), (5, INCARNATION),
    ]  # fmt: skip
    for worker, (_, values) in found.items():
        wanted = vectors[worker].values
        assert (values is None and wanted is None) or values.tobytes() == wanted.tobytes()  # type: ignore[union-attr]


def test_only_residuals_of_fleets_without_values(tmp_path: Path) -> None:
    alone = {2: Residual(INCARNATION, None)}
    assert read_residuals(tmp_path, 12, written(tmp_path, alone), "float32", 4) == alone


Change = Callable[[bytes], bytes]
DAMAGES: dict[str, Change] = {
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "empty": lambda content: b"",
    "no JSON": lambda content: b"\xff" + content,
    "deep": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    digest = written(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(RunError, match=r"residuals-000000012-\w+\.bin is damaged: [^\n]+$"):
        read_residuals(tmp_path, 12, digest, "float32", 4)


HOSTILE: dict[str, dict[str, Any]] = {
    "another version": {"version": 13},
    "another format": {"format": "distsgd residuals 2"},
    "another type": {"dtype": "float64"},
    "another model": {"parameters": 2},
    "more than there is": {"workers": [[n, 1, True] for n in range(9)]},
    "a negative worker": {"workers": [[-1, 1, True], [1, 1, True]]},
    "too many workers": {"workers": [[n, 1, True] for n in range(1025)]},
    "a worker twice": {"workers": [[1, 1, True], [1, 1, True]]},
    "a huge serial": {"workers": [[0, 10**30, True], [1, 1, True]]},
    "a broken serial": {"workers": [[0, 0.5, True], [1, 1, True]]},
    "a number for a flag": {"workers": [[0, 1, 2]]},
    "no workers": {"workers": None},
    "no list": {"workers": 7},
}


@pytest.mark.parametrize("case", [*HOSTILE, "not a number", "infinite"])
def test_nonsense_with_the_right_checksum_is_refused(case: str, tmp_path: Path) -> None:
    values = VECTOR.copy()
    values[2] = {"not a number": np.nan, "infinite": -np.inf}.get(case, 0)
    head = {
        "format": "distsgd residuals 1", "version": 12, "dtype": "float32", "parameters": 4,
        "workers": [[0, 1, True], [1, 1, True]], **HOSTILE.get(case, {}),
    }  # fmt: skip
    digest = written(tmp_path)
    (path,) = tmp_path.iterdir()
    content = json.dumps(head).encode() + b"\n" + 2 * values.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    path.rename(tmp_path / f"residuals-000000012-{digest[:16]}.bin")
    (tmp_path / f"residuals-000000012-{digest[:16]}.bin").write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged: [^\n]+$"):
        read_residuals(tmp_path, 12, digest, "float32", 4)


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_only_a_plain_file_is_read(kind: str, tmp_path: Path) -> None:
    digest = written(tmp_path)
    (path,) = tmp_path.iterdir()
    if kind == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        os.mkfifo(path) if kind == "a pipe" else path.mkdir()
    with pytest.raises((RunError, StorageError), match=r"residuals-000000012-\w+\.bin[^\n]*$"):
        read_residuals(tmp_path, 12, digest, "float32", 4)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64])
def test_a_digest_that_names_no_file_is_refused(digest: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is missing|is damaged"):
        read_residuals(tmp_path, 12, digest, "float32", 4)


def test_all_are_removed_but_those_that_are_kept(tmp_path: Path) -> None:
    first, second = written(tmp_path), written(tmp_path, {0: Residual(1, VECTOR)})
    other = tmp_path / "residuals-of-mine.bin"
    other.write_bytes(b"")
    remove_residuals(tmp_path, [(12, second)])
    assert read_residuals(tmp_path, 12, second, "float32", 4)
    with pytest.raises(RunError, match="is missing"):
        read_residuals(tmp_path, 12, first, "float32", 4)
    assert other.exists()
