"""An open dataset: rows by number, whole passes, and the embedded sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_support import tiny_examples, write_tiny
from hypothesis import given
from hypothesis import strategies as st

from distsgd.data.cifar10.archive import CLASSES, Records
from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE
from distsgd.data.split import Split

ROWS = 53
PIXELS, LABELS = tiny_examples(ROWS)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Split]:
    """The same training examples in 1, 2, 5 and 53 shards."""
    folder = tmp_path_factory.mktemp("splits")
    for shards in (1, 2, 5, ROWS):
        write_tiny(folder / str(shards), ROWS, shards)
    return {shards: Dataset(folder / str(shards)).train for shards in (1, 2, 5, ROWS)}


def gathered(split: Split, indices: list[int]) -> np.ndarray:
    out = np.full((len(indices), PIXELS.shape[1]), 77, dtype=np.uint8)
    split.gather(np.array(indices, dtype=np.int64), out)
    return out


@pytest.mark.parametrize("shards", [1, 2, 5, ROWS])
@given(indices=st.lists(st.integers(0, ROWS - 1), max_size=80))
def test_gather_is_plain_indexing(
    splits: dict[int, Split], shards: int, indices: list[int]
) -> None:
    np.testing.assert_array_equal(gathered(splits[shards], indices), PIXELS[indices])


@pytest.mark.parametrize("shards", [1, 2, 5, ROWS])
def test_gather_keeps_order_and_duplicates(splits: dict[int, Split], shards: int) -> None:
    indices = [52, 0, 52, 52, 26, 1, 0, 27]
    np.testing.assert_array_equal(gathered(splits[shards], indices), PIXELS[indices])


def test_gather_writes_only_into_its_rows(splits: dict[int, Split]) -> None:
    buffer = np.full((10, PIXELS.shape[1]), 77, dtype=np.uint8)
    splits[5].gather(np.array([3, 50]), buffer[4:6])
    assert set(buffer[:4].ravel()) | set(buffer[6:].ravel()) == {77}
    np.testing.assert_array_equal(buffer[4:6], PIXELS[[3, 50]])


@pytest.mark.parametrize("shards", [1, 2, 5, ROWS])
def test_batches_give_every_row_in_order(splits: dict[int, Split], shards: int) -> None:
    batches = list(splits[shards].batches())
    assert len(batches) == shards
    np.testing.assert_array_equal(np.concatenate([pixels for pixels, _ in batches]), PIXELS)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), LABELS)


def test_batches_are_not_copies(splits: dict[int, Split]) -> None:
    once, again = ([pixels for pixels, _ in splits[5].batches()] for _ in range(2))
    assert all(np.shares_memory(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("shards", [1, 2, 5, ROWS])
def test_labels_and_length(splits: dict[int, Split], shards: int) -> None:
    np.testing.assert_array_equal(splits[shards].labels, LABELS)
    assert len(splits[shards]) == ROWS


def test_the_pixel_mean_is_that_of_the_training_examples(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", ROWS)
    dataset = Dataset(tmp_path / "tiny")
    np.testing.assert_allclose(dataset.pixel_mean, PIXELS.mean(axis=0), rtol=1e-15)
    recipe = dataset.preprocessing(64)
    np.testing.assert_array_equal(recipe.mean, dataset.pixel_mean)
    assert recipe.scale == 64


def test_the_pixel_mean_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    for shards in (1, 7):
        write_tiny(tmp_path / str(shards), ROWS, shards)
    means = [Dataset(tmp_path / str(shards)).pixel_mean.tobytes() for shards in (1, 7)]
    assert means[0] == means[1]


# --- the embedded sample


def test_the_sample_is_sound() -> None:
    manifest = verify_dataset(SAMPLE).manifest
    assert manifest.classes == CLASSES
    assert manifest.shape == (3, 32, 32)


def test_the_sample_has_as_many_images_of_every_class(sample: Dataset) -> None:
    assert np.bincount(sample.train.labels).tolist() == [150] * 10
    assert np.bincount(sample.test.labels).tolist() == [40] * 10


def test_the_sample_is_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 6_500_000
    assert len(list(SAMPLE.iterdir())) == 4


def firsts_of_each_class(labels: np.ndarray, number: int) -> np.ndarray:
    """Which rows are among the first so many of their class, in order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:number] for c in range(10)]))


@pytest.mark.parametrize(("split", "number"), [("train", 150), ("test", 40)])
def test_the_sample_is_the_first_images_of_each_class(
    sample: Dataset, records: Records, split: str, number: int
) -> None:
    names = [name for name in records if (name == "test_batch") == (split == "test")]
    everything = np.concatenate([records[name] for name in names])
    expected = everything[firsts_of_each_class(everything[:, 0], number)]
    part = sample.train if split == "train" else sample.test
    pixels = np.concatenate([pixels for pixels, _ in part.batches()])
    np.testing.assert_array_equal(part.labels, expected[:, 0])
    np.testing.assert_array_equal(pixels, expected[:, 1:])


def test_a_folder_and_a_file_whose_names_are_not_utf_8(cache: Path, tmp_path: Path) -> None:
    """Arrow by itself opens no such name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distsgd.data.importing.import_dataset import import_dataset
    from distsgd.data.importing.source import ImportOptions

    folder = tmp_path / "caf\udce9"
    write_tiny(folder, ROWS)
    np.testing.assert_array_equal(gathered(Dataset(folder).train, [3, 1]), PIXELS[[3, 1]])
    Dataset(folder).verify()
    table = pa.table({"x": range(40), "y": [3, 1] * 20, "kind": ["a", "b"] * 20})
    with (tmp_path / "caf\udce9.parquet").open("wb") as file:
        pq.write_table(table, file)
    options = ImportOptions(label="kind")
    found = import_dataset(tmp_path / "caf\udce9.parquet", "mine", options=options)
    assert found.train + found.test == 40
