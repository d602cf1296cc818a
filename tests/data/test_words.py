"""Tables with words, missing numbers and weights: imported, trained on, and classified."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import Run

from distsgd import evaluate, predict, train
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.importing import given_rows
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.data.importing.source import ImportOptions
from distsgd.errors import DatasetError, SourceError, UsageError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay

ROWS = 300
RANDOM = np.random.default_rng(3)
SIZE = RANDOM.normal(100, 20, ROWS).round(2)
COLOUR = RANDOM.choice(["blue", "green", "red"], ROWS)
LABEL = np.where(COLOUR == "red", "yes", np.where(SIZE > 100, "yes", "no"))
WEIGHT = np.linspace(0.5, 2, ROWS).round(3)


def table(path: Path, **changed: object) -> Path:
    columns = {"size": SIZE, "colour": COLOUR, "weight": WEIGHT, "label": LABEL, **changed}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def opened(path: Path, name: str = "mine", **options: object) -> Dataset:
    given = ImportOptions(**{"label": "label", "weight": "weight", **options})  # type: ignore[arg-type]
    import_dataset(path, name, force=True, options=given)
    return open_dataset(name)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run on the table."""
    opened(table(tmp_path / "f.csv"))
    done = train(
        dataset="mine", workers=0, epochs=30, batch_size=16, learning_rate=0.1, verify=1.0,
        regularization=0.0, run_dir=tmp_path / "run",
    )  # fmt: skip
    assert done.test_accuracy > 0.9
    return done.run_dir


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_words_are_features_and_weights_none(tmp_path: Path, suffix: str) -> None:
    dataset = opened(table(tmp_path / f"f.{suffix}"))
    columns = dataset.manifest.columns
    assert columns is not None
    assert columns.feature_names == ("size", "colour=blue", "colour=green", "colour=red")
    rows = np.concatenate([part for part, _ in dataset.train.batches()])
    assert (rows[:, 1:].sum(axis=1) == 1).all() and abs(rows[:, 0].mean()) < 1e-6
    weights = dataset.train.weights
    assert weights is not None and set(weights) <= set(WEIGHT.astype(np.float32))
    assert dataset.manifest.mean_weight == pytest.approx(weights.mean())


def test_on_steps_words_are_0_and_255(tmp_path: Path) -> None:
    dataset = opened(table(tmp_path / "f.csv"), values="uint8")
    rows = np.concatenate([part for part, _ in dataset.train.batches()])
    assert rows.dtype == np.uint8 and (rows[:, 1:].sum(axis=1, dtype=int) == 255).all()
    assert train(dataset="mine", workers=0, arithmetic="exact", epochs=1).test_accuracy > 0


def test_exact_arithmetic_names_the_import_that_it_needs(tmp_path: Path) -> None:
    opened(table(tmp_path / "f.csv"))
    with pytest.raises(UsageError, match=r"rows are floats\. Import it again .*values='uint8'"):
        train(dataset="mine", workers=0, arithmetic="exact")


def test_a_run_on_floats_is_verified_replayed_and_audited(run: str) -> None:
    assert audit(run).complete
    assert replay(run).checkpoints > 1
    assert evaluate(run).accuracy > 0.9


