"""Image files as examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from distsgd.core.arrays import Bytes
from distsgd.errors import UsageError

__all__ = ["read_image"]


def read_image(path: Path, shape: tuple[int, ...]) -> Bytes:
    """An image as an example: RGB, resized, channel by channel.

    Args:
        path: a file of any format that Pillow reads.
        shape: (channels, rows, columns) of an example; channels 3, or 1 for grey.

    Returns:
        shape (features,), uint8.

    Raises:
        UsageError: the file is missing or is no image.
    """
    channels, rows, columns = shape
    try:
        with Image.open(path) as image:
            image.info.pop("transparency", None)  # Pillow warns of it, and it is dropped anyway
            plain = image.convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}", "Check the path") from None
    except Exception as error:  # on a broken file a decoder of Pillow's can raise anything
        raise UsageError(
            f"{path} is not an image that can be read: {error}", "Give a PNG or JPEG"
        ) from None
    if plain.size != (columns, rows):
        plain = plain.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(plain, dtype=np.uint8).reshape(rows, columns, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1)
