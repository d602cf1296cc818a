"""CSV files as people and programs write them: lines of names, odd labels, bad lines."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import PATIENCE, command_line

from distsgd.data.dataset import open_dataset
from distsgd.data.find import find_dataset
from distsgd.data.importing import csv_file
from distsgd.data.importing.csv_file import CsvFile, has_names
from distsgd.data.importing.import_dataset import Imported, import_dataset
from distsgd.data.importing.row_import import REJECTED
from distsgd.data.importing.source import ImportOptions
from distsgd.data.manifest import read_manifest
from distsgd.errors import SourceError, UsageError
from distsgd.training.evaluation import predict
from distsgd.training.training import train

FLOWERS = [("5.1", "3.5", "iris"), ("6.1", "2.9", "rose"), ("4.0", "4.1", "tulip")]


def write(path: Path, *lines: str, rows: int = 99) -> Path:
    """Lines, and rows of flowers after them."""
    path.write_text("\n".join([*lines, *(",".join(FLOWERS[i % 3]) for i in range(rows))]) + "\n")
    return path


def get(path: Path, label: str = "-1", header: bool | None = None) -> Imported:
    return import_dataset(
        path, "mine", force=True, options=ImportOptions(label=label, header=header)
    )


def names() -> tuple[str, ...]:
    scale = read_manifest(find_dataset("mine")).columns
    return scale.names if scale else ()


@pytest.mark.parametrize(
    ("first", "named"),
    [
        ("0,1,label", True),  # pandas
        ("1,2,species", True),
        ("2019,2020,species", True),
        (",1,label", True),
        ("5.0,3.0,iris", False),
        ("0,1,iris", False),
        (",3.0,iris", False),
        ("nan,nan,iris", False),
        ("a,b,c", True),
    ],
)
def test_whether_the_first_line_has_names(tmp_path: Path, first: str, named: bool) -> None:
    found = get(write(tmp_path / "f.csv", first))
    assert found.classes == ("iris", "rose", "tulip")
    assert found.train + found.test + found.rejected == (99 if named else 100)
    want = [name for name in first.split(",")[:2] if name] if named else ["f0", "f1"]
    assert names() == tuple(want)


@pytest.mark.parametrize(
    ("first", "rows", "named"),
    [
        ("0,1,2,3,4,5", [["9", "7", "7", "7", "7", "1"]], True),
        ("0,1,2", [["9", "7", "1"]], False),
        ("0,1,label", [["9", "7", "0"]], True),
        ("400,402,label", [["9", "7", "0"]] * 3, True),
        ("5,3,iris", [], False),
        ("0,1,iris", [], False),
        ("5,3,iris", [["5", "3", "rose"]] * 3, False),
        ("5,3,a1", [["5", "3", f"a{i}"] for i in range(2, 300)], False),
    ],
)
def test_what_is_said_of_few_rows(first: str, rows: list[list[str]], named: bool) -> None:
    assert has_names(first.split(","), rows) is named


def test_what_the_user_says_of_the_first_line_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "f.csv", "0,1,label")
    assert get(source, header=False).classes == ("iris", "label", "rose", "tulip")
    assert get(write(source, "7.5,1.5,iris"), header=True).train and names() == ("7.5", "1.5")


def test_the_file_of_the_test_rows_is_read_as_the_other(tmp_path: Path) -> None:
    source, test = write(tmp_path / "a.csv"), write(tmp_path / "b.csv", "0,1,new", rows=9)
    found = import_dataset(source, "mine", test=test, options=ImportOptions(label="-1"))
    assert (found.train, found.test) == (99, 10)


def test_labels_that_are_missing_or_odd(tmp_path: Path) -> None:
    odd = ("007", "7", "7.0", "9007199254740993", "9007199254740992", "-3", "1e2", "None")
    missing = ("", "NaN", "nan", "NA", " n/a ", "NULL", "<NA>")
    lines = [f"{i},3,{label}" for label in (*odd, *missing) for i in range(20)]
    found = get(write(tmp_path / "odd.csv", "a,b,label", *lines, rows=0))
    assert found.rejected == 20 * len(missing)
    assert found.classes == (
        "-3", "7", "9007199254740992", "9007199254740993", "007", "1e2", "None",
    )  # fmt: skip


def test_lines_within_fields(tmp_path: Path) -> None:
    rows = [f'{i % 7}.5,"\n3",class {i % 2}' for i in range(300_000)]
    source = tmp_path / "lines.csv"
    source.write_text('"length\nin cm",width,label\n' + "\n".join(rows) + "\n")
    found = get(source)
    assert found.classes == ("class 0", "class 1") and found.train + found.test == 300_000
    assert names() == ("length\nin cm", "width")


def test_rejected_rows_are_named_by_where_they_stand(tmp_path: Path) -> None:
    bad = {5: "1,2", 6: "1,2,3,4", 70_000: "tall,3,rose", 99_999: "1", 100_000: "1,2"}
    lines = [bad.get(row, f"{row % 9}.5,3,{'rose' if row % 2 else 'iris'}")
             for row in range(1, 100_001)]  # fmt: skip
    source = tmp_path / "bad.csv"
    source.write_text("\n".join(["a,b,c", *lines]))
    found = get(source, "c")
    listed = (Path(found.dataset) / REJECTED).read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in listed) == sorted(f"bad.csv row {n}" for n in bad)
    assert any(line.startswith("bad.csv row 5,") and "2 fields, not 3: 1,2" in line
               for line in listed)  # fmt: skip
    assert found.train + found.test == 100_000 - len(bad)


def test_what_arrow_cannot_read_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "_RELEASE_SECONDS", 600.0)
    source = write(tmp_path / "long.csv", "a,b,label", "1," * 1_500_000)
    began = time.monotonic()
    with pytest.raises(SourceError, match="cannot be read to its end"):
        get(source)
    assert time.monotonic() - began < PATIENCE  # nothing is waited for that does not come


def test_a_reader_that_is_given_up_leaves_nothing_of_ours_to_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would need Python to let go of it, and abort a process that ends just then."""
    let_go = []

    class Late:
        def __init__(self, path: Path, *, parse_options: Any, **_: Any) -> None:
            self.held = [parse_options.invalid_row_handler]

        def __iter__(self) -> Iterator[pa.RecordBatch]:
            yield pa.record_batch([["1"], ["2"], ["rose"]], ["a", "b", "label"])

        def close(self) -> None:
            def late(held: list[Any]) -> None:
                time.sleep(0.2)
                let_go.append(True)
                held.clear()

            threading.Thread(target=late, args=(self.held,)).start()

    monkeypatch.setattr(csv_file.pc, "open_csv", Late)
    for _ in CsvFile(write(tmp_path / "f.csv", "a,b,label")).batches():
        break
    assert let_go


