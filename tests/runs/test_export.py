"""What a run is exported to predicts what `distsgd predict` does, and holds the same numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import Run, on_sample

import distsgd
from distsgd.data.dataset import Dataset
from distsgd.errors import DistsgdError, RunError, UsageError, import_optional
from distsgd.runs.chosen import chosen_model
from distsgd.runs.export import export_run, exported
from distsgd.runs.folder import find_run
from distsgd.runs.metrics import metrics_columns

KINDS = {
    "softmax": {"loss": "softmax"},
    "svm": {"loss": "svm"},
    "two layers": {"model": "mlp:12"},
    "exact": {"arithmetic": "exact"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of each kind, by name, and one on a table of two classes."""
    top = tmp_path_factory.mktemp("runs")
    found = {}
    for name, settings in KINDS.items():
        config = on_sample(workers=0, epochs=2, log_every=2, **settings)
        found[name] = distsgd.train(config=config, run_dir=top / name).run_dir
    return found


@pytest.fixture(scope="module")
def pixels(sample: Dataset) -> Any:
    """1,000 images, the 400 test images among them, shape (1000, 3072)."""
    parts = [images for split in (sample.test, sample.train) for images, _ in split.batches()]
    return np.concatenate(parts)[:1000]


def labels(run: str, rows: Any) -> list[str]:
    found = [prediction.label for prediction in distsgd.predict(run, rows)]
    assert len(set(found)) >= 2
    return found


def by_onnx(path: Path, rows: Any) -> list[str]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = (len(rows), *given.shape[1:])
    label, scores, probabilities = session.run(None, {given.name: rows.reshape(shape)})
    assert (scores.argmax(axis=1) == label).all()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    return [classes[i] for i in label]


def by_numpy(path: Path, rows: Any) -> list[str]:
    with np.load(path, allow_pickle=False) as found:
        x = (rows - found["mean"]) / found["scale"]
        scores = x @ found["W"].T + found["b"]
        if "W2" in found:
            scores = np.maximum(0, scores) @ found["W2"].T + found["b2"]
        return [str(found["classes"][i]) for i in scores.argmax(axis=1)]


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_predicts_the_same(
    kind: str, runs: dict[str, str], pixels: Any, tmp_path: Path
) -> None:
    written = export_run(runs[kind], "npz", tmp_path / "run.npz")
    assert by_numpy(Path(written.path), pixels) == labels(runs[kind], pixels)
    with np.load(written.path, allow_pickle=False) as found:
        columns = metrics_columns(Path(runs[kind]) / "metrics.jsonl")
        accuracy = [a for a in columns["test_accuracy"] if a is not None]
        assert found["epoch.test_accuracy"].tolist() == accuracy and len(accuracy) == 2
        assert found["progress.loss"].tolist() == [x for x in columns["loss"] if x is not None]
        assert len(found["progress.loss"]) > 2 and "progress.test_loss" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_predicts_the_same(
    kind: str, runs: dict[str, str], pixels: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    written = export_run(runs[kind], "onnx", tmp_path / "run.onnx")
    assert by_onnx(Path(written.path), pixels) == labels(runs[kind], pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learn_predicts_the_same(
    kind: str, runs: dict[str, str], pixels: Any, tmp_path: Path
) -> None:
    skops = pytest.importorskip("skops.io")
    written = export_run(runs[kind], "sklearn", tmp_path / "run.skops")
    assert skops.get_untrusted_types(file=written.path) == []
    pipeline = skops.load(written.path)
    assert list(pipeline.predict(pixels)) == labels(runs[kind], pixels)
    if kind == "softmax":
        found = distsgd.predict(runs[kind], pixels[:5], top=10)
        order = [list(pipeline.classes_).index(name) for name in found[0].classes]
        ours = np.array(found[0].probabilities)
        assert np.allclose(pipeline.predict_proba(pixels[:1])[0][order], ours, atol=1e-4)


@pytest.fixture(scope="module", params=["float32", "uint8"])
def table(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """A run on two classes of rows of numbers, and 300 such rows."""
    from distsgd.data.importing.import_dataset import ImportOptions, import_dataset

    top = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 3)) * [1, 100, 0.01]
    names = np.where(rows @ [1, 0.01, -100] > 0, "yes", "no")
    lines = [f"{a},{b},{c},7,{d}\n" for (a, b, c), d in zip(rows, names, strict=True)]
    (top / "rows.csv").write_text("a,b,c,same,answer\n" + "".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTSGD_CACHE", str(top / "cache"))
        import_dataset(
            str(top / "rows.csv"),
            "rows",
            options=ImportOptions(label="answer", values=request.param),
        )
        run = distsgd.train(dataset="rows", workers=0, epochs=3, run_dir=top / "run").run_dir
    wide = random.normal(size=(300, 4)) * [1.5, 150, 0.015, 1]  # beyond what was seen, too
    return run, wide


def test_two_classes_of_columns(table: tuple[str, Any], tmp_path: Path) -> None:
    run, rows = table
    expected = labels(run, rows)
    assert set(expected) == {"yes", "no"}
    written = export_run(run, "npz", tmp_path / "run.npz")
    with np.load(written.path) as found:
        if "bounds" in found:
            steps = (np.clip(rows, *found["bounds"]) - found["low"]) * found["factor"]
        else:
            steps = np.rint(np.clip((rows - found["low"]) * found["factor"], 0, 255))
        assert list(found["columns"]) == ["a", "b", "c", "same"]
    assert by_numpy(Path(written.path), steps) == expected
    if pytest.importorskip("onnx"):
        written = export_run(run, "onnx", tmp_path / "run.onnx")
        assert by_onnx(Path(written.path), rows) == expected
    if skops := pytest.importorskip("skops.io"):
        written = export_run(run, "sklearn", tmp_path / "run.skops")
        assert list(skops.load(written.path).predict(rows)) == expected


def test_metrics_as_csv_and_arrow(runs: dict[str, str], tmp_path: Path) -> None:
    run = runs["softmax"]
    columns = metrics_columns(Path(run) / "metrics.jsonl")
    assert columns["epoch"][-1] == 2 and columns["kind"][-1] == "epoch"
    with Path(export_run(run, "csv", tmp_path / "run.csv").path).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) if row["loss"] else None for row in rows] == columns["loss"]
    written = export_run(run, "arrow", tmp_path / "run.arrow")
    with pa.memory_map(written.path) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.to_pydict() == columns and written.updates is None
    assert json.loads(table.schema.metadata[b"settings"])["loss"] == "softmax"


