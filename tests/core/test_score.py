"""The score function and the features it is given."""

import numpy as np
import pytest

from distsgd.core.model import Preprocessing
from distsgd.core.model.architecture import padded_columns
from distsgd.core.model.slot_gradient import block_columns, block_rows, score


def random_case(rows, classes, columns, dtype="float32"):
    rng = np.random.default_rng(rows)
    weights = rng.standard_normal((classes, columns)).astype(dtype)
    return weights, rng.standard_normal((rows, columns)).astype(dtype)


@pytest.mark.parametrize("rows", [1, 7, 8, 63, 64, 65, 130])
@pytest.mark.parametrize(("classes", "columns"), [(2, 16), (10, 3088), (100, 3088)])
def test_scores_are_the_product(rows, classes, columns):
    weights, features = random_case(rows, classes, columns, "float64")
    out = np.full((rows, classes), np.nan)
    assert score(weights, features, out) is out
    expected = np.einsum("cf,rf->rc", weights, features)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("classes", "columns"), [(2, 16), (10, 3088)])
def test_bits_of_a_row_do_not_depend_on_the_blocks_after_it(classes, columns):
    block = block_rows(classes, columns)
    weights, features = random_case(3 * block + 5, classes, columns)
    out = score(weights, features, np.empty((len(features), classes), dtype=np.float32))
    for rows in (block, 2 * block, 3 * block):
        alone = np.empty((rows, classes), dtype=np.float32)
        score(weights, features[:rows].copy(), alone)
        assert alone.tobytes() == out[:rows].tobytes()
    tail = np.empty((5, classes), dtype=np.float32)
    score(weights, features[-5:].copy(), tail)
    assert tail.tobytes() == out[-5:].tobytes()


@pytest.mark.parametrize(
    ("classes", "columns", "rows"), [(2, 16, 64), (10, 3088, 32), (100, 3088, 8), (10**6, 9, 8)]
)
def test_block_rows_keep_the_product_small(classes, columns, rows):
    assert block_rows(classes, columns) == rows


@pytest.mark.parametrize(
    ("rows", "classes", "columns", "width"),
    [(65, 10, 3088, 1040), (64, 10, 3088, 1552), (3, 2, 16, 16), (257, 10, 3088, 352),
     (10_000, 10, 3088, 64)],
)  # fmt: skip
def test_block_columns_are_few_and_small(rows, classes, columns, width):
    assert block_columns(rows, classes, columns) == width


def test_raw_rows_less_the_centre_are_features():
    preprocessing = Preprocessing(np.array([100.0, 0.5, 255.0]), scale=64.0)
    pixels = np.array([[0, 1, 2], [255, 254, 253]], dtype=np.uint8)
    features, raw = preprocessing.buffer(2, "float64"), preprocessing.raw_buffer(2, "float64")
    preprocessing.fill(pixels, features)
    raw[:, :3] = pixels
    np.testing.assert_allclose((raw - preprocessing.centre("float64")) / 64, features, rtol=1e-15)


def test_features_are_centred_scaled_and_end_in_a_1():
    mean = np.array([100.0, 0.5, 255.0])
    preprocessing = Preprocessing(mean, scale=64.0)
    buffer = preprocessing.buffer(4, "float64")
    pixels = np.array([[0, 1, 2], [255, 254, 253]], dtype=np.uint8)
    preprocessing.fill(pixels, buffer[:2])
    np.testing.assert_allclose(buffer[:2, :3], (pixels - mean) / 64, rtol=1e-15)
    assert (buffer[:, 3] == 1).all()
    assert not buffer[:, 4:].any()
    assert not buffer[2:, :3].any()
    assert buffer.shape == (4, padded_columns(3))
    assert preprocessing.columns == padded_columns(3)


def test_features_in_float32_are_near_those_in_float64():
    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(rng.uniform(0, 255, 48), scale=64.0)
    pixels = rng.integers(0, 256, (5, 48)).astype(np.uint8)
    single, double = (preprocessing.buffer(5, dtype) for dtype in ("float32", "float64"))
    preprocessing.fill(pixels, single)
    preprocessing.fill(pixels, double)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=2e-6)
