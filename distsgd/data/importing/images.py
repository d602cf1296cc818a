"""A folder of images by class: CLASS/image.png, or train/CLASS/image.png and test/CLASS/..."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from math import prod
from pathlib import Path

from PIL import Image

from distsgd.data.importing.encoded_images import Encoded, decode_batch, shape_of_first
from distsgd.data.importing.source import Batch, Source, Wishes, rows_at_once
from distsgd.data.names import is_printable, normal
from distsgd.errors import SourceError

__all__ = ["open_image_folder"]

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
_LOOKED_AT = 20
"""Images of each class that tell whether there are colours."""


def open_image_folder(folder: Path, wishes: Wishes) -> Source:
    """The images below the folders of the classes, in the order of their names.

    Raises:
        SourceError: there is no class, or no image.
    """
    train, test = _splits(folder)
    of_train, of_test = _by_class(train), _by_class(test) if test else {}
    classes = tuple(sorted({*of_train, *of_test}))
    _refuse_odd_names(folder, classes)
    some = chain.from_iterable(
        islice(_files(path), _LOOKED_AT) for name in classes for path in of_train.get(name, ())
    )
    shape = shape_of_first(some, wishes.size)
    if len(classes) < 2 or shape is None:
        raise SourceError(
            f"{folder} is no folder of images by class: "
            + ("no image can be read" if len(classes) > 1 else f"it has {len(classes)} classes"),
            "It needs a folder for each class, or train/ and test/ with one for each",
        )

    def images(folders: dict[str, list[Path]]) -> Iterator[Encoded]:
        """Every image of a split, of classes one after another."""
        for label, name in enumerate(classes):
            for path in chain.from_iterable(map(_files, folders.get(name, ()))):
                yield str(path.relative_to(folder.parent)), path, label

    def read(folders: dict[str, list[Path]]) -> Iterator[Batch]:
        for some in _batched(images(folders), rows_at_once(prod(shape))):
            yield decode_batch(some, shape, wishes.size is not None)

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
    """The folders of each class; of a name in two forms of Unicode there may be two."""
    found: dict[str, list[Path]] = {}
    for path in _folders(split):
        if _has_images(path):
            found.setdefault(normal(path.name), []).append(path)
    return found


def _splits(folder: Path) -> tuple[Path, Path | None]:
    """The folders of the training images, or of all, and of those for testing."""
    named = {path.name.lower(): path for path in _folders(folder)}
    train = next((named[name] for name in _TRAIN if name in named), None)
    if train is None:
        return folder, None
    return train, next((named[name] for name in _TEST if name in named), None)


def _is_litter(name: str) -> bool:
    """Whether it is hidden, or of a system, and no folder of the user's."""
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
    """A folder that cannot be read is not passed over."""
    raise error


def _has_images(folder: Path) -> bool:
    return next(_files(folder), None) is not None


def _batched(images: Iterator[Encoded], most: int) -> Iterator[list[Encoded]]:
    while some := list(islice(images, most)):
        yield some
