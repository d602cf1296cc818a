"""Contact sheets: images with captions in one PNG."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from distsgd.figures.contact_sheet import Group, Thumbnail, as_images, contact_sheet


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_on_the_sheet_as_they_are(channels: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, channels * 12), dtype=np.uint8)
    images = as_images(rows, (channels, 3, 4))
    assert images[2][1, 3].tolist() == rows[2].reshape(channels, 3, 4)[:, 1, 3].tolist()
    shown = [Thumbnail(one, ("cat", "deer 1.25")) for one in images]
    content = contact_sheet("update 7", [Group("slot 0", shown[:3]), Group("slot 1", shown[3:])], 2)
    assert content == contact_sheet(
        "update 7", [Group("slot 0", shown[:3]), Group("slot 1", shown[3:])], 2
    )
    sheet = decoded(content)
    for image in images:
        large = np.repeat(np.repeat(image, 16, axis=0), 16, axis=1)
        large = np.broadcast_to(large, (*large.shape[:2], 3))
        found = [
            (y, x)
            for y, x in np.argwhere((sheet == large[0, 0]).all(axis=2))
            if np.array_equal(sheet[y : y + 48, x : x + 64], large)
        ]
        assert len(found) == 1


def test_a_wrong_one_is_marked_and_long_words_are_cut() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    plain = decoded(contact_sheet("", [Group("", [Thumbnail(image, ("x" * 200,))])]))
    marked = decoded(contact_sheet("", [Group("", [Thumbnail(image, ("x" * 200,), wrong=True)])]))
    assert plain.shape == marked.shape and plain.shape[1] < 200
    assert (marked[..., 0] > marked[..., 1] + 100).any()
    assert not (plain[..., 0] > plain[..., 1].astype(int) + 100).any()
    assert decoded(contact_sheet("nothing", [])).size
