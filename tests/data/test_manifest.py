"""The manifest: read as written, and refused when altered, missing or unsound."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_support import TINY_CLASSES, TINY_SHAPE, sign_again, tiny_examples, write_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsgd.data.dataset import Dataset
from distsgd.data.manifest import MANIFEST, read_manifest
from distsgd.errors import CorruptDataError, DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_tiny(tmp_path / "tiny", rows=20, shards=3)
    assert read_manifest(tmp_path / "tiny") == written
    assert (written.shape, written.classes) == (TINY_SHAPE, TINY_CLASSES)
    assert [shard.rows for shard in written.train] == [6, 7, 7]
    assert (written.rows("train"), written.rows("test"), written.features) == (20, 5, 12)


def test_its_sums_and_means_are_those_of_the_training_pixels(folder: Path) -> None:
    pixels, _ = tiny_examples(20)
    manifest = read_manifest(folder)
    assert list(manifest.pixel_sums) == pixels.sum(axis=0, dtype=int).tolist()
    assert manifest.channel_means == pytest.approx(pixels.reshape(20, 3, 4).mean(axis=(0, 2)))


def test_the_digest_is_in_the_file_and_tells_datasets_apart(folder: Path, tmp_path: Path) -> None:
    digest = read_manifest(folder).digest
    assert json.loads((folder / MANIFEST).read_text())["digest"] == digest
    assert write_tiny(tmp_path / "again").digest == digest
    assert write_tiny(tmp_path / "other", shards=3).digest != digest


def test_a_folder_without_one_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"no dataset at {tmp_path}: it has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_one_that_is_no_json_is_corrupt(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"manifest\.json cannot be read"):
        read_manifest(folder)


def test_a_folder_in_its_place_is_corrupt(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(CorruptDataError, match=r"manifest\.json cannot be read"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "null", "3", '{"format": "distsgd dataset 3"}'])
def test_another_format_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(DatasetError, match="is not a manifest of the format 'distsgd dataset 1'"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"ant"', '"bat"'),
        ('"rows": 10', '"rows": 11'),
        ('"name": "tiny"', '"name": "huge"'),
        ('"digest": "', '"digest": "0'),
        ('"digest"', '"digits"'),
    ],
)
def test_an_alteration_does_not_match_the_checksum(folder: Path, old: str, new: str) -> None:
    text = (folder / MANIFEST).read_text()
    assert old in text
    (folder / MANIFEST).write_text(text.replace(old, new, 1))
    with pytest.raises(CorruptDataError, match=r"manifest\.json does not match its own checksum"):
        read_manifest(folder)


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"file": "a.arrow", "rows": 20, "size": 1, "sha256": "0" * 64} | changes]


UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({"classes": []}, "fewer than 2 classes"),
    "one class": ({"classes": ["ant"]}, "fewer than 2 classes"),
    "too many classes": ({"classes": [str(n) for n in range(10_001)]}, "more than 10000 classes"),
    **{
        f"the name {name!r}": ({"test": entry(file=name)}, "is not a file name of a shard")
        for name in (
            "/etc/passwd",
            "../a.arrow",
            "b/a.arrow",
            "..",
            ".",
            "",
            "manifest.json",
            "a",
            ".arrow",
            ".a.arrow",
            "a\0.arrow",
            "\udc80.arrow",
            "a.arrow\n",
            "\xe4.arrow",
            "a" * 300 + ".arrow",
        )
    },
    "a name twice": ({"train": entry(), "test": entry()}, "two shards have the same name"),
    **{
        f"{key} of {number!r}": ({"train": entry(**{key: number})}, f"is not a number of {key}")
        for key in ("rows", "size")
        for number in (0, -1, 1.0, 1e30, 2**50, True, None, "many", "3")
    },
    "no shape": ({"shape": []}, "its shape"),
    "empty shape": ({"shape": [0, 2, 2], "pixel_sums": []}, "its shape"),
    "negative shape": ({"shape": [-3, -2, 2]}, "its shape"),
    "infinite shape": ({"shape": [float("inf")]}, "infinity"),
    "wrong shape": ({"shape": [3, 2, 3]}, "do not match"),
    "too few sums": ({"pixel_sums": [1, 2, 3]}, "do not match"),
    "no training shard": ({"train": []}, "do not match"),
    "no test shard": ({"test": []}, "no test shard"),
    "no rows": ({"test": [{"file": "a.arrow"}]}, "rows"),
    "classes of nothing": ({"classes": None}, "None"),
    "shards are a number": ({"train": 3}, "int"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_one_is_refused_though_its_checksum_fits(folder: Path, what: str) -> None:
    changes, said = UNSOUND[what]
    sign_again(folder, **changes)
    with pytest.raises(DatasetError, match=r"manifest\.json is not a valid manifest") as caught:
        read_manifest(folder)
    assert said in caught.value.problem
    assert "distsgd data fetch --repair" in caught.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(["name", "shape", "classes", "pixel_sums", "train", "test"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(changes=st.dictionaries(FIELDS, JSON, min_size=1))
def test_whatever_is_signed_is_read_or_refused_in_words(
    folder: Path, changes: dict[str, Any]
) -> None:
    before = (folder / MANIFEST).read_bytes()
    try:
        sign_again(folder, **changes)
        Dataset(folder)
    except DatasetError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert Dataset(folder).manifest.classes
    finally:
        (folder / MANIFEST).write_bytes(before)


def damages(content: bytes, number: int) -> Iterator[bytes]:
    """Content with a bit flipped, or cut short."""
    chance = random.Random(4)
    for _ in range(number):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(damaged)
        yield content[: chance.randrange(len(content))]


def test_no_damage_goes_unnoticed(folder: Path) -> None:
    whole, sound = (folder / MANIFEST).read_bytes(), read_manifest(folder)
    noticed = 0
    for damaged in damages(whole, 300):
        (folder / MANIFEST).write_bytes(damaged)
        try:
            assert read_manifest(folder) == sound  # as when the last digit of a mean rounds off
        except DatasetError:
            noticed += 1
    assert noticed > 590


def test_a_missing_folder_is_no_dataset(folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(DatasetError, match="no dataset at"):
        read_manifest(folder)
