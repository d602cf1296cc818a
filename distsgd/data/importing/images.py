"""Decode images (PNG, JPEG, ...) as examples of one shape, and import folders of them by class.

A folder has CLASS/image.png, or train/CLASS/image.png and test/CLASS/image.png.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from io import BytesIO
from itertools import chain, islice
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from distsgd.core.arrays import Bytes
from distsgd.data.importing.source import (
    Batch,
    ImportOptions,
    Label,
    Rejected,
    Source,
    plain_label,
    rows_at_once,
)
from distsgd.data.text_files import is_printable, normal, require_file
from distsgd.errors import SourceError, UsageError, in_short, machine_trouble
from distsgd.spelling import spelling

__all__ = [
    "Encoded",
    "decode_batch",
    "decoded",
    "open_image_folder",
    "read_image",
    "row_of",
    "row_of_bytes",
    "shape_of_first",
]


_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""Formats that Pillow decodes in this process; it passes others, such as EPS, to a program."""

_MOST_PIXELS, _MANY_PIXELS = 50_000_000, 4_000_000
"""Most pixels of an image that are decoded, at up to 8 bytes of memory each; images of more than
the second number are decoded one at a time."""

_one_large = threading.Lock()


def read_image(path: Path, shape: tuple[int, ...]) -> Bytes:
    """Read an image as an example: RGB or grey, resized, channel by channel.

    Args:
        path: a file of one of the formats.
        shape: (channels, rows, columns) of an example, with 3 channels, or 1 for grey.

    Returns:
        shape (features,), uint8.

    Raises:
        UsageError: the file is missing or is not an image.
    """
    try:
        require_file(path)
        image = decoded(path, shape[0])
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}", "Check the path") from None
    except Exception as error:  # a decoder of Pillow can raise anything for a broken file
        raise machine_trouble(error, path) or UsageError(
            f"{path} is not a readable image: {error}", "Give a PNG or JPEG"
        ) from None
    return pixels_of(image, shape)


def row_of(image: Image.Image, shape: tuple[int, ...]) -> Bytes:
    """An image of Pillow as an example, like `read_image`.

    Raises:
        UsageError: its pixels are of an unknown range.
    """
    try:
        return pixels_of(_of_bytes(image).convert(_mode(shape[0])), shape)
    except ValueError as error:
        raise UsageError(f"an image cannot be classified: {error}") from None


def row_of_bytes(content: bytes, shape: tuple[int, ...], most_pixels: int) -> Bytes:
    """The content of an image file as an example, like `read_image`.

    Args:
        content: of a file of one of the formats.
        shape: (channels, rows, columns) of an example.
        most_pixels: of the image, by its header; larger ones are not decoded.

    Raises:
        UsageError: it is not an image, or has too many pixels.
    """
    try:
        return pixels_of(decoded(BytesIO(content), shape[0], most_pixels), shape)
    except Exception as error:  # a decoder of Pillow can raise anything for a broken file
        raise machine_trouble(error, "an image") or UsageError(
            f"this is not a readable image: {in_short(error)}", "Give a PNG or JPEG"
        ) from None


def decoded(source: Path | BinaryIO, channels: int, most_pixels: int | None = None) -> Image.Image:
    """Decode an image, upright, in RGB, or in grey for 1 channel.

    A JPEG of more pixels than that (50 million for None) is decoded at a half, a quarter or an
    eighth of its size, which its format supports.

    Raises:
        ValueError: the range of its numbers is unknown, or it has too many pixels.
        Exception: anything that its decoder raises.
    """
    with _opened(source) as image:
        _bound_pixels(image, most_pixels or _MOST_PIXELS)
        large = image.width * image.height > _MANY_PIXELS
        with _one_large if large else nullcontext():
            image.info.pop("transparency", None)  # Pillow warns about it, and it is dropped anyway
            image.load()
            if image.info:  # saves time for images without metadata
                with suppress(Exception):  # broken metadata leaves the pixels as they are
                    ImageOps.exif_transpose(image, in_place=True)
            return _of_bytes(image).convert(_mode(channels))


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "L"


def _opened(source: Path | BinaryIO) -> Image.Image:
    """Open an image, of which only the header is read."""
    try:
        return Image.open(source, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(f"too many pixels ({error})", _MOST_PIXELS)) from None


