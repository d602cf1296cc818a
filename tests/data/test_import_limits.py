"""What is odd, large or unsound in a source: used within bounds, or refused in words."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import sign_again, write_tiny
from support import Run

from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.data.find import find_dataset
from distsgd.data.importing import row_import
from distsgd.data.importing.import_dataset import Imported, import_dataset
from distsgd.data.importing.source import ImportOptions, rows_at_once
from distsgd.data.locations import dataset_folder
from distsgd.data.manifest import read_manifest
from distsgd.errors import DatasetError, DistsgdError, SourceError, UsageError
from distsgd.training.evaluation import predict
from distsgd.training.training import train

LABELS = np.arange(60) % 2
STEPS = ImportOptions(values="uint8")


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({**columns, "label": LABELS}), path)
    return path


def pixels_of(found: Imported) -> np.ndarray:
    return np.concatenate([part for part, _ in Dataset(Path(found.dataset)).train.batches()])


# --- memory


def test_wide_rows_are_read_few_at_a_time() -> None:
    assert rows_at_once(3072) == 1024 and rows_at_once(2**25 + 1) == 1
    assert rows_at_once(8 * 3 * 150 * 150) == 62


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_memory_does_not_grow_with_the_width_of_rows(tmp_path: Path, kind: str) -> None:
    rows = np.random.default_rng(0).random((300, 50_000), dtype=np.float32)
    labels = np.arange(300) % 2
    if kind == "npz":
        source = npz(tmp_path / "wide.npz", x=rows, y=labels)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 50_000)
        source = tmp_path / "wide.parquet"
        pq.write_table(pa.table({"x": lists, "label": labels}), source, row_group_size=50)
    del rows
    tracemalloc.start()
    import_dataset(source, "wide", shards=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 160e6  # all would be 120 MB as float64, and several times that on the way


def test_the_number_of_shards_is_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_import, "_SHARD_BYTES", 1000)
    source = npz(tmp_path / "a.npz", x=np.zeros((60, 100), np.uint8), y=LABELS)
    assert import_dataset(source, "mine", shards=1).shards == 5  # of 46 rows
    assert import_dataset(source, "many", shards=7).shards == 7


def test_a_scale_gives_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Columns(names=(), low=(-1.0,), high=(1.5,))
    numbers = np.random.default_rng(0).normal(size=(100, 7))
    whole = scale.rows(numbers)
    monkeypatch.setattr("distsgd.data.columns._NUMBERS_AT_ONCE", 20)
    assert (scale.rows(numbers) == whole).all()
    assert scale.rows(numbers[:0]).shape == (0, 7)


# --- small whole numbers


SMALL = np.arange(60 * 6).reshape(60, 6) % 17


def test_small_whole_numbers_get_one_factor(tmp_path: Path) -> None:
    source = npz(tmp_path / "a.npz", x=SMALL, y=LABELS)
    found = import_dataset(source, "flat", options=STEPS)
    assert set(pixels_of(found).reshape(-1).tolist()) == {round(n * 255 / 16) for n in range(17)}
    scale = read_manifest(find_dataset("flat")).columns
    assert scale == Columns(names=(), low=(0.0,), high=(16.0,))
    lines = [",".join(map(str, [*row, label])) for row, label in zip(SMALL, LABELS, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c,d,e,f,label", *lines]))
    named = import_dataset(tmp_path / "a.csv", "named", options=STEPS)
    assert (pixels_of(named) == pixels_of(found)).all()
    assert read_manifest(find_dataset("named")).columns == Columns(
        names=tuple("abcdef"), low=(0.0,) * 6, high=(16.0,) * 6
    )


def test_what_is_predicted_is_put_on_the_same_steps(tmp_path: Path) -> None:
    x = np.stack([LABELS * 3, LABELS * 0, 1 - LABELS], axis=1)
    source = parquet(tmp_path / "a.parquet", **{name: x[:, i] for i, name in enumerate("abc")})
    import_dataset(source, "small")
    run = tmp_path / "run"
    done = train(dataset="small", workers=0, epochs=5, batch_size=16, slot_size=16, run_dir=run)
    assert done.test_accuracy == 1.0
    assert [int(one.label) for one in predict(run, source)] == LABELS.tolist()


@pytest.mark.parametrize(
    "x",
    [
        np.arange(60 * 5).reshape(60, 5).astype(np.uint8),  # up to 255
        (SMALL * 8).astype(np.uint8),  # up to 128
        SMALL.reshape(60, 2, 3).astype(np.uint8),
        SMALL.reshape(60, 2, 3, 1).astype(np.uint8),
        np.zeros((60, 4), np.uint8),
    ],
    ids=["bytes", "half", "grey", "images", "nothing"],
)
def test_other_whole_numbers_stay_as_they_are(tmp_path: Path, x: np.ndarray) -> None:
    both = {"x_train": x, "y_train": LABELS, "x_test": x, "y_test": LABELS}
    found = import_dataset(npz(tmp_path / "a.npz", **both), "mine")
    assert (pixels_of(found) == x.reshape(60, -1)).all() and not found.scaled


# --- classes


@pytest.mark.parametrize(
    ("names", "says"),
    [([str(i) for i in range(10_001)], "names 10001 classes"), (["a", "a"], "the same name")],
)
def test_classes_that_no_dataset_can_have(tmp_path: Path, names: list[str], says: str) -> None:
    source = hub(tmp_path / "hub.parquet", {"names": names, "_type": "ClassLabel"})
    with pytest.raises(DatasetError, match=says):
        import_dataset(source, "mine")
    assert not dataset_folder("mine").exists()


def hub(path: Path, label: dict[str, Any]) -> Path:
    meta = {"huggingface": json.dumps({"info": {"features": {"label": label}}})}
    schema = pa.schema({"x": pa.float64(), "label": pa.int64()}, metadata=meta)
    columns = {"x": np.linspace(0, 1, 60), "label": LABELS}
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


@pytest.mark.parametrize("names", [None, [], 3, [1, 2]])
def test_names_of_classes_that_are_none_are_passed_over(tmp_path: Path, names: object) -> None:
    source = hub(tmp_path / "hub.parquet", {"names": names, "_type": "ClassLabel"})
    assert import_dataset(source, "mine").classes == ("0", "1")


def of_labels(path: Path, kind: str, labels: list[str]) -> Path:
    """A file whose rows have these labels, by turns."""
    texts = [labels[i % len(labels)] for i in range(60)]
    values = np.arange(60) / 7
    if kind == "csv":
        lines = [f'{x},"{text}"' for x, text in zip(values, texts, strict=True)]
        path.write_text("\n".join(["x,label", *lines]))
    elif kind == "npz":
        np.savez(path, x=values[:, None], y=np.array(texts))
    elif kind == "bytes":
        pq.write_table(pa.table({"x": values, "label": [t.encode() for t in texts]}), path)
    elif kind == "hub":
        hub(path, {"names": labels, "_type": "ClassLabel"})
    else:
        pq.write_table(pa.table({"x": values, "label": texts}), path)
    return path.rename(path.with_suffix({"csv": ".csv", "npz": ".npz"}.get(kind, ".parquet")))


KINDS = ("csv", "npz", "parquet", "bytes", "hub")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", ["a\x1b[31m", "a\nb", "a\u202eb"])
def test_a_class_that_cannot_be_printed_is_refused(tmp_path: Path, kind: str, label: str) -> None:
    source = of_labels(tmp_path / "f.npz", kind, [label, "b"])
    with pytest.raises(DatasetError, match=r"the class 'a\\.* cannot be shown"):
        import_dataset(source, "mine")


@pytest.mark.parametrize("kind", KINDS[:4])
def test_labels_are_compared_in_one_form_and_without_blanks(tmp_path: Path, kind: str) -> None:
    labels = ["caf\u00e9", "cafe\u0301 ", "b", " b"]
    found = import_dataset(of_labels(tmp_path / "f.npz", kind, labels), "mine")
    assert found.classes == ("b", "caf\u00e9") and found.rejected == 0


def test_a_manifest_with_a_class_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    sign_again(tmp_path / "tiny", classes=["ant", "bee", "\x1b[2J"])
    with pytest.raises(DatasetError, match=r"the class .*x1b\[2J' has characters"):
        read_manifest(tmp_path / "tiny")


def test_arrays_in_fortran_order(tmp_path: Path) -> None:
    x = np.arange(60 * 6, dtype=np.float64).reshape(60, 3, 2)[:, :, None, :] / 7
    for name, order in (("c", "C"), ("f", "F")):
        source = npz(tmp_path / f"{name}.npz", x=np.array(x, order=order), y=LABELS)
        import_dataset(source, name)
    c, f = (read_manifest(find_dataset(name)) for name in "cf")
    assert (c.train, c.test, c.columns) == (f.train, f.test, f.columns)


# --- numbers and columns of all kinds


def test_whole_numbers_that_floats_round(tmp_path: Path) -> None:
    large = (2**60 + np.arange(60)).tolist()
    source = parquet(tmp_path / "large.parquet", a=large, b=np.arange(60) / 7)
    assert import_dataset(source, "mine").train > 0
    run = tmp_path / "run"
    train(dataset="mine", workers=0, epochs=1, batch_size=16, slot_size=16, run_dir=run)
    assert len(predict(run, source)) == 60


def test_lists_of_lists(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2, 3))
    rows: list[Any] = x.tolist()
    rows[5] = [[1.0, 2.0]]
    rows[6] = None
    found = import_dataset(parquet(tmp_path / "a.parquet", x=rows), "mine")
    assert found.shape == (6,) and found.rejected == 2
    assert "column 'x' has 2 numbers, not 6" in found.first_rejected[0]
    flat = import_dataset(npz(tmp_path / "a.npz", x=np.delete(x, [5, 6], 0).reshape(58, 6),
                              y=np.delete(LABELS, [5, 6])), "flat")  # fmt: skip
    assert (pixels_of(flat).shape[1], flat.train) == (6, found.train)


def test_training_rows_as_bytes_and_test_rows_as_floats(tmp_path: Path) -> None:
    x = np.arange(60 * 4).reshape(60, 4)
    source = npz(tmp_path / "a.npz", x_train=x.astype(np.uint8), y_train=LABELS,
                 x_test=x / 7, y_test=LABELS)  # fmt: skip
    found = import_dataset(source, "mine")
    assert found.scaled and found.train == 60


def test_numbers_too_large_to_be_used_are_rejected(tmp_path: Path) -> None:
    lines = [f"{i}.5,{'1e308' if i == 7 else '-1e308' if i == 9 else i},{i % 2}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,label", *lines]))
    found = import_dataset(tmp_path / "a.csv", "mine")
    assert (
        found.rejected == 2
        and "row 8: column 'b' is not a finite number" in found.first_rejected[0]
    )
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[4, 1] = 1e308
    assert import_dataset(npz(tmp_path / "a.npz", x=x, y=LABELS), "other").rejected == 1


def test_columns_that_hardly_change(tmp_path: Path) -> None:
    x = np.stack([LABELS * 1e-310, LABELS * 1e99], axis=1)
    found = import_dataset(npz(tmp_path / "a.npz", x=x, y=LABELS), "mine", options=STEPS)
    assert set(pixels_of(found)[:, 0].tolist()) == {0}
    assert set(pixels_of(found)[:, 1].tolist()) == {0, 255}


def doubles(path: Path) -> Path:
    columns = [pa.array(np.arange(60) / 7), pa.array(np.arange(60) / 3), pa.array(LABELS)]
    pq.write_table(pa.Table.from_arrays(columns, ["a", "a", "label"]), path)
    return path


@pytest.mark.parametrize(
    ("make", "options", "error", "says"),
    [
        (lambda p: npz(p / "a.npz", x=np.full((60, 2), "a"), y=LABELS), {}, SourceError,
         "'x' of .* holds <U1, not numbers"),
        (lambda p: npz(p / "a.npz", x=np.zeros((60, 2), "i4,f4"), y=LABELS), {}, SourceError,
         "not numbers"),
        (lambda p: npz(p / "a.npz", x=np.zeros((60, 2), complex), y=LABELS), {}, SourceError,
         "holds complex128"),
        (lambda p: npz(p / "a.npz", x=np.zeros((60, 0)), y=LABELS), {}, SourceError,
         "have no numbers"),
        (lambda p: parquet(p / "a.parquet", x=pa.array([[]] * 60, pa.list_(pa.int64()))), {},
         SourceError, "have no numbers"),
        (lambda p: doubles(p / "a.parquet"), {}, SourceError, "two columns named 'a'"),
        (lambda p: npz(p / "a.npz", x=SMALL, y=LABELS), {"seed": -1}, UsageError,
         "seed cannot be -1"),
        (lambda p: parquet(p / "a.parquet", x=SMALL[:, 0]), {"options": ImportOptions(label="²")},
         UsageError, "no column '²'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_words(
    tmp_path: Path, make: Any, options: dict[str, Any], error: type[DistsgdError], says: str
) -> None:
    with pytest.raises(error, match=says):
        import_dataset(make(tmp_path), "mine", **options)


def test_what_cannot_be_classified_is_refused_in_words(tmp_path: Path) -> None:
    import_dataset(parquet(tmp_path / "a.parquet", a=np.arange(60) / 7, b=LABELS), "mine")
    run = tmp_path / "run"
    train(dataset="mine", workers=0, epochs=1, batch_size=16, slot_size=16, run_dir=run)
    with pytest.raises(SourceError, match="two columns named 'a'"):
        predict(run, doubles(tmp_path / "doubles.parquet"))
    pairs = pa.array([{"u": 1.0}] * 60)
    with pytest.raises(UsageError, match=r"column 'a' of .* holds struct<.*, not numbers"):
        predict(run, parquet(tmp_path / "pairs.parquet", a=pairs, b=LABELS))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--size", "2³x3"), "--size cannot be"),
        (("--size", "0x3"), "--size cannot be"),
        (("--size", "1000000x1000000"), "a smaller --size"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_flags_that_cannot_be_used(
    distsgd_here: Run, tmp_path: Path, flags: tuple[str, str], says: str
) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "pets" / name / "a.png")
    done = distsgd_here("data", "import", tmp_path / "pets", "--name", "mine", *flags)
    assert done.returncode == 2 and says in done.stderr and "fault of" not in done.stderr


def test_an_array_with_a_negative_number_of_rows_is_refused(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3), }".ljust(117) + "\n"
    header = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", header)
    with pytest.raises(SourceError, match=r"'x' has the shape \(-5, 3\)"):
        import_dataset(tmp_path / "a.npz", "made")
