"""The manifest of a dataset: its shape and classes, and the checksum of every shard."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distsgd.data.columns import FLOATS, PIXELS, Columns
from distsgd.data.folder_files import SMALL, read_inside
from distsgd.data.locations import repair_hint
from distsgd.data.text_files import is_printable, parse_json
from distsgd.errors import CorruptDataError, DatasetError, machine_trouble

__all__ = ["MANIFEST", "MOST_CLASSES", "Manifest", "Shard", "parse_manifest", "read_manifest"]

MANIFEST = "manifest.json"
MOST_CLASSES = 10_000
_FORMAT, _FORMAT_OF_FLOATS = "distsgd dataset 1", "distsgd dataset 2"
"""A version that knows no floats refuses the second by its name."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}\.arrow", re.ASCII)
_MOST = 2**50
"""A shard has fewer rows and bytes than this."""


@dataclass(frozen=True)
class Shard:
    """One Arrow file of a dataset.

    Attributes:
        file: name in the folder of the dataset.
        rows: examples.
        size: bytes.
        sha256: checksum of the file.
    """

    file: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a dataset.

    Attributes:
        name: name of the dataset.
        shape: shape of an example, (channels, rows, columns).
        classes: names of the classes, in the order of the labels.
        pixel_sums: sum of each pixel over the training examples, exact; empty for floats.
        train: shards of the training split.
        test: shards of the test split.
        columns: how columns became features; None for pixels.
        mean_weight: mean of the weights of the training rows; None if rows have no weights.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    pixel_sums: tuple[int, ...]
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    columns: Columns | None = None
    mean_weight: float | None = None

    @property
    def values(self) -> str:
        """The dtype of rows: "uint8" for pixels, "float32" for standardised features."""
        return PIXELS if self.columns is None else self.columns.values

    @property
    def features(self) -> int:
        """Pixels, or other features, of an example."""
        return math.prod(self.shape)

    @property
    def channel_means(self) -> list[float]:
        """Mean of each channel over the training examples; empty for floats."""
        if not self.pixel_sums:
            return []
        size = self.features // self.shape[0]
        rows = self.rows("train")
        sums = [self.pixel_sums[i : i + size] for i in range(0, self.features, size)]
        return [sum(part) / (size * rows) for part in sums]

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Shards of "train" or "test"."""
        return self.train if split == "train" else self.test

    def rows(self, split: str) -> int:
        """Examples of "train" or "test"."""
        return sum(shard.rows for shard in self.shards(split))

    def to_json(self) -> str:
        """The content of the file, including its own checksum."""
        floats = self.values == FLOATS
        content: dict[str, Any] = {
            "format": _FORMAT_OF_FLOATS if floats else _FORMAT,
            "name": self.name,
            "shape": self.shape,
            "classes": self.classes,
            **({} if floats else {"channel_means": self.channel_means}),
            "train": [vars(shard) for shard in self.train],
            "test": [vars(shard) for shard in self.test],
        }
        if floats:
            content["values"] = self.values
        else:
            content["pixel_sums"] = self.pixel_sums
        if self.columns is not None:
            content["scale"] = self.columns.to_json()
        if self.mean_weight is not None:
            content["mean_weight"] = self.mean_weight
        return json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, hence of the whole dataset."""
        return str(json.loads(self.to_json())["digest"])


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a dataset.

    Raises:
        DatasetError: it is missing, or has another format.
        CorruptDataError: it has been altered.
        StorageError: the machine keeps it from being read.
    """
    path = folder / MANIFEST
    hint = repair_hint(folder)
    try:
        content = read_inside(path, most=SMALL)
    except FileNotFoundError:
        raise DatasetError(f"no dataset at {folder}: it has no {MANIFEST}", hint) from None
    except OSError as error:
        raise machine_trouble(error, path) or CorruptDataError(
            f"{path} cannot be read: {error}", hint
        ) from None
    return parse_manifest(content, path, hint)


def parse_manifest(raw: bytes, path: object, hint: str) -> Manifest:
    """Parse and check the content of a manifest.

    Args:
        raw: the content.
        path: its path or URI, for errors.
        hint: what to do about a damaged one, for errors.

    Raises:
        DatasetError: it has another format.
        CorruptDataError: it has been altered.
    """
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise CorruptDataError(f"{path} cannot be read: {error}", hint) from None
    formats = (_FORMAT, _FORMAT_OF_FLOATS)
    if not isinstance(content, dict) or content.get("format") not in formats:
        raise DatasetError(f"{path} is not a manifest of the format '{_FORMAT}'", hint)
    recorded = content.pop("digest", None)
    try:
        holds = recorded == _digest(content)
    except RecursionError:
        holds = False
    if not holds:
        raise CorruptDataError(f"{path} does not match its own checksum", hint)
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path} is not a valid manifest: {error!r}", hint) from None


def _parse(content: dict[str, Any]) -> Manifest:
    train, test = (tuple(map(_shard, content[split])) for split in ("train", "test"))
    pixels = content["format"] == _FORMAT
    manifest = Manifest(
        name=str(content["name"]),
        shape=tuple(int(n) for n in content["shape"]),
        classes=tuple(str(name) for name in content["classes"]),
        pixel_sums=tuple(int(n) for n in content["pixel_sums"]) if pixels else (),
        train=train,
        test=test,
        columns=Columns.from_json(content["scale"]) if "scale" in content else None,
        mean_weight=float(weight) if (weight := content.get("mean_weight")) is not None else None,
    )
    if unprintable := [name for name in manifest.classes if not is_printable(name)]:
        raise ValueError(f"the class {unprintable[0]!r} has characters that cannot be shown")
    if len(manifest.classes) < 2:
        raise ValueError("it names fewer than 2 classes")
    if len(manifest.classes) > MOST_CLASSES:
        raise ValueError(f"it names more than {MOST_CLASSES} classes")
    if not manifest.shape or min(manifest.shape) < 1:
        raise ValueError("its shape is not the shape of an example")
    if not manifest.test:
        raise ValueError("it names no test shard")
    sums = manifest.features if pixels else 0
    if len(manifest.pixel_sums) != sums or manifest.rows("train") < 1:
        raise ValueError("its shape, sums and rows do not match")
    if manifest.values != content.get("values", PIXELS) or pixels != (manifest.values == PIXELS):
        raise ValueError("its values and scale do not match")
    most = (1, manifest.features) if pixels else (manifest.features,)
    if manifest.columns is not None and manifest.columns.features not in most:
        raise ValueError("its shape and scale do not match")
    if weight is not None and not 0 < weight < math.inf:
        raise ValueError("its mean weight is not a number above 0")
    if len({shard.file for shard in train + test}) < len(train + test):
        raise ValueError("two shards have the same name")
    return manifest


def _shard(entry: dict[str, Any]) -> Shard:
    """A shard, whose file name and numbers are checked."""
    file = str(entry["file"])
    if not _NAME.fullmatch(file):
        raise ValueError(f"{file!r} is not a file name of a shard")
    for key in ("rows", "size"):
        if type(entry[key]) is not int or not 0 < entry[key] < _MOST:
            raise ValueError(f"{entry[key]!r} is not a number of {key}")
    return Shard(file, entry["rows"], entry["size"], str(entry["sha256"]))
