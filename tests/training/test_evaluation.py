"""A run measured on other datasets: their columns, steps and classes are not those of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Run

from distsgd import evaluate, predict, resume, train
from distsgd.config.sources import config_from
from distsgd.data.columns import Columns
from distsgd.data.conversion import Conversion
from distsgd.data.dataset import Dataset
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import Manifest, Shard
from distsgd.errors import RunError, UsageError
from distsgd.lecture.experiments import landscape
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.simulation.simulate import simulate

Rows = Sequence[tuple[object, ...]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))


def rows_of_two_classes(count: int = 300) -> Rows:
    """Columns u and v: around (1, 3) of the class lo, and around (3, 1) of hi."""
    random = np.random.default_rng(0)
    return [
        (*random.normal((3, 1) if row % 2 else (1, 3), 0.3).round(4), "hi" if row % 2 else "lo")
        for row in range(count)
    ]


def put(folder: Path, name: str, rows: Rows, names: str = "u,v,label") -> Path:
    """Import rows under a name."""
    path = folder / f"{name}.csv"
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n")
    import_dataset(path, name, force=True)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on the dataset A."""
    put(tmp_path, "A", rows_of_two_classes())
    folder = tmp_path / "run"
    train(dataset="A", workers=0, epochs=20, batch_size=16, slot_size=16, run_dir=folder)
    return folder


OTHERS = {
    "far out": (lambda rows: [*rows, *[(40, 40, "hi")] * 12], "u,v,label"),
    "other order": (lambda rows: [(v, u, name) for u, v, name in rows], "v,u,label"),
    "more columns": (lambda rows: [(name, 7, v, u) for u, v, name in rows], "label,w,v,u"),
}


@pytest.mark.parametrize("other", list(OTHERS))
def test_another_dataset_is_put_on_the_steps_and_columns_of_the_run(
    run: Path, tmp_path: Path, other: str
) -> None:
    make, names = OTHERS[other]
    rows = make(rows_of_two_classes())
    source = put(tmp_path, "B", rows, names)
    place = names.split(",").index("label")
    said = [one.label == row[place] for one, row in zip(predict(run, source), rows, strict=True)]
    assert np.mean(said) > 0.98
    for split in ("train", "test"):
        assert evaluate(run, dataset="B", split=split).accuracy > 0.98
    own, over = (landscape(run=str(run), dataset=name, workers=0, points=2) for name in "AB")
    assert over.lowest == pytest.approx(own.lowest, rel=0.5)


def test_columns_and_classes_that_the_run_does_not_know_are_refused(
    run: Path, tmp_path: Path
) -> None:
    rows = rows_of_two_classes()
    put(tmp_path, "B", rows, "u,w,label")
    with pytest.raises(UsageError, match=r"no column v, which .* Its columns: u, w"):
        evaluate(run, dataset="B")
    put(tmp_path, "C", [(u, v, name.replace("lo", "low")) for u, v, name in rows])
    with pytest.raises(UsageError, match=r"classes that the run was not trained on: low"):
        evaluate(run, dataset="C")
    with pytest.raises(UsageError, match=r"of shape 2, but those of .* are 3x32x32"):
        landscape(run=str(run), dataset="sample", workers=0)


def test_another_dataset_under_the_old_name_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    put(tmp_path, "A", [*rows_of_two_classes(), *[(40, 40, "hi")] * 12])
    for use in (evaluate, resume, audit, replay):
        with pytest.raises(RunError, match="no longer the dataset"):
            use(run)
    with pytest.raises(RunError, match="no longer the dataset"):
        landscape(run=str(run), workers=0)
    assert evaluate(run, dataset="A").accuracy > 0.98


def test_a_dataset_that_has_moved_is_found_by_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(run)
    (tmp_path / "cache").rename(tmp_path / "moved")
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "moved"))
    assert evaluate(run) == before and audit(run).complete


def manifest(scale: Columns | None, features: int = 1, classes: str = "ab") -> Manifest:
    shard = Shard("train.arrow", 1, 1, "")
    return Manifest(
        name="B", shape=(features,), classes=tuple(classes), pixel_sums=(0,) * features,
        train=(shard,), test=(shard,), columns=scale,
    )  # fmt: skip


def column(low: float, high: float) -> Columns:
    return Columns(names=("x",), low=(low,), high=(high,))


