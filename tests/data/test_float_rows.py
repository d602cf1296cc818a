"""Rows of float32 features and weights: what is written is what is read, mapped or gathered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.arrays import Values
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.data.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from distsgd.data.row_cache import choose_cache, open_rows
from distsgd.data.shards import write_dataset
from distsgd.data.standardising import standardised_array
from distsgd.errors import DatasetError

ROWS = 120
NUMBERS = np.random.default_rng(0).normal(5.0, 3.0, (ROWS, 4))
LABELS = (np.arange(ROWS) % 3).astype(np.uint8)
WEIGHTS = np.linspace(0.5, 1.5, ROWS)
COLUMNS = standardised_array(NUMBERS, names=("a", "b", "c", "d"))
FEATURES: Values = COLUMNS.rows(NUMBERS)


def written(folder: Path, weighted: bool = True) -> Manifest:
    folder.mkdir()
    return write_dataset(
        folder, name="floats", shape=(4,), classes=("x", "y", "z"), train=(FEATURES, LABELS),
        test=(FEATURES[:9], LABELS[:9]), shards=3, columns=COLUMNS,
        weights=WEIGHTS if weighted else None,
    )  # fmt: skip


def test_floats_are_read_as_they_were_written(tmp_path: Path) -> None:
    manifest = written(tmp_path / "d")
    assert read_manifest(tmp_path / "d") == manifest
    assert (manifest.values, manifest.pixel_sums, manifest.channel_means) == ("float32", (), [])
    assert manifest.mean_weight == pytest.approx(1.0)
    dataset = Dataset(tmp_path / "d")
    train = dataset.train
    assert (train.dtype, dataset.test.weights) == (np.float32, None)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in train.batches()]), FEATURES)
    np.testing.assert_array_equal(train.weights, WEIGHTS.astype(np.float32))
    chosen = np.array([119, 0, 41, 40, 7])
    out = np.empty((5, 4), train.dtype)
    for split in (train, train.in_memory()):
        split.gather(chosen, out)
        np.testing.assert_array_equal(out, FEATURES[chosen])
    np.testing.assert_array_equal(train.weights_of(chosen), WEIGHTS[chosen].astype(np.float32))
    preprocessing = dataset.preprocessing(64.0)
    assert (preprocessing.scale, *preprocessing.mean) == (1.0, 0, 0, 0, 0)


@pytest.mark.parametrize("cache", ["float32", "uint8", "shards"])
def test_raw_rows_of_floats_are_the_features(tmp_path: Path, cache: str) -> None:
    written(tmp_path / "d", weighted=False)
    dataset = Dataset(tmp_path / "d")
    assert dataset.train.weights is None
    preprocessing = dataset.preprocessing(64.0)
    rows = open_rows(dataset.train, preprocessing, cache, 6)
    chosen = np.array([[3, 119, 60], [5, 5, 0]])
    rows.gather(chosen)
    out = preprocessing.raw_buffer(6, "float32").reshape(2, 3, -1)
    rows.write(0, out)
    np.testing.assert_array_equal(out[:, :, :4], FEATURES[chosen])
    assert (out[:, :, 4] == 1).all()


def test_floats_take_four_times_the_budget(tmp_path: Path) -> None:
    written(tmp_path / "d")
    preprocessing = Dataset(tmp_path / "d").preprocessing(1.0)
    most = 2**20 // 4  # examples of 4 bytes in one MiB
    assert choose_cache("auto", 1, preprocessing, most, "float32") == "uint8"
    assert choose_cache("auto", 1, preprocessing, most, "float32", "float32") == "shards"
    assert choose_cache("auto", 4, preprocessing, most, "float32", "float32") == "uint8"


@pytest.mark.parametrize(
    "change",
    [{"values": "uint8"}, {"scale": None}, {"mean_weight": 0}, {"format": "distsgd dataset 1"}],
)
def test_a_manifest_of_floats_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    from distsgd.data.manifest import _digest

    written(tmp_path / "d")
    content = {**json.loads((tmp_path / "d" / MANIFEST).read_text()), **change}
    content = {key: value for key, value in content.items() if value is not None}
    content.pop("digest")
    content["digest"] = _digest(content)
    with pytest.raises(DatasetError, match="is not a valid manifest"):
        parse_manifest(json.dumps(content).encode(), "m", "")


def test_one_outlier_does_not_squash_its_column() -> None:
    values = np.random.default_rng(1).normal(10, 2, (500, 2))
    clean = standardised_array(values)
    values[17, 0] = 1e6
    found = standardised_array(values)
    assert found.spread[0] == pytest.approx(clean.spread[0], rel=0.2)
    assert found.rows(values)[17, 0] < 12
    np.testing.assert_array_equal(found.rows(values)[:, 1], clean.rows(values)[:, 1])


def test_a_constant_column_is_0_for_any_number() -> None:
    found = standardised_array(np.full((50, 1), 1e9))
    assert not found.rows(np.array([[1e9], [0.0], [2e9]])).any()


def test_words_become_features_of_their_own_and_unknown_ones_none() -> None:
    for columns, one in (
        (Columns(names=("n", "w"), low=(0, 0), high=(4, 0), mean=(2, 0), spread=(2, 1),
                 words=((), ("blue", "red")), fill=(2, -1)), 1),
        (Columns(names=("n", "w"), low=(0, 0), high=(4, 0), words=((), ("blue", "red")),
                 fill=(0, -1)), 255),
    ):  # fmt: skip
        assert columns.feature_names == ("n", "w=blue", "w=red")
        assert Columns.from_json(json.loads(json.dumps(columns.to_json()))) == columns
        codes = columns.codes(1, ["red", "green", "blue"])
        rows = columns.rows(np.stack([np.array([4.0, 0.0, np.nan]), codes], axis=1))
        assert rows[:, 1:].tolist() == [[0, one], [0, 0], [one, 0]]
        assert rows[:, 0].tolist() == ([1, -1, 0] if one == 1 else [255, 0, 0])


def test_floats_that_are_features_already_stay() -> None:
    columns = Columns.as_they_are(3)
    rows = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(columns.rows(rows), rows)
