from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import on_sample

from distsgd.runs import MetricsWriter
from distsgd.runs.folder import RunFolder, create_run
from distsgd.runs.history import HistoryReader

DATASET = {"name": "sample", "digest": "d", "train": 1000, "test": 200,
           "classes": ["cat", "dog"], "shape": [3, 2, 2]}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", on_sample(epochs=2, batch_size=100), DATASET)


def writer(run: RunFolder) -> MetricsWriter:
    return MetricsWriter(run.path / "metrics.jsonl")


def steps(step: int, seconds: float | None = None, **fields: float) -> dict[str, object]:
    return {
        "kind": "progress", "step": step, "epoch": (step - 1) // 10, "loss": 1 / step,
        "accuracy": 0.5, "learning_rate": 0.1, "examples_seen": 100 * step,
        "seconds": step / 100 if seconds is None else seconds, **fields,
    }  # fmt: skip


def epoch(number: int, accuracy: float = 0.3, **fields: object) -> dict[str, object]:
    return {
        "kind": "epoch", "version": 10 * number, "epoch": number, "train_loss": 1.0,
        "train_accuracy": 0.4, "test_loss": 1.1, "test_accuracy": accuracy,
        "seconds": number / 10, **fields,
    }  # fmt: skip


def test_progress_and_epochs(run: RunFolder) -> None:
    metrics = writer(run)
    for step in range(1, 21):
        metrics.write(steps(step))
    metrics.write(epoch(1))
    metrics.write(epoch(2, 0.2))
    found = HistoryReader(run.path).look()
    assert found.state == "running"
    assert found.progress["step"] == list(range(1, 21))
    assert found.progress["epoch"][-1] == 2.0
    assert found.progress["images_per_second"] == pytest.approx([10_000.0] * 20)
    assert found.epochs["step"] == [10, 20]
    assert (found.updates, found.updates_planned, found.examples) == (20, 20, 2000)
    assert found.best == 10
    assert found.chosen == {"dataset": "sample", "epochs": 2, "batch_size": 100}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_reader_goes_on_where_it_was(run: RunFolder) -> None:
    metrics, reader = writer(run), HistoryReader(run.path)
    assert reader.look().progress["step"] == []
    metrics.write(steps(1))
    assert reader.look().progress["step"] == [1]
    line = json.dumps(steps(2))
    with metrics.path.open("a") as file:
        file.write(line[:40])
    assert reader.look().progress["step"] == [1]  # half a line
    metrics = writer(run)  # which is removed, as after a kill
    metrics.write(steps(3))
    assert reader.look().progress["step"] == [1, 3]