@pytest.mark.parametrize("there", [column(0, 8), column(-1, 1.5), None, column(0.5, 0.5)])
def test_a_step_becomes_that_of_the_same_number(there: Columns | None) -> None:
    ours = column(0, 4)
    steps = np.arange(256, dtype=np.uint8)[:, None]
    low, high = (there.low[0], there.high[0]) if there else (0, 255)
    found = Conversion((1,), "ab", ours, manifest(there), "B").rows(steps)
    assert (found == ours.rows(low + steps * ((high - low) / 255))).all()


def test_steps_that_are_too_coarse_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a step of its column 'x' is 39\.2, and the whole range"):
        Conversion((1,), "ab", column(0, 4), manifest(column(0, 9999)), "B")


def test_labels_are_those_of_the_run() -> None:
    there = Conversion((1,), "abc", None, manifest(None, classes="cb"), "B")
    assert there.labels(np.array([0, 1, 1], dtype=np.uint8)).tolist() == [2, 1, 1]


def test_a_class_without_test_rows_has_a_dash(distsgd: Run, tmp_path: Path) -> None:
    few = [f"{row % 7},{row % 5},{'ab'[row % 2]}" for row in range(60)]
    (tmp_path / "few.csv").write_text("\n".join(["u,v,label", *few]))
    (tmp_path / "more.csv").write_text("\n".join(["u,v,label", "9,9,rare", *few]))
    found = import_dataset(tmp_path / "more.csv", "rare", test=tmp_path / "few.csv")
    assert found.notices == ("no test rows of the classes: rare",)
    train(dataset="rare", workers=0, epochs=1, batch_size=16, run_dir=tmp_path / "run")
    assert np.isnan(evaluate(tmp_path / "run").class_accuracy["rare"])
    done = distsgd("evaluate", tmp_path / "run")
    assert done.returncode == 0 and "nan" not in done.stdout
    assert any(line.split() == ["rare", "-"] for line in done.stdout.splitlines())


# --- rows in memory


class Table:
    """As much of a table of pandas as is asked for."""

    def __init__(self, **columns: object) -> None:
        self.values, self.columns = columns, list(columns)

    def __getitem__(self, names: list[str]) -> Table:
        return Table(**{name: self.values[name] for name in names})

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(list(self.values.values())).T


def test_rows_in_memory_are_classified_as_those_of_a_file(run: Path, tmp_path: Path) -> None:
    rows = rows_of_two_classes()
    from_file = [one.label for one in predict(run, tmp_path / "A.csv")]
    numbers = np.array([row[:2] for row in rows], dtype=np.float64)
    for given in (numbers, Table(v=numbers[:, 1], other=numbers[:, 0], u=numbers[:, 0])):
        assert [one.label for one in predict(run, given)] == from_file  # type: ignore[arg-type]
    (one,) = predict(run, numbers[7])
    assert (one.label, one.image) == (from_file[7], "row 1")


def test_images_in_memory_are_classified(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(dataset="sample", workers=0, epochs=1, run_dir=run)
    ((pixels, labels),) = Dataset(SAMPLE).test.batches()
    found = [one.label for one in predict(run, pixels, top=1)]
    names = Dataset(SAMPLE).manifest.classes
    right = np.mean([name == names[label] for name, label in zip(found, labels, strict=True)])
    assert right == pytest.approx(result.test_accuracy)
    assert [one.label for one in predict(run, pixels.reshape(-1, 3, 32, 32))] == found
    assert predict(run, pixels[0].reshape(3, 32, 32))[0].label == found[0]
    with pytest.raises(UsageError, match="whole numbers from 0 to 255"):
        predict(run, pixels / 255)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((4, 3)), r"of shape \(4, 3\) .* Give shape \(rows, 2\)"),
        (np.zeros((0, 2)), "cannot be classified"),
        (np.full((2, 2), np.nan), "that are not finite"),
        (np.full((2, 2), "a"), "Give numbers"),
        (Table(u=[1.0]), r"of shape \(1, 1\)"),
        ([np.zeros(2)], "a ndarray cannot be classified"),
        ([], "nothing to classify"),
        (3, "a int cannot be classified"),
        (None, "a NoneType cannot be classified"),
    ],
)
def test_what_cannot_be_classified_is_said_in_words(run: Path, given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        predict(run, given)


@pytest.mark.parametrize("given", [np.zeros((3, 2)), Table(u=[1.0]), 3])
def test_rows_in_memory_are_no_dataset(run: Path, given: Any) -> None:
    for use in (
        lambda: train(dataset=given),
        lambda: evaluate(run, dataset=given),
        lambda: landscape(given),
        lambda: simulate(config_from({"dataset": given})),
    ):
        with pytest.raises(UsageError, match=r"`distsgd data import`|cannot be a .* alone"):
            use()
