"""The first W, its layout and the mask of its penalty."""

import numpy as np
import pytest

from distsgd.core.arrays import as_matrix, bias_column, padded_columns
from distsgd.core.model import initial_weights
from distsgd.core.model.architecture import decay_factors, pad, unpad

CLASSES, FEATURES = 10, 3072


@pytest.mark.parametrize(
    ("features", "columns"), [(1, 16), (14, 16), (15, 16), (16, 32), (47, 48), (3072, 3088)]
)
def test_rows_are_padded_to_a_multiple_of_16_with_room_for_the_bias(features, columns):
    assert padded_columns(features) == columns
    assert bias_column(features) == features < columns


@pytest.mark.parametrize("features", [1, 15, 16, 48])
def test_pad_and_unpad_are_inverse(features):
    weights = np.random.default_rng(0).standard_normal((3, features + 1)).astype(np.float32)
    flat = pad(weights)
    assert flat.shape == (3 * padded_columns(features),)
    assert not as_matrix(flat, 3)[:, features + 1 :].any()
    back = unpad(flat, 3, features)
    assert back.tobytes() == weights.tobytes()
    assert back.shape == weights.shape
    assert back.dtype == np.float32
    assert back.flags.c_contiguous


def test_as_matrix_is_a_view():
    flat = np.zeros(6)
    as_matrix(flat, 2)[1, 0] = 1
    assert flat.tolist() == [0, 0, 0, 1, 0, 0]


def test_weights_are_gaussian_with_zero_bias_and_zero_padding():
    flat = initial_weights(0, CLASSES, FEATURES, 1e-4, "float32")
    assert flat.dtype == np.float32
    weights = as_matrix(flat, CLASSES)
    assert not weights[:, FEATURES:].any()
    drawn = weights[:, :FEATURES]
    assert drawn.std() == pytest.approx(1e-4, rel=0.02)
    assert drawn.mean() == pytest.approx(0, abs=3e-6)
    assert np.mean(np.abs(drawn) > 2e-4) == pytest.approx(0.0455, abs=0.005)


def test_seeds_differ_and_repeat():
    def draw(seed):
        return initial_weights(seed, 2, 5, 1.0, "float64").tobytes()

    assert len({draw(seed) for seed in range(10)}) == 10
    assert draw(3) == draw(3)


def test_float32_weights_are_the_float64_ones_rounded():
    exact = initial_weights(7, 3, 20, 0.01, "float64")
    assert initial_weights(7, 3, 20, 0.01, "float32").tobytes() == exact.astype("f4").tobytes()


def test_golden_weights_of_seed_0():
    """If this fails, runs started from a seed by earlier versions are no longer repeated."""
    weights = unpad(initial_weights(0, 2, 3, 1.0, "float64"), 2, 3)
    expected = [
        [0.12573022, -0.13210486, 0.64042265, 0],
        [-0.53566937, 0.36159505, 1.30400005, 0],
    ]
    np.testing.assert_allclose(weights, expected, atol=5e-9)


def test_decay_spares_bias_and_padding():
    factors = as_matrix(decay_factors(3, 20, 0.25, "float32"), 3)
    assert factors.dtype == np.float32
    assert factors.shape == (3, padded_columns(20))
    assert (factors[:, :20] == 0.5).all()
    assert not factors[:, 20:].any()