def test_checkpoints_by_name(runs: dict[str, str], tmp_path: Path) -> None:
    folder = find_run(runs["softmax"])
    last, first = chosen_model(folder), chosen_model(folder, "0")
    assert last.version > first.version == 0
    with pytest.raises(RunError, match=r"without rows held out.*--validation 0\.1"):
        chosen_model(folder, "best")
    assert exported(first).version == 0
    for which in ("newest", "-1", 1.5, True, "1" * 30):
        with pytest.raises(UsageError, match="cannot be"):
            chosen_model(folder, which)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="no checkpoint after 7 updates"):
        chosen_model(folder, 7)
    with pytest.raises(UsageError, match="has metrics and no weights"):
        export_run(folder.path, "csv", checkpoint="best")
    with pytest.raises(UsageError, match="Give one of csv, arrow, npz, onnx, sklearn"):
        export_run(folder.path, "pickle")


def test_by_the_command_line(runs: dict[str, str], distsgd_here: Run, tmp_path: Path) -> None:
    done = distsgd_here("runs", "export", runs["svm"], "--to", "npz", "--checkpoint", "last")
    assert done.returncode == 0 and (tmp_path / "svm.npz").is_file(), done.stderr
    done = distsgd_here("runs", "export", runs["svm"], "--to", "csv", "--out", "m.csv", "--json")
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "m.csv").stat().st_size
    done = distsgd_here("runs", "export", runs["svm"], "--to", "xls")
    assert done.returncode == 2 and "--to cannot be xls" in done.stderr


def test_what_is_not_installed_is_asked_for() -> None:
    with pytest.raises(DistsgdError, match=r"nosuch is not installed.*distsgd\[onnx\]"):
        import_optional("nosuch.part", "onnx")
