"""Images of a run as PNG or WebP: templates of a checkpoint, examples of the test split.

Several images of one size stand below each other in one picture, so that a page asks once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsgd.data.manifest import read_manifest
from distsgd.data.split import Split
from distsgd.errors import DistsgdError
from distsgd.runs.folder import RunFolder
from distsgd.runs.templates import templates

__all__ = ["example_picture", "picture", "template_picture"]


def picture(images: NDArray[np.uint8], kind: str = "PNG", quality: int = 80) -> bytes:
    """Images below each other in one.

    Args:
        images: (number, height, width, 1 or 3), uint8.
        kind: "PNG", which is exact, or "WEBP", which is small.
        quality: of WebP, up to 100.
    """
    from PIL import Image

    stacked = images.reshape(-1, *images.shape[2:])
    if stacked.shape[2] == 1:
        stacked = stacked[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stacked)).save(file, kind, quality=quality)
    return file.getvalue()


def template_picture(
    folder: Path, version: int, kind: str = "PNG", quality: int = 80
) -> bytes | None:
    """The templates of a checkpoint; None if the data are not images."""
    found = templates(folder, version)
    return None if found is None else picture(found, kind, quality)


@lru_cache(maxsize=2)
def _test_split(folder: str, digest: str) -> Split:
    """The test split of a dataset, whose checksums are computed once."""
    return Split(Path(folder), read_manifest(Path(folder)), "test")


def example_picture(
    run: Path, rows: Sequence[int], kind: str = "PNG", quality: int = 80
) -> bytes | None:
    """Examples of the test split of the dataset that a run was trained on.

    Args:
        run: the run folder.
        rows: their indices.
        kind: see `picture`.
        quality: likewise.

    Returns:
        None if the dataset is gone, another one by now, or none of images.
    """
    try:
        dataset = RunFolder(run).read("config.json").get("dataset", {})
        folder = dataset.get("folder") if isinstance(dataset, dict) else None
        if not isinstance(folder, str) or not rows or not Path(folder).is_dir():
            return None
        manifest = read_manifest(Path(folder))
        if manifest.digest != dataset.get("digest") or len(manifest.shape) != 3:
            return None
        split = _test_split(folder, manifest.digest)
        inside = min(rows) >= 0 and max(rows) < len(split)
        if manifest.shape[0] not in (1, 3) or manifest.columns is not None or not inside:
            return None
        pixels = np.empty((len(rows), manifest.features), dtype=np.uint8)
        split.gather(np.asarray(rows), pixels)
    except (DistsgdError, OSError):
        return None
    return picture(pixels.reshape(-1, *manifest.shape).transpose(0, 2, 3, 1), kind, quality)
