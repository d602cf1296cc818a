"""A folder of images by class: CLASS/image.png, or train/CLASS/image.png and test/CLASS/..."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from distsgd.data.sources.encoded_images import Encoded, decode_batch, shape_of_first
from distsgd.data.sources.source import Batch, Source, Wishes
from distsgd.errors import SourceError

__all__ = ["open_image_folder"]

_ROWS = 256
_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation")


def open_image_folder(folder: Path, wishes: Wishes) -> Source:
    """The images below the folders of the classes, in the order of their names.

    Raises:
        SourceError: there is no class, or no image.
    """
    names = [path.name for path in _folders(folder)]
    train = next((folder / name for name in _TRAIN if name in names), folder)
    tests = [folder / name for name in _TEST if name in names]
    test = tests[0] if train != folder and tests else None
    splits = [part for part in (train, test) if part is not None]
    classes = tuple(sorted({path.name for part in splits for path in _folders(part)}))
    shape = shape_of_first((image for _, image, _ in _images(train, classes)), wishes.size)
    if len(classes) < 2 or shape is None:
        raise SourceError(
            f"{folder} is no folder of images by class: "
            + ("it has no image" if len(classes) > 1 else f"it has {len(classes)} classes"),
            "It needs a folder for each class, or train/ and test/ with one for each",
        )

    def read(split: Path) -> Iterator[Batch]:
        for images in _batched(_images(split, classes)):
            yield decode_batch(images, shape, wishes.size is not None)

    return Source(
        shape=shape,
        classes=classes,
        train=lambda: read(train),
        test=(lambda: read(test)) if test else None,
        rows=sum(1 for part in splits for _ in _images(part, classes)),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _images(folder: Path, classes: tuple[str, ...]) -> Iterator[Encoded]:
    """Every image file, of classes one after another."""
    known = Image.registered_extensions()
    for label, name in enumerate(classes):
        for where, _, files in sorted(os.walk(folder / name)):
            for file in sorted(files):
                path = Path(where, file)
                if path.suffix.lower() in known and not file.startswith("."):
                    yield str(path.relative_to(folder.parent)), path, label


def _batched(images: Iterator[Encoded]) -> Iterator[list[Encoded]]:
    while some := list(islice(images, _ROWS)):
        yield some