def _bound_pixels(image: Image.Image, most: int) -> None:
    """Have a large JPEG decoded at a smaller size, and refuse other large images.

    Raises:
        ValueError: it has too many pixels; names the limit.
    """
    width, height = image.size
    if width * height > most:
        part = next((n for n in (2, 4) if width * height <= n * n * most), 8)
        image.draft(None, (width // part, height // part))  # has an effect on a JPEG only
    if image.width * image.height > most:
        raise ValueError(_too_large(f"{width:,} x {height:,} = {width * height:,} pixels", most))


def _too_large(pixels: str, most: int) -> str:
    return f"it has {pixels}, more than {most:,}: save it smaller"


def _of_bytes(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel: the upper ones of 16, as Pillow itself does for colours.

    `convert` would clip all above 255 to white.
    """
    # Pillow keeps 16 bits of a PPM in 32, and old versions those of a PNG.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown range: save 8 or 16 bits")
    return image


def is_grey(source: Path | BinaryIO) -> bool:
    """Whether an image is grey, according to its header.

    Raises:
        Exception: anything that its decoder raises.
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


_THREADS = 2
_LOOKED_AT = 1000
"""Images that must be grey before all are assumed to be."""

Encoded = tuple[str, Path | bytes | None, object]
"""The place of an image in its source, its file or bytes, and its label."""


def shape_of_first(
    images: Iterable[Path | bytes | None], size: tuple[int, int] | None
) -> tuple[int, int, int] | None:
    """(channels, rows, columns) of the examples; None if no image can be read.

    The size is that of the first image; there are 3 channels if any image has colours.
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
        except Exception as error:  # a decoder can raise anything; the row is rejected later
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
    """Decode images on two threads, in order.

    Args:
        images: the images.
        shape: (channels, rows, columns) of an example.
        resize: whether images of another size are resized; else they are rejected.
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
                    f"{spelling().setting('size')} resizes all",
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


_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
_LOOKED_AT_PER_CLASS = 20
"""Images of each class that are checked for colours."""


def open_image_folder(folder: Path, options: ImportOptions) -> Source:
    """Open a folder of images by class; they are read in the order of their names.

    Raises:
        SourceError: there are fewer than two classes, or no image.
    """
    train, test = _splits(folder)
    of_train, of_test = _by_class(train), _by_class(test) if test else {}
    classes = tuple(sorted({*of_train, *of_test}))
    _refuse_odd_names(folder, classes)
    some = chain.from_iterable(
        islice(_files(path), _LOOKED_AT_PER_CLASS)
        for name in classes
        for path in of_train.get(name, ())
    )
    shape = shape_of_first(some, options.size)
    if len(classes) < 2 or shape is None:
        raise SourceError(
            f"{folder} is not a folder of images by class: "
            + ("no image can be read" if len(classes) > 1 else f"it has {len(classes)} classes"),
            "It needs a folder for each class, or train/ and test/ with these folders",
        )

    def images(folders: dict[str, list[Path]]) -> Iterator[Encoded]:
        """Every image of a split, class by class."""
        for label, name in enumerate(classes):
            for path in chain.from_iterable(map(_files, folders.get(name, ()))):
                yield str(path.relative_to(folder.parent)), path, label

    def read(folders: dict[str, list[Path]]) -> Iterator[Batch]:
        for some in _batched(images(folders), rows_at_once(prod(shape))):
            yield decode_batch(some, shape, options.size is not None)

    return Source(
        shape=shape,
        classes=classes,
        train=lambda: read(of_train),
        test=(lambda: read(of_test)) if test else None,
        pixels=True,
        rows=sum(1 for part in (of_train, of_test) for _ in images(part)),
        features=("pixels",),
    )


def _by_class(split: Path) -> dict[str, list[Path]]:
    """The folders of each class; there may be two, if their names differ in Unicode form only."""
    found: dict[str, list[Path]] = {}
    for path in _folders(split):
        if _has_images(path):
            found.setdefault(normal(path.name), []).append(path)
    return found


def _splits(folder: Path) -> tuple[Path, Path | None]:
    """The folder of the training images, or of all, and that of the test images."""
    named = {path.name.lower(): path for path in _folders(folder)}
    train = next((named[name] for name in _TRAIN if name in named), None)
    if train is None:
        return folder, None
    return train, next((named[name] for name in _TEST if name in named), None)


def _is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or was made by a system and not by the user."""
    return name.startswith(".") or name == "__MACOSX"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_litter(path.name))


def _refuse_odd_names(folder: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        if not is_printable(name):
            raise SourceError(
                f"the folder {name!r} in {folder} has a name that cannot be shown",
                "Rename it: it is the name of a class",
            )


def _files(folder: Path) -> Iterator[Path]:
    """Every image file below a folder."""
    known = Image.registered_extensions()
    for where, files in sorted(_walk(folder)):
        for file in files:
            path = Path(where, file)
            if path.suffix.lower() in known and not _is_litter(file):
                yield path


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for where, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not _is_litter(name)]
        yield where, sorted(files)


def _raise(error: OSError) -> None:
    """Raise the error of a folder that cannot be read, which `os.walk` would ignore."""
    raise error


def _has_images(folder: Path) -> bool:
    return next(_files(folder), None) is not None


def _batched(images: Iterator[Encoded], most: int) -> Iterator[list[Encoded]]:
    while some := list(islice(images, most)):
        yield some
