"""The matrices that the lecture's experiments look at."""

import numpy as np
import pytest

from distsgd.errors import UsageError
from distsgd.lecture.material import check_limit, first_examples


def test_examples_are_pixels_less_their_mean_and_a_one(sample):
    found = first_examples(sample, "train", 7, scale=2.0)
    pixels = np.empty((7, sample.manifest.features), dtype=np.uint8)
    sample.train.gather(np.arange(7), pixels)
    np.testing.assert_allclose(found.features[:, :-1], (pixels - sample.pixel_mean) / 2)
    assert (found.features[:, -1] == 1).all()
    assert (found.labels == sample.train.labels[:7]).all()
    assert found.shape == (10, 3073) and len(found) == 7


def test_raw_examples_are_pixels(sample):
    found = first_examples(sample, "test", centred=False, dtype="float32")
    assert len(found) == len(sample.test) and found.features.dtype == np.float32
    assert found.features.min() >= 0 and (found.features == found.features.round()).all()


@pytest.mark.parametrize("limit", [0, -1, 10**9])
def test_more_examples_than_there_are_is_refused(sample, limit):
    with pytest.raises(UsageError, match=f"examples cannot be {limit}"):
        first_examples(sample, "train", limit)


def test_a_limit_within_its_bounds_is_given_back():
    assert check_limit("tries", 3, 3) == 3
