"""Encoded images (PNG, JPEG, ...) of a source as rows of pixels, all of one shape."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distsgd.core.arrays import Bytes
from distsgd.data.importing.images_part import decoded, is_grey, pixels_of
from distsgd.data.importing.source import Batch, Label, Rejected, plain_label
from distsgd.data.text_files import require_file
from distsgd.errors import machine_trouble

__all__ = ["Encoded", "decode_batch", "shape_of_first"]

_THREADS = 2
_LOOKED_AT = 1000
"""Images that have to be grey before all are taken to be."""

Encoded = tuple[str, Path | bytes | None, object]
"""Where an image stands, its file or bytes, and its label."""


def shape_of_first(
    images: Iterable[Path | bytes | None], size: tuple[int, int] | None
) -> tuple[int, int, int] | None:
    """(channels, rows, columns) of the examples; None if no image can be read.

    They are those of the first image, but with colours if any of the others has some.
    """
    extent: tuple[int, int] | None = None
    for number, image in enumerate(images):
        if image is None:
            continue
        try:
            if extent is None:
                found = decoded(_source(image), 1)
                extent = size or (found.height, found.width)
            if not is_grey(_source(image)):
                return 3, *extent
        except Exception as error:  # a decoder can raise anything; such a row is rejected later
            trouble = machine_trouble(error, image if isinstance(image, Path) else "an image")
            if trouble is not None and not isinstance(error, PermissionError):
                raise trouble from None
            continue
        if number >= _LOOKED_AT:
            break
    return (1, *extent) if extent else None


def _source(image: Path | bytes) -> Path | BinaryIO:
    if isinstance(image, bytes):
        return BytesIO(image)
    require_file(image)
    return image


def decode_batch(images: list[Encoded], shape: tuple[int, ...], resize: bool) -> Batch:
    """Decode images on two threads, in their order.

    Args:
        images: what to decode.
        shape: (channels, rows, columns) of an example.
        resize: whether images of another size are resized; otherwise they are rejected.
    """

    def one(item: Encoded) -> tuple[Bytes, Label] | Rejected:
        where, file, label = item
        try:
            label = plain_label(label)
            if file is None:
                return Rejected(where, "it has no image")
            image = decoded(_source(file), shape[0])
            size = (shape[2], shape[1])
            if image.size != size and not resize:
                return Rejected(
                    where,
                    f"it is {image.width} x {image.height}, the first {size[0]} x {size[1]}: "
                    "--size resizes all",
                    (shape[1], shape[2]),
                )
            return pixels_of(image, shape), label
        except Exception as error:  # a decoder can raise anything
            trouble = machine_trouble(error, where)
            if trouble is not None and not isinstance(error, PermissionError):
                raise trouble from None
            return Rejected(where, str(error) or type(error).__name__)

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(one, images))
    kept = [item for item in found if not isinstance(item, Rejected)]
    features = int(np.prod(shape))
    return Batch(
        np.stack([row for row, _ in kept]) if kept else np.empty((0, features), np.uint8),
        [label for _, label in kept],
        [item for item in found if isinstance(item, Rejected)],
    )
