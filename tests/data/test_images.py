"""Image files as examples: any format, any size; broken ones refused in words."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distsgd.data.dataset import Dataset
from distsgd.data.importing.images import decoded, read_image
from distsgd.errors import UsageError

SHAPE = (3, 32, 32)
PLANE = 1024


def colours(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (31, 33), (640, 3), (200, 100)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("L", "jpg"), ("RGBA", "png"),
        ("LA", "png"), ("P", "png"), ("P", "gif"), ("1", "png"), ("CMYK", "jpg"),
        ("RGB", "bmp"), ("RGB", "webp"), ("I;16", "png"),
    ],
)  # fmt: skip
def test_any_image_becomes_an_example(
    tmp_path: Path, mode: str, suffix: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, size).save(path)
    pixels = read_image(path, SHAPE)
    assert (pixels.shape, pixels.dtype) == ((3072,), np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (77, 50)])
def test_channels_come_one_after_the_other(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "plain.png")
    pixels = read_image(tmp_path / "plain.png", SHAPE)
    assert [set(pixels[i * PLANE :][:PLANE].tolist()) for i in range(3)] == [{10}, {20}, {30}]


def test_within_a_channel_rows_come_one_after_the_other(tmp_path: Path) -> None:
    content = colours(32, 32)
    Image.fromarray(content).save(tmp_path / "noise.png")
    pixels = read_image(tmp_path / "noise.png", SHAPE)
    assert pixels[0] == content[0, 0, 0]
    assert pixels[1] == content[0, 1, 0]
    assert pixels[32] == content[1, 0, 0]
    assert pixels[2 * PLANE + 5 * 32 + 7] == content[5, 7, 2]


@pytest.mark.parametrize("row", [0, 17, 399])
def test_an_image_of_the_dataset_comes_back_exactly(
    tmp_path: Path, sample: Dataset, row: int
) -> None:
    pixels, _ = next(sample.test.batches())
    shown = pixels[row].reshape(SHAPE).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(shown)).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", SHAPE), pixels[row])


def test_a_grey_image_has_three_equal_channels(tmp_path: Path) -> None:
    content = colours(32, 32)[:, :, 0]
    Image.fromarray(content).save(tmp_path / "grey.png")
    planes = read_image(tmp_path / "grey.png", SHAPE).reshape(3, PLANE)
    np.testing.assert_array_equal(planes, np.tile(content.reshape(-1), (3, 1)))


def test_opacity_is_left_out(tmp_path: Path) -> None:
    content = colours(32, 32)
    opacity = np.full((32, 32, 1), 128, dtype=np.uint8)
    Image.fromarray(np.concatenate([content, opacity], axis=2)).save(tmp_path / "glass.png")
    Image.fromarray(content).save(tmp_path / "solid.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "glass.png", SHAPE), read_image(tmp_path / "solid.png", SHAPE)
    )


def test_a_palette_gives_its_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 40, 50, 60])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    pixels = read_image(tmp_path / "palette.png", SHAPE)  # a warning would be an error here
    assert pixels[::PLANE].tolist() == [40, 50, 60]


def test_one_channel_where_the_dataset_has_one(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (7, 7, 7)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", (1, 4, 5)).tolist() == [7] * 20


def test_resizing_keeps_what_is_left_and_right(tmp_path: Path) -> None:
    content = np.zeros((20, 100, 3), dtype=np.uint8)
    content[:, 50:] = 255
    Image.fromarray(content).save(tmp_path / "half.png")
    plane = read_image(tmp_path / "half.png", SHAPE)[:PLANE].reshape(32, 32)
    assert plane[:, :12].max() < 20
    assert plane[:, 20:].min() > 235


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no image .*gone\.png"):
        read_image(tmp_path / "gone.png", SHAPE)


@pytest.mark.parametrize("content", [b"", b"just words", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "letter.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"letter\.png is not a readable image"):
        read_image(tmp_path / "letter.png", SHAPE)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a readable image"):
        read_image(tmp_path, SHAPE)


def encoded(form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(colours(40, 37)).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_named(tmp_path: Path, form: str, share: float) -> None:
    content = encoded(form)
    (tmp_path / "cut.img").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UsageError, match=r"cut\.img is not a readable image"):
        read_image(tmp_path / "cut.img", SHAPE)


def test_an_image_of_absurd_size_is_named(tmp_path: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">II", 200_000, 200_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"bomb\.png is not a readable image"):
        read_image(tmp_path / "bomb.png", SHAPE)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Pillow's, of size
def test_a_damaged_image_is_read_or_refused_in_words(tmp_path: Path, form: str) -> None:
    chance = random.Random(form)
    content = encoded(form)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[chance.randrange(min(len(content), chance.choice([64, 9999])))] ^= (
            1 << chance.randrange(8)
        )
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            assert read_image(tmp_path / "damaged", SHAPE).shape == (3072,)
        except UsageError:
            refused += 1
    assert refused > 10


def ramp() -> np.ndarray:
    """All numbers of 16 bits."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_of_grey_of_16_bits_the_upper_8_are_taken(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(ramp()).save(tmp_path / f"deep.{suffix}")
    pixels = read_image(tmp_path / f"deep.{suffix}", (1, 256, 256))
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256), 256))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_numbers_of_no_known_range_are_refused(tmp_path: Path, dtype: str) -> None:
    Image.fromarray(np.ones((9, 9), dtype)).save(tmp_path / "depth.tiff")
    with pytest.raises(UsageError, match=r"32-bit numbers of unknown range: save 8 or 16 bits"):
        read_image(tmp_path / "depth.tiff", SHAPE)


def test_what_was_photographed_upright_stands_upright(tmp_path: Path) -> None:
    content = colours(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right
    Image.fromarray(content).save(tmp_path / "photo.png", exif=exif)
    upright = np.rot90(content, -1).transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", (3, 6, 4)), upright)


def test_what_pillow_would_hand_to_a_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(UsageError, match="cannot identify image file"):
        read_image(tmp_path / "a.png", SHAPE)


def a_png(path: Path, width: int, height: int) -> Path:
    """A header that says so many pixels, and too few bytes for them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    body = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((9_000, 6_000), r"it has 9,000 x 6,000 = 54,000,000 pixels, more than 50,000,000"),
        ((13_000, 13_000), r"it has 13,000 x 13,000 = 169,000,000 pixels"),
        ((20_000, 20_000), r"it has too many pixels .*400000000.*, more than 50,000,000"),
    ],
)
def test_pixels_are_counted_before_they_are_decoded(
    tmp_path: Path, size: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("it is decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UsageError, match=words):
        read_image(a_png(tmp_path / "large.png", *size), SHAPE)


def test_a_large_photograph_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsgd.data.importing.images._MOST_PIXELS", 40_000)
    image = Image.linear_gradient("L").resize((640, 320)).convert("RGB")
    image.save(tmp_path / "photo.jpg", quality=95)
    large = decoded(tmp_path / "photo.jpg", 3)
    assert large.size == (160, 80)
    small = read_image(tmp_path / "photo.jpg", SHAPE).astype(int)
    monkeypatch.undo()
    whole = read_image(tmp_path / "photo.jpg", SHAPE).astype(int)
    assert np.abs(small - whole).max() <= 3
    monkeypatch.setattr("distsgd.data.importing.images._MOST_PIXELS", 1000)
    with pytest.raises(UsageError, match="640 x 320 = 204,800 pixels, more than 1,000"):
        read_image(tmp_path / "photo.jpg", SHAPE)
