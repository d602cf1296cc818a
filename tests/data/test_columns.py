"""Which columns are features, what is said of them, and how their ranges are chosen."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import Run

from distsgd.data.columns import Columns
from distsgd.data.find import find_dataset
from distsgd.data.importing.column_survey import ColumnSurvey
from distsgd.data.importing.import_dataset import Imported, import_dataset
from distsgd.data.importing.source import ImportOptions
from distsgd.data.importing.spool import ColumnStatistics
from distsgd.data.manifest import read_manifest
from distsgd.errors import UsageError
from distsgd.training.training import train

ROWS = 400
RANDOM = np.random.default_rng(0)
LABELS = np.arange(ROWS) % 2
NOISE = RANDOM.normal(size=ROWS)


def csv(path: Path, **columns: Iterable[Any]) -> Path:
    lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *lines]))
    return path


def get(path: Path, **options: Any) -> Imported:
    return import_dataset(path, "mine", force=True, options=ImportOptions(**options))


# --- an index


@pytest.mark.parametrize("index", ["__index_level_0__", "patient"])
def test_the_index_of_a_pandas_table_is_no_feature(tmp_path: Path, index: str) -> None:
    pandas = json.dumps({"index_columns": [index, {"kind": "range"}], "columns": []})
    columns = {"a": NOISE, "label": np.sort(LABELS), index: np.arange(ROWS)}
    table = pa.table(columns).replace_schema_metadata({"pandas": pandas})
    pq.write_table(table, tmp_path / "f.parquet")
    found = get(tmp_path / "f.parquet")
    assert (found.features, found.left_out, found.label) == (("a",), (index,), "label")
    result = train(dataset="mine", workers=0, epochs=10, batch_size=16)
    assert result.test_accuracy < 0.8  # noise
    assert get(tmp_path / "f.parquet", label=index, drop=("label",)).features == ("a",)


def test_metadata_that_is_no_table_of_pandas_is_passed_over(tmp_path: Path) -> None:
    table = pa.table({"a": NOISE, "label": LABELS})
    for content in ("", "[]", "{}", '{"index_columns": 3}', '{"index_columns": [null, "gone"]}'):
        pq.write_table(table.replace_schema_metadata({"pandas": content}), tmp_path / "f.parquet")
        assert get(tmp_path / "f.parquet").features == ("a",)


@pytest.mark.parametrize(
    ("column", "counts"),
    [
        (np.arange(ROWS), True),
        (np.arange(ROWS)[::-1] + 1000, True),
        (RANDOM.permutation(ROWS), True),
        (np.arange(ROWS) / 2, False),
        (np.arange(ROWS) // 2, False),
        (np.arange(ROWS) * 1000, False),
        (NOISE, False),
    ],
)
def test_a_column_that_counts_the_rows_is_told_of(
    tmp_path: Path, column: np.ndarray, counts: bool
) -> None:
    found = get(csv(tmp_path / "f.csv", number=column, a=NOISE, label=LABELS))
    assert [("'number'" in one and "drop" in one) for one in found.notices] == [True] * counts


def test_an_import_says_which_columns_are_features(distsgd: Run, tmp_path: Path) -> None:
    source = csv(tmp_path / "f.csv", id=range(ROWS), a=NOISE, b=NOISE, kind=LABELS)
    done = distsgd("data", "import", source, "--name", "mine", "--label", "kind")
    assert done.returncode == 0 and "Features: id, a, b, the classes in kind" in done.stdout
    assert "note: column 'id' numbers the rows" in done.stderr


# --- which column is which


def many(path: Path) -> Path:
    numbers = {f"x{i}": NOISE for i in range(30)}
    return csv(path, **numbers, Kind=[f"k{i}" for i in LABELS])


def test_the_likely_label_is_always_shown(tmp_path: Path) -> None:
    says = r"probably label='Kind'\. .* x11, \.\.\. \(31 in all\), .*Kind"
    with pytest.raises(UsageError, match=says):
        get(many(tmp_path / "f.csv"))
    table = pa.table({"kind": list(map(str, LABELS)), **{f"x{i}": NOISE for i in range(30)}})
    pq.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(UsageError, match="probably label='kind'"):
        get(tmp_path / "f.parquet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": "kind"}, "Did you mean label='Kind'?"),
        ({"label": "Kinds"}, "Did you mean label='Kind'?"),
        ({"label": "Kind", "drop": ("X3",)}, "Did you mean drop='x3'?"),
        ({"label": "Kind", "drop": ("length",)}, "no column 'length'. Its columns: x0"),
    ],
)
def test_a_name_that_is_nearly_right_gets_a_hint(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as found:
        get(many(tmp_path / "f.csv"), **options)
    assert says in str(found.value)


def test_columns_of_dates_are_named_all_at_once(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1 + row % 12, 3) for row in range(ROWS)]
    columns = {"a": NOISE, "b": days, "the day": days, "label": LABELS}
    says = r"columns 'b', 'the day' .* hold dat.* not numbers.* drop=\('b', 'the day'\)"
    with pytest.raises(UsageError, match=says):
        get(csv(tmp_path / "f.csv", **columns))
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(UsageError, match=says):
        get(tmp_path / "f.parquet")


# --- ranges


def test_one_number_far_out_does_not_destroy_a_column(tmp_path: Path) -> None:
    x = np.where(LABELS, 1, -1) + 0.3 * NOISE
    x[7] = 1e9
    found = get(csv(tmp_path / "f.csv", x=x, label=LABELS))
    assert any("'x': a few outliers are clipped" in notice for notice in found.notices)
    assert train(dataset="mine", workers=0, epochs=10, batch_size=16).test_accuracy > 0.97


@pytest.mark.parametrize("far", [99, 250])
def test_one_whole_number_far_out_does_not_destroy_the_others(tmp_path: Path, far: int) -> None:
    x = np.rint(3 + 3 * LABELS + 0.5 * NOISE).astype(int)
    x[7] = far
    found = get(csv(tmp_path / "f.csv", x=x, y=LABELS * 0, label=LABELS))
    assert found.notices == ("column 'x': a few outliers are clipped "
                             "(`distsgd data info` shows the range)",)  # fmt: skip
    assert train(dataset="mine", workers=0, epochs=10, batch_size=16).test_accuracy > 0.9


def survey(column: np.ndarray) -> tuple[Columns, Columns, list[str]]:
    """The range of a column by its deviation, the one that is chosen, and what is said."""
    values = np.asarray(column, dtype=np.float64)[:, None]
    statistics = ColumnStatistics(1)
    statistics.add(values)
    usual = statistics.scale(("x",), alike=False)
    look = ColumnSurvey(values, len(values), ("x",))
    chosen = look.without_outliers(usual)
    return usual, chosen, list(look.notices(chosen))


SPARSE = np.where(RANDOM.random(ROWS) < 0.05, RANDOM.exponential(size=ROWS), 0.0)


@pytest.mark.parametrize(
    "column",
    [
        NOISE, np.exp(NOISE), SPARSE, SPARSE > 0, np.full(ROWS, 3.5), np.arange(5) * 1e6,
        RANDOM.random(ROWS) < 0.003, np.where(LABELS, 1, 1e-5 * NOISE),
    ],
)  # fmt: skip
def test_ranges_that_are_fine_stay_as_they_were_to_the_bit(column: np.ndarray) -> None:
    usual, chosen, notices = survey(column)
    assert chosen == usual and not notices


@pytest.mark.parametrize("column", [NOISE, SPARSE, NOISE[:50], np.repeat(7.5, ROWS) + 1e-3 * NOISE])
@pytest.mark.parametrize("far", [1e3, 1e9, -1e30, 1e99])
def test_ranges_hold_against_a_number_far_out(column: np.ndarray, far: float) -> None:
    bulk = np.quantile(column[column != 0], [0.1, 0.9])
    _, chosen, notices = survey(np.append(column, far))
    steps = chosen.rows(bulk[:, None])[:, 0].astype(int)
    assert steps[1] - steps[0] >= 25 and "outliers" in notices[0]


def test_a_column_of_which_nearly_all_rows_fall_on_one_step_is_told_of() -> None:
    missing = np.where(np.arange(ROWS) % 8 == 0, -1e6, NOISE)
    assert "88% of the rows fall on one of its 256 steps" in survey(missing)[2][0]


def test_one_pixel_far_out_does_not_destroy_images(tmp_path: Path) -> None:
    images = RANDOM.random((60, 1, 4, 4))
    images[3, 0, 1, 2] = 1e12
    np.savez(tmp_path / "f.npz", x=images, y=LABELS[:60])
    get(tmp_path / "f.npz")
    scale = read_manifest(find_dataset("mine")).columns
    assert scale is not None and scale.high[0] < 10