@pytest.mark.parametrize("content", ["a,b,label\n", "a,b,label", "a,b,label\n\n\n"])
def test_names_without_rows(tmp_path: Path, content: str) -> None:
    source = tmp_path / "none.csv"
    source.write_text(content)
    with pytest.raises(SourceError, match="has no rows"):
        get(source)


def test_bad_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b,label\n1\n2\n")
    with pytest.raises(Exception, match=r"2 of them rejected, the first \(bad.csv row 1: it has 1"):
        get(tmp_path / "bad.csv")


def test_the_flags_reach_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "f.csv", "5.0,3.0,iris")
    done = subprocess.run(
        command_line("data", "import", source, "--name", "mine", "--label=-1", "--header"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names() == ("5.0", "3.0")


def test_columns_to_be_classified_are_taken_by_their_names(tmp_path: Path) -> None:
    get(write(tmp_path / "f.csv", "length,width,species"), "species")
    run = tmp_path / "run"
    train(dataset="mine", workers=0, epochs=20, batch_size=16, learning_rate=0.1, run_dir=run)
    some = tmp_path / "some.csv"

    def said(text: str) -> list[str]:
        some.write_text(text)
        return [one.label for one in predict(run, some)]

    right = ["iris", "tulip"]
    assert said("5.1,3.5\n4.0,4.1\n") == right  # no names: in their order
    assert said("a,b\n5.1,3.5\n4.0,4.1\n") == right  # other names: likewise
    assert said("width,x,length\n3.5,0,5.1\n4.1,0,4.0\n") == right
    with pytest.raises(UsageError, match="no column 'length'"):
        said("width,lenght\n3.5,5.1\n")


def test_names_that_are_numbers_are_known_again(tmp_path: Path) -> None:
    source = write(tmp_path / "f.csv", "0,1,label")
    get(source)
    run = tmp_path / "run"
    train(dataset="mine", workers=0, epochs=1, batch_size=16, slot_size=16, run_dir=run)
    assert len(predict(run, source)) == 99
    (tmp_path / "some.csv").write_text("1,0\n3.5,5.1\n")
    assert len(predict(run, tmp_path / "some.csv")) == 1


def test_values_stay_in_their_columns(tmp_path: Path) -> None:
    get(write(tmp_path / "f.csv", "0,200,label", *[f"{i % 2},200,w{i % 2}" for i in range(60)],
              rows=0))  # fmt: skip
    pixels = np.concatenate([part for part, _ in open_dataset("mine").train.batches()])
    assert len(set(pixels[:, 0].tolist())) == 2 and set(pixels[:, 1].tolist()) == {0}


# --- as other programs write them


LINES = ["größe,b,label", *["1.5,2,ä", "2.5,3,b"] * 30]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8-sig", None), ("utf-16", None), ("utf-32", None), ("utf-16-le", "utf-16-le"),
        ("latin-1", "latin-1"), ("cp1252", "cp1252"),
    ],
)  # fmt: skip
def test_text_is_read_in_its_encoding(tmp_path: Path, encoding: str, said: str | None) -> None:
    source = tmp_path / "f.csv"
    source.write_bytes("\n".join(LINES).encode(encoding))
    if said is not None:
        with pytest.raises(SourceError, match="encoding="):
            get(source)
    found = import_dataset(source, "mine", force=True, options=ImportOptions(encoding=said))
    assert found.classes == ("b", "ä") and found.rejected == 0 and names() == ("größe", "b")


