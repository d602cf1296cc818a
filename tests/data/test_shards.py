"""Shards: plain Arrow files, read in place, refused when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_support import (
    TINY_CLASSES,
    TINY_SHAPE,
    flip,
    sha256,
    sign_again,
    tiny_examples,
    write_tiny,
)
from support import PATIENCE

from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.dataset import Dataset, verify_shards
from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import MANIFEST, Manifest, read_manifest
from distsgd.data.plain_rows import PlainRows
from distsgd.data.remote.addresses import parse_uri
from distsgd.data.remote.stores import Refused, open_store
from distsgd.data.shards import open_shard, write_dataset, write_shard
from distsgd.data.verified import checksum
from distsgd.errors import CorruptDataError, DatasetError, NotPlainFile, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


def open_first(folder: Path) -> tuple[Any, Any]:
    manifest = read_manifest(folder)
    return open_shard(folder / manifest.train[0].file, manifest.train[0], manifest)[:2]


def mapped_spans(path: Path) -> list[range]:
    """The addresses at which this process has a file mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [range(int(low, 16), int(high, 16)) for low, high in spans]


# --- what is in the file


def test_plain_arrow_opens_one() -> None:
    manifest = read_manifest(SAMPLE)
    with pa.ipc.open_file(str(SAMPLE / manifest.train[0].file)) as reader:
        table = reader.read_all()
    image = table.schema.field("image").type
    assert isinstance(image, pa.FixedShapeTensorType)
    assert (image.value_type, list(image.shape)) == (pa.uint8(), [3, 32, 32])
    assert table.schema.field("label").type == pa.uint8()
    assert table.schema.names == ["image", "label"]
    assert not any(field.nullable for field in table.schema)


def test_the_class_names_are_in_its_metadata() -> None:
    manifest = read_manifest(SAMPLE)
    with pa.ipc.open_file(str(SAMPLE / manifest.test[0].file)) as reader:
        schema = reader.schema
    assert json.loads(schema.metadata[b"classes"]) == list(manifest.classes)
    assert json.loads(schema.field("label").metadata[b"classes"]) == list(manifest.classes)


def test_plain_arrow_gives_the_images_as_tensors(folder: Path) -> None:
    with pa.ipc.open_file(str(folder / "train-00000-of-00002.arrow")) as reader:
        batch = reader.get_batch(0)
    tensor = batch.column("image").to_numpy_ndarray()
    pixels, labels = tiny_examples(20)
    np.testing.assert_array_equal(tensor, pixels[:10].reshape(10, *TINY_SHAPE))
    assert batch.column("label").to_pylist() == labels[:10].tolist()


def test_the_entry_says_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "one.arrow"
    entry = write_shard(path, *tiny_examples(7), TINY_SHAPE, TINY_CLASSES)
    assert (entry.file, entry.rows) == ("one.arrow", 7)
    assert (entry.size, entry.sha256) == (path.stat().st_size, sha256(path))
    assert checksum(path) == entry.sha256


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    sums = [
        write_shard(tmp_path / name, *tiny_examples(7), TINY_SHAPE, TINY_CLASSES).sha256
        for name in ("a", "b")
    ]
    assert sums[0] == sums[1]


# --- how it is read


def test_the_rows_come_back(folder: Path) -> None:
    pixels, labels = open_first(folder)
    np.testing.assert_array_equal(pixels, tiny_examples(20)[0][:10])
    np.testing.assert_array_equal(labels, tiny_examples(20)[1][:10])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to look at")
def test_the_arrays_lie_inside_the_mapped_file(folder: Path) -> None:
    arrays = open_first(folder)
    spans = mapped_spans(folder / "train-00000-of-00002.arrow")
    assert spans
    for array in arrays:
        first = array.ctypes.data
        assert any(first in span and first + array.nbytes - 1 in span for span in spans)


def test_opening_takes_no_memory() -> None:
    before = pa.total_allocated_bytes()
    opened = open_first(SAMPLE)
    assert opened[0].nbytes > 2_000_000
    assert pa.total_allocated_bytes() - before < 10_000


def test_the_arrays_cannot_be_written_to(folder: Path) -> None:
    for array in open_first(folder):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


# --- what is refused


def first_shard(folder: Path) -> Path:
    return folder / read_manifest(folder).train[0].file


