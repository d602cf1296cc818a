"""A user's own rows: each kind of source, what is refused, and that the shards are the same."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import sha256
from PIL import Image

from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.data.find import find_dataset
from distsgd.data.importing.import_dataset import Imported, import_dataset
from distsgd.data.importing.row_import import REJECTED
from distsgd.data.importing.source import ImportOptions
from distsgd.data.locations import SAMPLE, dataset_folder, imported_datasets
from distsgd.data.split import Split
from distsgd.errors import DatasetError, DistsgdError, SourceError, UsageError
from distsgd.training.evaluation import evaluate, predict
from distsgd.training.training import train


def png(pixels: np.ndarray) -> bytes:
    """Pixels of shape (3, rows, columns) as a file."""
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, "PNG")
    return content.getvalue()


def hub_file(path: Path, split: Split, classes: tuple[str, ...]) -> None:
    """A Parquet file as the Hugging Face hub keeps images."""
    images = [
        {"bytes": png(row.reshape(3, 32, 32)), "path": None}
        for pixels, _ in split.batches()
        for row in pixels
    ]
    features = {"img": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table({"img": images, "label": split.labels.astype(np.int64)}, schema=schema)
    pq.write_table(table, path, row_group_size=100)


def flowers(path: Path, rows: int = 300, extra: tuple[str, ...] = ()) -> Path:
    """Three classes that two of the columns tell apart."""
    random = np.random.default_rng(0)
    lines = ["length,width,species"]
    for row in range(rows):
        k = row % 3
        length, width = random.normal((5, 5.9, 6.6)[k], 0.2), random.normal((3.4, 2.2, 3)[k], 0.2)
        lines.append(f"{length:.3f},{width:.3f},{('iris', 'rose', 'tulip')[k]}")
    path.write_text("\n".join([*lines, *extra]) + "\n")
    return path


def rows_of(found: Imported) -> tuple[np.ndarray, np.ndarray]:
    """All training pixels and labels."""
    batches = list(Dataset(Path(found.dataset)).train.batches())
    return np.concatenate([p for p, _ in batches]), np.concatenate([y for _, y in batches])


def test_images_of_the_hub_become_the_very_shards_they_came_from(tmp_path: Path) -> None:
    sample = Dataset(SAMPLE)
    hub = tmp_path / "hub"
    hub.mkdir()
    hub_file(hub / "train-00000-of-00001.parquet", sample.train, sample.manifest.classes)
    hub_file(hub / "test-00000-of-00001.parquet", sample.test, sample.manifest.classes)
    found = import_dataset(hub, "mine", shards=len(sample.manifest.train))
    assert (found.train, found.test, found.rejected) == (len(sample.train), len(sample.test), 0)
    for shard in sample.manifest.train + sample.manifest.test:
        assert sha256(Path(found.dataset) / shard.file) == shard.sha256, shard.file
    assert verify_dataset(find_dataset("mine")).manifest.pixel_sums == sample.manifest.pixel_sums
    assert imported_datasets() == ["mine"]


def test_rows_of_numbers_are_imported_trained_on_and_classified(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers.csv")
    found = import_dataset(source, "flowers")
    assert found.classes == ("iris", "rose", "tulip") and found.shape == (2,)
    run = tmp_path / "run"
    result = train(
        dataset="flowers", workers=0, epochs=40, batch_size=16, slot_size=16, run_dir=run
    )
    assert result.test_accuracy > 0.95
    assert evaluate(run).accuracy == result.test_accuracy
    said = predict(run, source)
    truth = [line.split(",")[2] for line in source.read_text().splitlines()[1:]]
    assert np.mean([one.label == name for one, name in zip(said, truth, strict=True)]) > 0.95
    assert said[1].image.endswith("flowers.csv row 2")


def test_what_is_to_be_classified_may_have_no_label_but_needs_its_columns(tmp_path: Path) -> None:
    import_dataset(flowers(tmp_path / "flowers.csv"), "flowers")
    run = tmp_path / "run"
    train(dataset="flowers", workers=0, epochs=1, batch_size=64, run_dir=run)
    some = tmp_path / "some.csv"
    some.write_text("width,height,length\n3.4,1,5.0\n")
    assert len(predict(run, some)) == 1
    some.write_text("width,height,depth\n3.4,1,5.0\n")
    with pytest.raises(UsageError, match="no column 'length'"):
        predict(run, some)
    some.write_text("width,length\n3.4,tall\n")
    with pytest.raises(SourceError, match=r"some.csv row 1: column 'length'"):
        predict(run, some)


def test_rejected_rows_are_counted_and_listed(tmp_path: Path) -> None:
    bad = ("tall,3,rose", "5,3", "5,3,", "nan,3,iris")
    found = import_dataset(flowers(tmp_path / "flowers.csv", extra=bad), "flowers")
    assert found.train + found.test == 300
    assert found.rejected == len(bad)
    listed = (Path(found.dataset) / REJECTED).read_text()
    for why in ("column 'length' is not a finite number", "2 fields, not 3", "it has no label"):
        assert why in listed


def test_a_line_of_numbers_is_not_taken_for_names(tmp_path: Path) -> None:
    source = tmp_path / "plain.csv"
    source.write_text("".join(f"{i % 2},{i % 256},{255 - i % 256}\n" for i in range(100)))
    found = import_dataset(source, "plain", options=ImportOptions(label="0", values="uint8"))
    assert found.classes == ("0", "1") and found.train + found.test == 100
    pixels, labels = rows_of(found)
    assert (pixels.sum(axis=1) == 255).all() and (pixels[:, 0] % 2 == labels).all()


def test_the_test_rows_are_drawn_the_same_way_for_a_seed(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers.csv")
    digests = [
        import_dataset(source, name, seed=seed).digest
        for name, seed in (("a", 1), ("a2", 1), ("b", 2))
    ]
    manifests = [json.loads((dataset_folder(n) / "manifest.json").read_text()) for n in ("a", "a2")]
    assert manifests[0]["train"] == manifests[1]["train"]
    assert digests[0] != digests[2]


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_arrays_of_images(tmp_path: Path, last: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 4), dtype=np.uint8)
    given = images.transpose(0, 2, 3, 1) if last else images
    labels = np.arange(40) % 4
    np.savez_compressed(
        tmp_path / "x.npz", x_train=given[:30], y_train=labels[:30, None],
        x_test=given[30:], y_test=labels[30:, None],
    )  # fmt: skip
    found = import_dataset(tmp_path / "x.npz", "arrays", shards=3)
    pixels, numbers = rows_of(found)
    assert found.shape == (3, 5, 4) and found.test == 10
    assert (pixels == images[:30].reshape(30, -1)).all() and (numbers == labels[:30]).all()


def test_more_than_256_classes(tmp_path: Path) -> None:
    labels = np.arange(1200) % 300
    values = np.stack([labels // 256, labels % 256, labels * 0], axis=1).astype(np.uint8)
    np.savez(tmp_path / "many.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    found = import_dataset(tmp_path / "many.npz", "many")
    pixels, numbers = rows_of(found)
    assert len(found.classes) == 300 and numbers.dtype == np.uint16
    assert (pixels[:, 0] * 256.0 + pixels[:, 1] == numbers).all()
    result = train(dataset="many", workers=0, epochs=1, run_dir=tmp_path / "run")
    assert result.weights_sha256 == evaluate(tmp_path / "run").weights_sha256


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                content = png(random.integers(0, 256, (3, 8, 8), dtype=np.uint8))
                (folder / f"{i}.png").write_bytes(content)
    (tmp_path / "pets/train/cat/broken.png").write_bytes(b"no image")
    (tmp_path / "pets/train/cat/wide.png").write_bytes(png(np.zeros((3, 8, 9), np.uint8)))
    found = import_dataset(tmp_path / "pets", "pets")
    assert (found.train, found.test, found.rejected) == (12, 4, 2)
    assert any("size resizes all" in line for line in found.first_rejected)
    resized = import_dataset(tmp_path / "pets", "small", options=ImportOptions(size=(4, 4)))
    assert resized.shape == (3, 4, 4) and resized.rejected == 1


def test_embeddings_in_lists(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 7))
    table = pa.table({"vector": list(vectors), "label": [i % 2 for i in range(50)]})
    pq.write_table(table, tmp_path / "e.parquet")
    found = import_dataset(tmp_path / "e.parquet", "embeddings")
    assert found.shape == (7,) and found.scaled


@pytest.mark.parametrize("stored", [True, False], ids=["dictionary", "text"])
def test_one_long_text_in_many_rows_takes_no_memory(stored: bool, tmp_path: Path) -> None:
    """Labels stay a dictionary, whose entries are made once; a class has a short name."""
    places = pa.array([0, 0, 0, *[1, 2] * 1000], pa.int32())
    labels = pa.DictionaryArray.from_arrays(places, ["x" * 10**7, "a", "b"])
    table = pa.table({"u": pa.array(np.arange(2003.0)), "label": labels})
    pq.write_table(table, tmp_path / "e.parquet", store_schema=stored)
    found = import_dataset(tmp_path / "e.parquet", "texts")
    assert found.rejected == 3 and found.train + found.test == 2000
    assert any("10,000,000 characters" in line for line in found.first_rejected)


def test_numbers_keep_their_order_and_extremes_are_cut() -> None:
    scale = Columns(names=("a", "b"), low=(0.0, 5.0), high=(1.0, 5.0))
    numbers = np.array([[-9.0, 5], [0, 5], [0.5, 5], [1, 5], [9, 5]])
    assert scale.rows(numbers)[:, 0].tolist() == [0, 0, 128, 255, 255]
    assert scale.rows(numbers)[:, 1].tolist() == [0] * 5
    assert Columns.from_json(json.loads(json.dumps(scale.to_json()))) == scale


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "options", "error", "says"),
    [
        (lambda p: p / "gone.csv", {}, SourceError, "there is no file"),
        (lambda p: flowers(p / "f.xyz"), {}, SourceError, "neither .parquet, .csv nor .npz"),
        (lambda p: flowers(p / "f.csv"), {"name": "cifar10"}, UsageError, "name cannot be"),
        (lambda p: flowers(p / "f.csv"), {"name": "../up"}, UsageError, "name cannot be"),
        (lambda p: flowers(p / "f.csv"), {"test_share": 1.5}, UsageError, "test_share"),
        (lambda p: flowers(p / "f.csv"), {"options": ImportOptions(label="no")}, UsageError,
         "no column"),
        (lambda p: flowers(p / "f.csv"),
         {"options": ImportOptions(shape=(1, 1, 2), label="width")}, UsageError, "drop="),
        (lambda p: flowers(p / "f.csv", 2), {}, DatasetError, "there are no test rows"),
        (lambda p: flowers(p / "f.csv"), {"options": ImportOptions(shape=(1, 2, 2))}, UsageError,
         "shape=\\(1, 2, 2\\) does not match 2 numbers"),
        (lambda p: _npz(p / "o.npz", x=np.zeros((3, 2)), y=np.array([{}, 1, 2])), {}, SourceError,
         "never unpickled"),
        (lambda p: _npz(p / "o.npz", x=np.zeros((3, 2)), y=np.zeros(4)), {}, SourceError,
         "do not match"),
        (lambda p: _npz(p / "o.npz", a=np.zeros((3, 2)), b=np.zeros(4)), {}, UsageError, "image="),
        (lambda p: _npz(p / "o.npz", x=np.zeros((30, 2)), y=np.zeros(30)), {}, DatasetError,
         "all rows have the label '0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(
    tmp_path: Path, make: Any, options: dict[str, Any], error: type[DistsgdError], says: str
) -> None:
    source = make(tmp_path)
    with pytest.raises(error, match=says):
        import_dataset(source, **{"name": "mine", **options})
    left = dataset_folder("mine").parent
    assert not left.exists() or not [p for p in left.iterdir() if not p.name.endswith(".lock")]


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(b"\xff\xfe\x00PAR1 nothing of the kind")
    with pytest.raises(SourceError, match="is not a"):
        import_dataset(path, "broken")


def test_a_dataset_of_the_same_name_stays_unless_forced(tmp_path: Path) -> None:
    source = flowers(tmp_path / "flowers.csv")
    first = import_dataset(source, "flowers")
    with pytest.raises(UsageError, match="there is a dataset 'flowers'"):
        import_dataset(source, "flowers")
    assert import_dataset(source, "flowers", seed=5, force=True).digest != first.digest
    assert verify_dataset(find_dataset("flowers")).manifest.name == "flowers"
