"""Contact sheets: many small images with captions in one PNG, in groups with a heading each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw as Pen

__all__ = ["Group", "Thumbnail", "are_images", "as_images", "contact_sheet"]

_SMALLEST, _LARGEST = 64, 128
"""Pixels of the longer side of an image on the sheet."""

_INK, _WRONG, _FAINT, _PAPER = "#1b1b1b", "#c62828", "#707070", "#ffffff"
_MARGIN, _GAP, _LEAST_CELL = 12, 8, 92


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """An image of a sheet.

    Attributes:
        pixels: shape (height, width, 1 or 3), uint8.
        caption: lines below it.
        wrong: whether it stands out, in red.
    """

    pixels: NDArray[np.uint8]
    caption: tuple[str, ...] = ()
    wrong: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Images below one heading.

    Attributes:
        heading: above them.
        thumbnails: the images.
    """

    heading: str
    thumbnails: Sequence[Thumbnail]


def are_images(shape: Sequence[int]) -> bool:
    """Whether examples of a shape are images: (1 or 3 channels, rows, columns)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def as_images(rows: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Rows of a dataset as images, shape (rows, height, width, channels).

    Args:
        rows: shape (rows, features), channel by channel.
        shape: of an example: (channels, rows, columns).
    """
    return np.ascontiguousarray(rows.reshape(-1, *shape).transpose(0, 2, 3, 1))


def contact_sheet(title: str, groups: Sequence[Group], columns: int = 16, note: str = "") -> bytes:
    """A PNG of groups of images, the same bytes for the same images and Pillow.

    Args:
        title: above all.
        groups: of images, all of one size.
        columns: images side by side at most.
        note: below all.
    """
    from PIL import Image, ImageDraw

    every = [one for group in groups for one in group.thumbnails]
    size = _shown_size(every[0].pixels) if every else (_SMALLEST, _SMALLEST)
    lines = max((len(one.caption) for one in every), default=0)
    columns = max(1, min(columns, max((len(group.thumbnails) for group in groups), default=1)))
    small, large = _font(11), _font(16)
    cell = max(size[0], _LEAST_CELL) + _GAP, size[1] + 14 * lines + _GAP
    rows = sum(-(-len(group.thumbnails) // columns) for group in groups)
    width = 2 * _MARGIN + max(columns * cell[0], int(large.getlength(title)) + 1)
    height = 2 * _MARGIN + 30 + 26 * len(groups) + rows * cell[1] + (18 if note else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=large)
    y = _MARGIN + 30
    for group in groups:
        pen.text((_MARGIN, y + 4), group.heading, fill=_FAINT, font=_font(12))
        y += 26
        for number, one in enumerate(group.thumbnails):
            row, column = divmod(number, columns)
            place = _MARGIN + column * cell[0], y + row * cell[1]
            _draw(sheet, pen, one, place, size, small, cell[0] - _GAP)
        y += -(-len(group.thumbnails) // columns) * cell[1]
    if note:
        pen.text((_MARGIN, y), note, fill=_FAINT, font=_font(12))
    content = io.BytesIO()
    sheet.save(content, "PNG", compress_level=3)
    return content.getvalue()


def _draw(
    sheet: Picture, pen: Pen, one: Thumbnail, place: tuple[int, int], size: tuple[int, int],
    font: Any, width: int,
) -> None:  # fmt: skip
    """One image with its caption."""
    from PIL import Image

    x, y = place
    grey = one.pixels.shape[2] == 1
    image = Image.fromarray(one.pixels[:, :, 0] if grey else one.pixels).convert("RGB")
    if image.size != size:
        way = Image.Resampling.NEAREST if image.width < size[0] else Image.Resampling.BOX
        image = image.resize(size, way)
    sheet.paste(image, place)
    if one.wrong:
        pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), outline=_WRONG, width=2)
    colour = _WRONG if one.wrong else _INK
    for number, line in enumerate(one.caption):
        shown = _cut(line, font, width)
        pen.text((x, y + size[1] + 1 + 14 * number), shown, fill=colour, font=font)


def _cut(text: str, font: Any, width: int) -> str:
    """Text that fits a width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _shown_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height of an image on the sheet: a multiple of its own, or smaller."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer > _LARGEST:
        return max(1, width * _LARGEST // longer), max(1, height * _LARGEST // longer)
    factor = max(1, -(-_SMALLEST // longer))
    return width * factor, height * factor


def _font(points: int) -> Any:
    """DejaVu Sans, which matplotlib brings, or what Pillow brings."""
    from PIL import ImageFont

    found = find_spec("matplotlib")  # which is not loaded
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), points)
    return ImageFont.load_default(points)
