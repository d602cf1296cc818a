"""Rows from shards, from memory, and converted once: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from data_support import tiny_examples, write_tiny

from distsgd.core.model import Preprocessing
from distsgd.data.dataset import Dataset
from distsgd.data.row_cache import choose_cache, open_rows
from distsgd.data.split import Split
from distsgd.errors import UsageError

ROWS = 53
PIXELS, _ = tiny_examples(ROWS)
RECIPE = Preprocessing(np.linspace(90.3, 160.7, PIXELS.shape[1]), scale=3.0)
CACHES = ("shards", "uint8", "float32")


@pytest.fixture(scope="module", params=[1, 5])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("rows") / "tiny"
    write_tiny(folder, ROWS, request.param)
    return Dataset(folder).train


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "indices", [[[52, 0, 52], [7, 26, 27], [1, 2, 3]], [[3]], [[5, 4, 3, 2, 1, 0]]]
)
def test_rows_are_pixels_bias_and_padding(
    split: Split, cache: str, indices: list[list[int]]
) -> None:
    wanted = np.array(indices, dtype=np.int64)
    rows = open_rows(split, RECIPE, cache, 10)
    slots, examples = wanted.shape
    expected = RECIPE.raw_buffer(wanted.size, "float32")
    expected[:, : RECIPE.features] = PIXELS[wanted.reshape(-1)]
    buffer = RECIPE.raw_buffer(slots * (examples + 1), "float32").reshape(slots, examples + 1, -1)
    buffer[:, 0] = 7  # a row between the slots, which is not theirs
    rows.gather(wanted)
    for first in range(0, slots, 2):  # a few slots at a time
        rows.write(first, buffer[first : first + 2, 1:])
    assert np.ascontiguousarray(buffer[:, 1:]).tobytes() == expected.tobytes()
    assert (buffer[:, 0] == 7).all()


@pytest.mark.parametrize("cache", ["shards", "uint8"])
def test_rows_of_a_training_in_float64(split: Split, cache: str) -> None:
    out = RECIPE.raw_buffer(2, "float64")[None]
    rows = open_rows(split, RECIPE, cache, 2)
    rows.gather(np.array([[9, 40]]))
    rows.write(0, out)
    np.testing.assert_array_equal(out[0, :, : RECIPE.features], PIXELS[[9, 40]])


def test_a_copy_in_memory_leaves_the_split_alone(split: Split) -> None:
    kept = split.in_memory()
    assert len(list(kept.batches())) == 1
    np.testing.assert_array_equal(next(kept.batches())[0], PIXELS)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in split.batches()]), PIXELS)


CIFAR = Preprocessing(np.full(3072, 120.0), scale=64.0)


@pytest.mark.parametrize(
    ("cache", "budget", "dtype", "chosen"),
    [
        ("auto", 1024, "float32", "uint8"),
        ("auto", 147, "float64", "uint8"),
        ("auto", 146, "float32", "shards"),
        ("uint8", 146, "float32", "shards"),
        ("float32", 589, "float32", "float32"),
    ],
)
def test_the_cache_of_cifar10_keeps_to_the_budget(
    cache: str, budget: int, dtype: str, chosen: str
) -> None:
    assert choose_cache(cache, budget, CIFAR, 50_000, dtype) == chosen


@pytest.mark.parametrize(
    ("budget", "dtype", "words"),
    [(588, "float32", "needs 589 MiB .* cache_budget=588"), (9999, "float64", "dtype='float64'")],
)
def test_a_cache_that_cannot_be_is_refused(budget: int, dtype: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_cache("float32", budget, CIFAR, 50_000, dtype)
