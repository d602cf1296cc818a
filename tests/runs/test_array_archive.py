"""Checkpoints made by hand: each size is compared with the file before anything is allocated."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.model import Preprocessing
from distsgd.errors import RunError
from distsgd.runs.checkpoint import Model, read_checkpoint, read_place, write_checkpoint

Arrays = dict[str, Any]
_HEADER = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 13), }}"


def a_checkpoint(folder: Path, change: Callable[[Arrays, dict[str, Any]], object]) -> Path:
    """One that somebody has changed, with a checksum of its own that holds."""
    rows = np.ones((3, 13), np.float32)
    model = Model(
        weights=rows, state={}, version=4, loss="svm", classes=("a", "b", "c"), shape=(3, 2, 2),
        preprocessing=Preprocessing(np.zeros(12), 64.0),
    )  # fmt: skip
    path = write_checkpoint(folder, model)
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    change(arrays, meta)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    meta["sha256"] = digest.hexdigest()
    content = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, meta=content, **arrays)
    return path


def test_one_that_nobody_has_changed_is_read(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, lambda arrays, meta: None)
    assert read_checkpoint(path).weights.sum() == 39
    assert read_place(path) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a, m: a.update(weights=a["weights"] * 1j), "array of complex"),
        (lambda a, m: a.update(weights=a["weights"].astype("S9")), "array of"),
        (lambda a, m: a.update(weights=a["weights"].astype(object)), "is of object"),
        (lambda a, m: a.update(weights=a["weights"].astype(int)), "array of int64"),
        (lambda a, m: a.update(weights=a["weights"] * np.nan), "that are not finite"),
        (lambda a, m: a.update(mean=a["mean"] + np.inf), "that are not finite"),
        (lambda a, m: a.update(weights=a["weights"][:2]), r"shape \(2, 13\)"),
        (lambda a, m: a.update(weights=np.float32(1)), r"shape \(\)"),
        (lambda a, m: a.update(mean=a["mean"][:3]), r"shape \(3,\)"),
        (lambda a, m: a.update({"state.velocity": a["mean"]}), r"shape \(12,\)"),
        (lambda a, m: m.update(scale=0), "its pixel scale 0 is out of range"),
        (lambda a, m: m.update(scale=float("nan")), "its pixel scale nan is out of range"),
        (lambda a, m: m.update(scale=-1e400), "its pixel scale -inf is out of range"),
        (lambda a, m: m.update(shape=[3, -2, -2]), "classes or shape"),
        (lambda a, m: m.update(shape=[10**30]), "classes or shape"),
        (lambda a, m: m.update(shape=[10**15]), "shape"),
        (lambda a, m: m.update(shape="abc"), "classes or shape"),
        (lambda a, m: m.update(classes=["a", "b", "\x1b[31m"]), "names"),
        (lambda a, m: m.update(classes=["a"] * 10**6), "array of shape"),
        (lambda a, m: m.update(classes=[1, 2, 3]), "names"),
        (lambda a, m: m.update(model="mlp:10000"), "mlp:10000"),
        (lambda a, m: m.update(model="mlp:" + "9" * 99), ""),
        (lambda a, m: m.update(loss="hinge"), "its loss"),
        (lambda a, m: m.update(version="4"), ""),
        (lambda a, m: m.update(place=[]), ""),
        (lambda a, m: m.update(place={"mark": {"digest": "", "offset": -1}}), ""),
        (lambda a, m: m.update(columns={"low": [0], "high": [1, 2], "names": []}), ""),
    ],
)
def test_what_a_checkpoint_cannot_be(
    change: Callable[[Arrays, dict[str, Any]], object], why: str, tmp_path: Path
) -> None:
    path = a_checkpoint(tmp_path, change)
    if why:
        with pytest.raises(RunError, match=rf"is damaged: .*{why}") as caught:
            read_checkpoint(path)
        assert "Train" not in str(caught.value)
    else:
        with pytest.raises(RunError, match=r"damaged|no checkpoint"):
            read_checkpoint(path)


def an_archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + content


def array(content: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, content)
    return buffer.getvalue()


def ending(content: bytes, length: int) -> bytes:
    """An archive that claims another length of its list of arrays."""
    at = content.rindex(b"PK\5\6") + 12
    return content[:at] + struct.pack("<I", length) + content[at + 4 :]


META = array(np.frombuffer(b'{"format": "distsgd checkpoint 1"}', np.uint8))


@pytest.mark.parametrize(
    ("members", "kind", "why"),
    [
        ({"w.npy": npy(_HEADER.format(10**15))}, zipfile.ZIP_STORED, "is not of 0 bytes"),
        ({"w.npy": npy(_HEADER.format(-1), b"1234")}, zipfile.ZIP_STORED, "has the shape"),
        ({"w.npy": npy(_HEADER.format("10**9"))}, zipfile.ZIP_STORED, "malformed"),
        ({"meta.npy": bytes(10**7)}, zipfile.ZIP_DEFLATED, "is compressed"),
        ({"meta.npy": META + bytes(10**7)}, zipfile.ZIP_BZIP2, "is compressed"),
        ({"meta.txt": META}, zipfile.ZIP_STORED, "as no array"),
        ({}, zipfile.ZIP_STORED, ""),
    ],
)
def test_an_archive_that_claims_more_than_it_has(
    members: dict[str, bytes], kind: int, why: str, tmp_path: Path
) -> None:
    path = an_archive(tmp_path / "step-000000004.npz", members, kind)
    with pytest.raises(RunError, match=rf"is damaged: .*{why}"):
        read_checkpoint(path)


def test_a_list_of_arrays_that_claims_gigabytes(tmp_path: Path) -> None:
    path = an_archive(tmp_path / "step-000000004.npz", {"meta.npy": META})
    path.write_bytes(ending(path.read_bytes(), 0xFFFFFFF0))
    with pytest.raises(RunError, match="list of arrays is not where"):
        read_checkpoint(path)


def test_a_file_with_nothing_in_it_but_its_size(tmp_path: Path) -> None:
    """Holes take no room on the disk, and would fill the memory."""
    path = tmp_path / "step-000000004.npz"
    with path.open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(RunError, match="it has no end"):
        read_checkpoint(path)
