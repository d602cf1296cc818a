"""Image files as examples."""

from __future__ import annotations

import threading
from contextlib import nullcontext, suppress
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

_MOST_PIXELS, _MANY_PIXELS = 50_000_000, 4_000_000
"""Pixels of an image that are decoded at most, at up to 8 bytes of memory for each; and those of
one that is decoded while no other of so many is."""

_one_large = threading.Lock()


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

    A JPEG of more than 50 million pixels is decoded at a half, a quarter or an eighth of its size,
    as its format allows.

    Raises:
        Exception: whatever its decoder raises, or ValueError: its numbers are of no known range, or
            it has too many pixels.
    """
    with _opened(source) as image:
        _bound_pixels(image)
        large = image.width * image.height > _MANY_PIXELS
        with _one_large if large else nullcontext():
            image.info.pop("transparency", None)  # Pillow warns of it, and it is dropped anyway
            image.load()
            if image.info:  # with nothing beside the pixels it would take time for nothing
                with suppress(Exception):  # where that is broken, the pixels stay
                    ImageOps.exif_transpose(image, in_place=True)
            return _of_bytes(image).convert("RGB" if channels == 3 else "L")


def _opened(source: Path | BinaryIO) -> Image.Image:
    """An image whose header alone has been read."""
    try:
        return Image.open(source, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(f"too many pixels ({error})")) from None


def _bound_pixels(image: Image.Image) -> None:
    """Have no more decoded than memory should be taken for.

    Raises:
        ValueError: it has too many pixels; says how many may be.
    """
    width, height = image.size
    if width * height > _MOST_PIXELS:
        part = next((n for n in (2, 4) if width * height <= n * n * _MOST_PIXELS), 8)
        image.draft(None, (width // part, height // part))  # does nothing but to a JPEG
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(_too_large(f"{width:,} x {height:,} = {width * height:,} pixels"))


def _too_large(pixels: str) -> str:
    return f"it has {pixels}, and at most {_MOST_PIXELS:,} are decoded: save it smaller"


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
    with _opened(source) as image:
        return image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")


def pixels_of(image: Image.Image, shape: tuple[int, ...]) -> Bytes:
    """A decoded image, resized if need be, channel by channel: shape (features,), uint8."""
    channels, rows, columns = shape
    if image.size != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8).reshape(rows, columns, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(-1)