def test_what_is_not_utf_8_far_down_is_said_in_words(tmp_path: Path) -> None:
    source = tmp_path / "f.csv"
    source.write_bytes(b"a,b,label\n" + b"1.5,2,x\n2.5,3,y\n" * 100_000 + b"1,2,\xe4\n")
    with pytest.raises(SourceError, match=r"not all UTF-8\. .*encoding='latin-1'"):
        get(source)
    with pytest.raises(UsageError, match="encoding cannot be klingon"):
        import_dataset(source, "mine", options=ImportOptions(encoding="klingon"))


@pytest.mark.parametrize("ending", ["gz", "bz2"])
def test_a_compressed_file_is_read(tmp_path: Path, ending: str) -> None:
    packed = (gzip if ending == "gz" else bz2).compress("\n".join(LINES).encode())
    source = tmp_path / f"f.csv.{ending}"
    source.write_bytes(packed)
    assert get(source, "label").train > 0 and names() == ("größe", "b")
    source.write_bytes(packed[:-12])
    with pytest.raises(SourceError, match="is not a"):
        get(source, "label")


def test_decimal_commas(tmp_path: Path) -> None:
    rows = [f"{i % 7},5;{i % 2},25;+,5e1;{'1,0' if i % 2 else 'a,b'}" for i in range(60)]
    source = tmp_path / "f.csv"
    source.write_text("\n".join(["length;width;c;label", *rows]))
    found = get(source, "label")
    assert found.rejected == 0 and found.classes == ("1", "a,b") and "commas" in found.notices[0]
    scale = read_manifest(find_dataset("mine")).columns
    assert scale is not None and scale.mean[0] == pytest.approx(3.5, abs=0.5)
    source.write_text("\n".join(["length;width;label", *["1.5;1,5;a", "1.5;1.5;b", "1;2;a"] * 30]))
    assert get(source, "label").rejected == 30  # points and commas: points
    source.write_text("\n".join(["length\twidth\tlabel", *["1\t1,500\ta", "2\t12,500\tb"] * 30]))
    with pytest.raises(UsageError, match=r"column 'width' of .* holds .*, not numbers"):
        get(source, "label")  # may be thousands


@pytest.mark.parametrize(
    ("first", "row", "features", "left_out"),
    [
        ("a,b,label,", "1.5,2,x,", ("a", "b"), ()),
        ("a,b,label", "1.5,2,x,", ("a", "b"), ()),
        ("1.5,2,x,", "1.5,2,x,", ("f0", "f1"), ()),
        (",a,b,label", "7,1.5,2,x", ("a", "b"), ("Unnamed: 0",)),
        (",a,b,label,", "7,1.5,2,x,", ("a", "b"), ("Unnamed: 0",)),
        ("Unnamed: 0,a,b,label", "7,1.5,2,x", ("a", "b"), ("Unnamed: 0",)),
        ("Unnamed: 0.1,Unnamed: 0,a,label", "1,7,1.5,x", ("a",), ("Unnamed: 0.1", "Unnamed: 0")),
        ("a,b,label", "7,1.5,2,x", ("a", "b"), ("Unnamed: 0",)),  # R, names of rows
        ("a,,label", "1.5,2,x", ("a", "Unnamed: 1"), ()),
    ],
)
def test_columns_without_a_name(
    tmp_path: Path, first: str, row: str, features: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    source = tmp_path / "f.csv"
    source.write_text("\n".join([first, *[row, row.replace("x", "y")] * 40]))
    found = get(source, "-1")
    assert (found.features, found.left_out, found.rejected) == (features, left_out, 0)
    assert found.classes == ("x", "y") and len(names()) == len(features)
