"""Image files as examples."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from distsgd.core.arrays import Bytes
from distsgd.data.text_files import require_file
from distsgd.errors import UsageError, machine_trouble

__all__ = ["decoded", "is_grey", "pixels_of", "read_image"]

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""Those that are decoded in this process: Pillow hands others, such as EPS, to a program."""


def read_image(path: Path, shape: tuple[int, ...]) -> Bytes:
    """An image as an example: RGB, resized, channel by channel.

    Args:
        path: a file of a format that is known here.
        shape: (channels, rows, columns) of an example; channels 3, or 1 for grey.

    Returns:
        shape (features,), uint8.

    Raises:
        UsageError: the file is missing or is no image.
    """
    try:
        require_file(path)
        image = decoded(path, shape[0])
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}", "Check the path") from None
    except Exception as error:  # on a broken file a decoder of Pillow's can raise anything
        raise machine_trouble(error, path) or UsageError(
            f"{path} is not an image that can be read: {error}", "Give a PNG or JPEG"
        ) from None
    return pixels_of(image, shape)


def decoded(source: Path | BinaryIO, channels: int) -> Image.Image:
    """An image, upright, in RGB, or in grey if there is 1 channel.

    Raises:
        Exception: whatever its decoder raises, or ValueError: its numbers are of no known range.
    """
    with Image.open(source, formats=_FORMATS) as image:
        image.info.pop("transparency", None)  # Pillow warns of it, and it is dropped anyway
        image.load()
        if image.info:  # with nothing beside the pixels it would take time for nothing
            with suppress(Exception):  # where that is broken, the pixels stay
                ImageOps.exif_transpose(image, in_place=True)
        return _of_bytes(image).convert("RGB" if channels == 3 else "L")


def _of_bytes(image: Image.Image) -> Image.Image:
    """With 8 bits a channel: of 16 bits the upper ones, as Pillow itself does with colours.

    `convert` would cut all above 255 to white.
    """
    # Pillow has 16 bits of a PPM, and old ones of a PNG, in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, of no known range: save 8 or 16 bits")
    return image


def is_grey(source: Path | BinaryIO) -> bool:
    """Whether an image has no colours, by its header.

    Raises:
        Exception: whatever its decoder raises.
    """
    with Image.open(source, formats=_FORMATS) as image:
        return image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")


def pixels_of(image: Image.Image, shape: tuple[int, ...]) -> Bytes:
    """A decoded image, resized if need be, channel by channel: shape (features,), uint8."""
    channels, rows, columns = shape
    if image.size != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8).reshape(rows, columns, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1)
