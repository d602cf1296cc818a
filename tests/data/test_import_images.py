"""Folders of images as people have them: odd names, things beside, colours that come late."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distsgd.data.cifar10.archive import read_folder
from distsgd.data.importing.import_dataset import Imported, import_dataset
from distsgd.data.importing.row_import import REJECTED
from distsgd.data.importing.source import ImportOptions
from distsgd.errors import DatasetError, SourceError
from distsgd.training import train


def put(path: Path, *, grey: bool = False, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (4, 5) if grey else (4, 5, 3)
    pixels = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pets(folder: Path, *, grey: bool = False) -> Path:
    for name in ("cat", "dog"):
        for number in range(20):
            put(folder / name / f"{number}.png", grey=grey, number=number)
    return folder


def rows(found: Imported) -> int:
    return found.train + found.test


@pytest.mark.parametrize("names", [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "Val")])
def test_the_folders_of_the_splits_may_have_capitals(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        pets(tmp_path / "pets" / name)
    found = import_dataset(tmp_path / "pets", "pets")
    assert found.classes == ("cat", "dog") and (found.train, found.test) == (40, 40)


def test_hidden_folders_and_those_of_archives_are_passed_over(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets")
    put(folder / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    put(folder / "cat" / "__MACOSX" / "0.png")
    put(folder / "__MACOSX" / "._0.png")
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "read.me").write_text("of cats")
    found = import_dataset(folder, "pets")
    assert found.classes == ("cat", "dog") and rows(found) == 40


def test_one_image_with_colours_gives_all_of_them_colours(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", grey=True)
    assert import_dataset(folder, "grey").shape == (1, 4, 5)
    put(folder / "dog" / "9.png")
    assert import_dataset(folder, "coloured").shape == (3, 4, 5)


def test_images_whose_numbers_have_no_known_range_are_rejected(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", grey=True)
    Image.fromarray(np.ones((4, 5), np.float32)).save(folder / "cat" / "depth.tiff")
    found = import_dataset(folder, "pets")
    assert rows(found) == 40 and found.rejected == 1 and "32-bit" in found.first_rejected[0]


def test_a_rejected_image_may_have_any_name(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets")
    (Path(os.fsdecode(os.fsencode(folder / "cat") + b"/\xff.png"))).write_bytes(b"no image")
    found = import_dataset(folder, "pets")
    assert found.rejected == 1 and r"\udcff.png" in found.first_rejected[0]
    assert r"\udcff.png" in (Path(found.dataset) / REJECTED).read_text()


def test_a_pipe_among_images_is_rejected(tmp_path: Path) -> None:
    """The first one too, which the shape is taken from; nobody ever writes to it."""
    folder = pets(tmp_path / "pets")
    for name in ("0.png", "7.png"):
        (folder / "cat" / name).unlink()
        os.mkfifo(folder / "cat" / name)
    found = import_dataset(folder, "pets")
    assert found.rejected == 2 and "it is a pipe" in found.first_rejected[0]


@pytest.mark.parametrize("file", ["train-0.parquet", "data_batch_1.bin"])
def test_a_pipe_among_other_files_is_refused(tmp_path: Path, file: str) -> None:
    (folder := tmp_path / "folder").mkdir()
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    for name in names if "batch" in file else [file]:
        os.mkfifo(folder / name)
    with pytest.raises(SourceError, match="it is a pipe"):
        read_folder(folder) if "batch" in file else import_dataset(folder, "rows")


def test_a_class_whose_name_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets")
    (folder / "cat").rename(os.fsdecode(os.fsencode(folder) + b"/\xff"))
    with pytest.raises(SourceError, match=r"'\\udcff' in .* cannot be shown"):
        import_dataset(folder, "pets")


def test_a_class_is_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "places"
    names = {"train": ["caf\u00e9", "bar"], "test": ["cafe\u0301", "bar"]}
    for split, found in names.items():
        for name in found:
            put(folder / split / name / "0.png")
    put(folder / "train" / "cafe\u0301" / "1.png")  # both, side by side
    found = import_dataset(folder, "places")
    assert found.classes == ("bar", "caf\u00e9") and (found.train, found.test) == (3, 2)


def test_images_of_many_sizes_are_said_to_differ_in_size(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets")
    Image.new("RGB", (9, 7)).save(folder / "cat" / "0.png")
    says = (
        r"no (training|test) rows: the images differ in size; of 40, 39 do not have 7 rows and 9 "
        r"columns as the first one has\. Resize all of them: size=\(7, 9\)"
    )
    with pytest.raises(DatasetError, match=says):
        import_dataset(folder, "pets")


@pytest.mark.parametrize("kind", ["16-bit images", "16-bit numbers", "numbers of any size"])
def test_what_has_more_than_8_bits_is_put_on_256_steps_and_trains_exactly(
    tmp_path: Path, kind: str
) -> None:
    """Slots of two lengths give one W: no sum is rounded."""
    rng = np.random.default_rng(0)
    if kind == "16-bit images":
        source = tmp_path / "pets"
        for name in ("cat", "dog"):
            (source / name).mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(0, 65536, (4, 5), dtype=np.uint16)
                Image.fromarray(pixels).save(source / name / f"{number}.png")
    else:
        source = tmp_path / "rows.npz"
        values: np.ndarray = rng.integers(0, 65536, (40, 20), dtype=np.uint16)
        if kind == "numbers of any size":
            values = rng.standard_normal((40, 20)) * np.logspace(-9, 9, 20)
        np.savez(source, x=values, y=np.arange(40) % 2)
    import_dataset(source, "wide", options=ImportOptions(values="uint8"))
    given = {"arithmetic": "exact", "workers": 0, "epochs": 3, "batch_size": 16}
    found = [train("wide", slot_size=size, **given) for size in (16, 5)]
    assert found[0].weights_sha256 == found[1].weights_sha256
    assert np.isfinite(found[0].train_loss)
