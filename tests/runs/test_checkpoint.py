"""Checkpoints are whole or absent, and altered ones are found out."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.model import Preprocessing
from distsgd.errors import RunError, StorageError
from distsgd.runs.checkpoint import (
    Model,
    latest_checkpoint,
    read_checkpoint,
    weights_sha256,
    write_checkpoint,
)


def a_model(version: int = 3) -> Model:
    rng = np.random.default_rng(version)
    weights = rng.standard_normal((3, 13)).astype(np.float32)
    return Model(
        weights=weights, state={"velocity": weights * 2}, version=version, loss="svm",
        classes=("a", "b", "c"), shape=(3, 2, 2),
        preprocessing=Preprocessing(rng.standard_normal(12), 64.0),
    )  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = a_model()
    found = read_checkpoint(write_checkpoint(tmp_path, model))
    assert np.array_equal(found.weights, model.weights)
    assert np.array_equal(found.state["velocity"], model.state["velocity"])
    assert np.array_equal(found.preprocessing.mean, model.preprocessing.mean)
    assert (found.version, found.loss, found.classes, found.shape) == (
        3, "svm", ("a", "b", "c"), (3, 2, 2),
    )  # fmt: skip
    assert found.preprocessing.scale == 64.0


def two_layers(**changes: object) -> Model:
    weights = np.arange(5 * 13 + 3 * 6, dtype=np.float32)
    model = replace(a_model(), model="mlp:5", weights=weights, state={"velocity": weights})
    return replace(model, **changes)  # type: ignore[arg-type]


def test_the_model_is_part_of_it(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, two_layers())
    found = read_checkpoint(path, "mlp:5")
    assert found.model == "mlp:5"
    assert np.array_equal(found.weights, two_layers().weights)
    with pytest.raises(RunError, match=r"is of mlp:5, and its run of linear"):
        read_checkpoint(path, "linear")


@pytest.mark.parametrize(
    "changes",
    [{"model": "mlp:6"}, {"model": "linear"}, {"model": "mlp:0"}, {"weights": np.zeros((83, 1))},
     {"state": {"velocity": np.zeros(84)}}, {"reads": {2: np.zeros((3, 13))}}],
)  # fmt: skip
def test_arrays_that_do_not_fit_the_model_are_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="damaged"):
        read_checkpoint(write_checkpoint(tmp_path, two_layers(**changes)))


def test_the_newest_is_found_and_files_are_private(tmp_path: Path) -> None:
    for version in (2, 100, 30):
        path = write_checkpoint(tmp_path, a_model(version))
        assert path.stat().st_mode & 0o777 == 0o600
    assert read_checkpoint(latest_checkpoint(tmp_path)).version == 100
    assert len(list(tmp_path.iterdir())) == 3


def test_altered_files_are_refused(tmp_path: Path) -> None:
    """Any flipped bit that matters; one in the padding of the zip changes nothing."""
    whole = write_checkpoint(tmp_path, a_model()).read_bytes()
    path = tmp_path / "step-000000003.npz"
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
        try:
            found = read_checkpoint(path)
        except RunError:
            refused += 1
        else:
            assert weights_sha256(found.weights) == weights_sha256(a_model().weights)
    assert refused > 200


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "step-000000001.npz"
    np.savez(path, meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunError, match="damaged"):
        read_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path, a_model())
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_checkpoint(tmp_path, a_model())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
    with pytest.raises(RunError, match="no checkpoint"):
        read_checkpoint(tmp_path / "step-000000001.npz")