def test_a_flipped_byte_is_found_by_its_checksum(folder: Path) -> None:
    verify_shards(folder, read_manifest(folder))
    shard = first_shard(folder)
    flip(shard, shard.stat().st_size // 2)
    with pytest.raises(CorruptDataError, match=r"train-00000-of-00002\.arrow is corrupt"):
        verify_shards(folder, read_manifest(folder))


def test_each_shard_is_checked(folder: Path) -> None:
    manifest = read_manifest(folder)
    for entry in manifest.train + manifest.test:
        flip(folder / entry.file, entry.size // 2)
        with pytest.raises(CorruptDataError, match=entry.file):
            verify_dataset(folder)
        flip(folder / entry.file, entry.size // 2)
    assert verify_dataset(folder).manifest == manifest


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard = first_shard(folder)
    shard.unlink()
    for look in (Dataset, verify_dataset):
        with pytest.raises(DatasetError, match=f"the shard {shard} is missing"):
            look(folder)


def test_a_folder_in_place_of_a_shard_is_named(folder: Path) -> None:
    shard = first_shard(folder)
    shard.unlink()
    shard.mkdir()
    for look in (Dataset, verify_dataset):
        with pytest.raises(DatasetError, match=f"the shard {shard} "):
            look(folder)


def a_link(path: Path) -> None:
    """To the same content elsewhere: it is what it is, not what it leads to."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("make", [a_link, a_pipe])
def test_a_link_or_pipe_in_place_of_a_shard_is_refused(
    folder: Path, make: Callable[[Path], None]
) -> None:
    make(shard := first_shard(folder))
    for look in (Dataset, verify_dataset, lambda path: PlainRows(path, read_manifest(path))):
        with pytest.raises((StorageError, NotPlainFile), match=r"it is a (symbolic link|pipe)"):
            look(folder)
    with pytest.raises(Refused, match=r"it is a (symbolic link|pipe)"):
        list(open_store(parse_uri(f"file://{folder}")).pieces(shard.name, 0, None, 1 << 20))


def test_a_link_in_place_of_a_manifest_is_refused(folder: Path) -> None:
    a_link(folder / MANIFEST)
    with pytest.raises(StorageError, match=r"manifest\.json: it is a symbolic link"):
        Dataset(folder)


@pytest.mark.parametrize("kept", [0, 1, 8, 100, 800, -1])
def test_a_truncated_shard_is_named(folder: Path, kept: int) -> None:
    shard = first_shard(folder)
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:kept])
    with pytest.raises(CorruptDataError, match=f"{shard.name} is not a whole Arrow file"):
        Dataset(folder)
    with pytest.raises(CorruptDataError, match=f"{shard.name} is corrupt"):
        verify_dataset(folder)


def replace_first(folder: Path, content: pa.RecordBatch, times: int = 1) -> None:
    """Put another Arrow file in the place of the first shard, with a fitting manifest."""
    shard = first_shard(folder)
    shard.unlink()
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        for _ in range(times):
            writer.write_batch(content)
    entry = vars(read_manifest(folder).train[0])
    train = [entry | {"sha256": sha256(shard)}, vars(read_manifest(folder).train[1])]
    sign_again(folder, train=train)


def first_batch(folder: Path) -> pa.RecordBatch:
    with pa.ipc.open_file(str(first_shard(folder))) as reader:
        return reader.get_batch(0)


def test_a_file_of_other_columns_is_named(folder: Path) -> None:
    replace_first(folder, pa.record_batch({"image": [1], "caption": ["a"]}))
    with pytest.raises(DatasetError, match=r"another schema than its dataset: .*caption"):
        verify_dataset(folder)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint16(), pa.float32()])
def test_labels_of_another_type_are_named(folder: Path, kind: pa.DataType) -> None:
    batch = first_batch(folder)
    other = pa.record_batch(
        [batch.column("image"), batch.column("label").cast(kind)], names=["image", "label"]
    )
    replace_first(folder, other)
    with pytest.raises(DatasetError, match="another schema"):
        verify_dataset(folder)


def test_images_of_another_shape_are_named(folder: Path) -> None:
    sign_again(folder, shape=[12, 1, 1])
    with pytest.raises(DatasetError, match=r"train-00000-of-00002\.arrow has another schema"):
        verify_dataset(folder)


def test_fewer_rows_than_recorded_are_named(folder: Path) -> None:
    replace_first(folder, first_batch(folder).slice(0, 9))
    with pytest.raises(CorruptDataError, match=r"arrow has 9 rows, not 10"):
        verify_dataset(folder)


@pytest.mark.parametrize("times", [0, 2])
def test_a_file_of_several_parts_is_named(folder: Path, times: int) -> None:
    replace_first(folder, first_batch(folder), times)
    with pytest.raises(CorruptDataError, match=f"it has {times} record batches, not 1"):
        verify_dataset(folder)


def test_a_label_without_a_class_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    sign_again(tmp_path / "tiny", classes=["ant", "bee"])
    with pytest.raises(DatasetError, match=r"the train split of .* has a label 2, but .* only 2"):
        Dataset(tmp_path / "tiny")


def test_any_damage_is_refused_in_words_or_told_by_the_checksum(folder: Path) -> None:
    script = Path(__file__).with_name("damage_shards.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert "unnoticed" not in counts
    assert counts["opened"] > 100  # pixels that changed: only the checksum can tell
    assert counts["CorruptDataError"] > 400


def test_a_sound_manifest_is_returned(folder: Path) -> None:
    verified = verify_dataset(folder).manifest
    assert isinstance(verified, Manifest)
    assert verified == read_manifest(folder)


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_a_compressed_shard_is_refused_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    """A few kilobytes may claim, or become, any number of them."""
    pixels, labels = np.zeros((1000, 12), np.uint8), np.zeros(1000, np.uint8)
    write_dataset(
        tmp_path, name="x", shape=(3, 2, 2), classes=["a", "b"], train=(pixels, labels),
        test=(pixels, labels), shards=1,
    )  # fmt: skip
    manifest = read_manifest(tmp_path)
    path = tmp_path / manifest.train[0].file
    with pa.ipc.open_file(path.read_bytes()) as file:
        batch = file.get_batch(0)
    options = pa.ipc.IpcWriteOptions(compression=kind)
    with pa.ipc.new_file(path, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert path.stat().st_size < 12_000
    before = pa.total_allocated_bytes()
    with pytest.raises(CorruptDataError, match="it is compressed"):
        open_shard(path, manifest.train[0], manifest)
    assert pa.total_allocated_bytes() - before < 100_000
