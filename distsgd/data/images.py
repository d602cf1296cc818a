"""Image files as examples."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from distsgd.core.arrays import Bytes
from distsgd.errors import UsageError

__all__ = ["decoded", "pixels_of", "read_image"]


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
    try:
        image = decoded(path, shape[0])
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}", "Check the path") from None
    except Exception as error:  # on a broken file a decoder of Pillow's can raise anything
        raise UsageError(
            f"{path} is not an image that can be read: {error}", "Give a PNG or JPEG"
        ) from None
    return pixels_of(image, shape)


def decoded(source: Path | BinaryIO, channels: int) -> Image.Image:
    """An image in RGB, or in grey if there is 1 channel.

    Raises:
        Exception: whatever its decoder raises.
    """
    with Image.open(source) as image:
        image.info.pop("transparency", None)  # Pillow warns of it, and it is dropped anyway
        return image.convert("RGB" if channels == 3 else "L")


def pixels_of(image: Image.Image, shape: tuple[int, ...]) -> Bytes:
    """A decoded image, resized if need be, channel by channel: shape (features,), uint8."""
    channels, rows, columns = shape
    if image.size != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8).reshape(rows, columns, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1)