def test_numbers_that_are_categories(tmp_path: Path) -> None:
    dataset = opened(table(tmp_path / "f.csv", size=np.arange(ROWS) % 3), category=("size",))
    assert dataset.manifest.columns is not None
    assert dataset.manifest.columns.words == (("0", "1", "2"), ("blue", "green", "red"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_text_is_no_category(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path / f"f.{suffix}", colour=[f"text {row}" for row in range(ROWS)])
    with pytest.raises(UsageError, match=r"column 'colour' has .* Leave it out: drop='colour'"):
        opened(path)


def test_missing_numbers_become_the_mean_if_asked(tmp_path: Path) -> None:
    size: list[object] = ["" if row % 5 == 0 else value for row, value in enumerate(SIZE)]
    colour = ["" if row % 7 == 0 else word for row, word in enumerate(COLOUR)]
    path = table(tmp_path / "f.csv", size=size, colour=colour)
    assert len(opened(path).train) < ROWS * 0.7
    dataset = opened(path, missing="mean")
    assert len(dataset.train) + len(dataset.test) == ROWS
    rows = np.concatenate([part for part, _ in dataset.train.batches()])
    assert (rows[:, 0] == 0).sum() > 30 and (rows[:, 1:].sum(axis=1) == 0).sum() > 20
    run = train(dataset="mine", workers=0, epochs=1, run_dir=tmp_path / "run").run_dir
    assert len(predict(run, path)) == ROWS


@pytest.mark.parametrize(
    ("weight", "error"), [(np.zeros(ROWS), DatasetError), (-WEIGHT, DatasetError)]
)
def test_weights_that_cannot_be_used(
    tmp_path: Path, weight: np.ndarray, error: type[Exception]
) -> None:
    with pytest.raises(error, match="weight"):
        opened(table(tmp_path / "f.csv", weight=weight))


@pytest.mark.parametrize("name", ["missing", "values"])
def test_options_that_do_not_exist(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be what"):
        ImportOptions(**{name: "what"})  # type: ignore[arg-type]


def test_another_dataset_is_made_into_the_features_of_the_run(run: str, tmp_path: Path) -> None:
    """Its spread, words and the order of its columns are others."""
    some = SIZE > 90
    path = tmp_path / "other.csv"
    lines = [f"{c},{w},{s},{n}" for c, w, s, n, keep in zip(
        COLOUR, LABEL, SIZE, WEIGHT, some, strict=True) if keep and c != "green"]  # fmt: skip
    path.write_text("\n".join(["colour,label,size,weight", *lines]))
    for values in (None, "uint8"):
        opened(path, "other", values=values)
        own = [prediction.label for prediction in predict(run, path)]
        right = np.mean([name == line.split(",")[1] for name, line in zip(own, lines, strict=True)])
        found = [evaluate(run, dataset="other", split=split) for split in ("train", "test")]
        total = sum(one.accuracy * one.examples for one in found)
        assert total / len(lines) == pytest.approx(right, abs=0.02)


# --- what is classified


def test_rows_that_cannot_be_classified_are_listed(run: str, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("colour,size\nred,90\nred,x\nblue,1,2\npink,130\nblue,\n")
    bad: list[tuple[str, str]] = []
    found = predict(run, path, rejected=bad)
    assert [one.image for one in found] == [f"{path} row 1", f"{path} row 4"]
    assert [one.label for one in found] == ["yes", "yes"]
    assert sorted(where for where, _ in bad) == [f"{path} row {n}" for n in (2, 3, 5)]
    with pytest.raises(SourceError, match="row 2"):
        predict(run, path)


def test_rows_of_all_kinds_of_files_are_classified_alike(tmp_path: Path) -> None:
    numbers = RANDOM.normal(size=(60, 3))
    labels = np.where(numbers[:, 0] > 0, "a", "b")
    np.savez(tmp_path / "f.npz", x=numbers, y=labels)
    import_dataset(tmp_path / "f.npz", "mine")
    run = train(dataset="mine", workers=0, epochs=2, batch_size=8, run_dir=tmp_path / "run").run_dir
    (tmp_path / "f.csv").write_text("\n".join(",".join(map(repr, map(float, r))) for r in numbers))
    pq.write_table(pa.table({"v": list(numbers)}), tmp_path / "f.parquet")
    expected = [one.probabilities for one in predict(run, numbers)]
    for suffix in ("npz", "csv", "parquet"):
        path = tmp_path / f"f.{suffix}"
        assert [one.probabilities for one in predict(run, path)] == expected
    numbers[3, 1] = np.nan
    np.savez(tmp_path / "g.npz", x=numbers)
    bad: list[tuple[str, str]] = []
    assert len(predict(run, tmp_path / "g.npz", rejected=bad)) == 59
    assert bad == [(f"{tmp_path / 'g.npz'} row 4", "it has a number that is not finite")]
    np.savez(tmp_path / "h.npz", z=numbers[:, :2])
    with pytest.raises(UsageError, match=r"no array of shape \(rows, 3\)"):
        predict(run, tmp_path / "h.npz")


def test_the_command_reads_stdin_and_writes_a_file(
    run: str, tmp_path: Path, distsgd_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "colour,size\nred,90\nred,x\npink,130\n"
    out = tmp_path / "out.csv"

    def said(*arguments: str) -> tuple[int, str, str]:
        stdin = SimpleNamespace(buffer=io.BytesIO(text.encode()))
        monkeypatch.setattr(given_rows, "sys", SimpleNamespace(stdin=stdin))
        done = distsgd_here("predict", run, "-", *arguments)
        return done.returncode, done.stdout, done.stderr

    code, shown, rest = said("--json")
    content = json.loads(shown)
    assert (code, content["classified"]) == (0, 2)
    assert [one["where"] for one in content["rejected"]] == ["stdin row 2"]
    assert "skipped stdin row 2: column 'size'" in rest and "2 rows classified, 1 skipped" in rest
    assert "1 words of column 'colour' are unknown" in rest
    code, shown, _ = said("--out", str(out), "--top", "1")
    assert (code, shown) == (0, "") and len(out.read_text().splitlines()) == 3
    assert said("--strict")[0] == 1
    text = "colour,size\nred,x\n"
    code, _, rest = said("--out", str(out))
    assert code == 1 and "no row can be classified" in rest
    assert len(out.read_text().splitlines()) == 3  # as it was


def test_words_are_found_again_in_rows() -> None:
    columns = Columns(names=("c",), low=(0,), high=(0,), mean=(0,), spread=(1,), words=(("a",),))
    np.testing.assert_array_equal(
        columns.numbers(columns.rows(np.array([[0.0], [-1]]))), [[0], [-1]]
    )
