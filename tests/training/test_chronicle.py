"""What a training keeps beside losses and journal, as its reader finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.model import Mistake
from distsgd.engine.events import Progress
from distsgd.runs.history import History, HistoryReader
from distsgd.runs.metrics import read_metrics
from distsgd.runs.opened_run import open_run
from distsgd.runs.templates import templates
from distsgd.training import evaluate, resume, train
from distsgd.training.chronicle import Chronicle
from distsgd.training.measuring import Measured
from distsgd.training.results import Reporter

SETTINGS: dict[str, Any] = {"workers": 0, "batch_size": 128}


def history(run: Path) -> History:
    return HistoryReader(run).look()


def test_a_whole_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("sample", run_dir=run, epochs=3, tags=["first"], **SETTINGS)
    found = history(run)
    assert (found.state, found.command, found.user_tags) == ("finished", None, ["first"])
    assert found.updates == found.updates_planned
    assert sum(found.fleet["0"]["images"]) == found.examples
    assert sum(found.fleet["0"]["computing"]) <= found.seconds + 0.01
    assert found.staleness == {"0": found.updates}
    assert found.events == []
    classes = found.classes
    assert classes["epochs"] == [1, 2, 3]
    confusion = np.array(classes["confusion"])
    assert confusion.sum() == found.dataset["test"]
    shown = evaluate(run)
    assert classes["accuracy"][-1] == pytest.approx(list(shown.class_accuracy.values()))
    assert list(shown.class_accuracy) == classes["names"] == found.dataset["classes"]
    assert confusion.trace() / confusion.sum() == pytest.approx(found.epochs["test_accuracy"][-1])


def test_mistakes_are_examples_of_the_test_set(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("sample", run_dir=run, epochs=1, **SETTINGS)
    found = history(run)
    labels = open_run(run).dataset.test.labels_of(np.arange(found.dataset["test"]))
    mistakes = found.classes["surest_wrong"]
    assert len(mistakes) == 24
    assert all(labels[one["index"]] == one["label"] != one["predicted"] for one in mistakes)
    sure = [one["probability"] for one in mistakes]
    assert sure == sorted(sure, reverse=True)


def test_a_stop_and_a_resume_are_events(tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Stops(Reporter):
        def progress(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("sample", run_dir=run, epochs=2, reporter=Stops(), log_every=5, **SETTINGS)
    resume(run)
    found = history(run)
    assert [event["kind"] for event in found.events][-1] == "resumed"
    assert found.state == "finished" and len(found.epochs["epoch"]) == 2


def test_the_command_line_is_kept(tmp_path: Path, distsgd_here: Any) -> None:
    words = ("train", "--dataset", "sample", "--workers", 0, "--epochs", 1, "--tag", "a", "--tag",
             "b", "--run-dir", "run")  # fmt: skip
    done = distsgd_here(*words)
    assert done.returncode == 0, done.stderr
    found = history(tmp_path / "run")
    assert found.command == ["distsgd", *map(str, words)]
    assert found.user_tags == ["a", "b"]
    assert distsgd_here("runs", "tag", "run", "c", "--remove", "a").stdout == "b, c\n"


def test_templates_are_rows_of_w(tmp_path: Path) -> None:
    for model, units in (("linear", 10), ("mlp:12", 12)):
        run = tmp_path / model.replace(":", "")
        train("sample", run_dir=run, epochs=1, model=model, **SETTINGS)
        found = history(run)
        shades = templates(run, found.checkpoints[-1]["version"])
        assert shades is not None and shades.shape == (units, 32, 32, 3)
        assert shades.min(axis=(1, 2, 3)).max() == 0 and shades.max(axis=(1, 2, 3)).min() == 255
        (newest, *_) = open_run(run).checkpoints()
        row = newest.weights.ravel()[:3072].reshape(3, 32, 32)
        low, high = row.min(), row.max()
        expected = 255 * (row[1, 5, 7] - low) / (high - low)
        assert abs(int(shades[0, 5, 7, 1]) - expected) <= 0.6


def measured(classes: int) -> Measured:
    confusion = np.full((classes, classes), 1000)
    mistakes = tuple(Mistake(i, 0, 1, 0.9) for i in range(24))
    return Measured(1.0, 0.1, 0.5, confusion, mistakes)


@pytest.mark.parametrize("classes", [10, 128, 129, 1000, 1001])
def test_a_few_kb_an_epoch_whatever_the_number_of_classes(classes: int) -> None:
    written: list[dict[str, Any]] = []
    sizes: list[int] = []

    def write(content: dict[str, Any]) -> int:
        written.append(content)
        sizes.append(len(str(content)))
        return sizes[-1]

    chronicle = Chronicle(write, 0.0)
    epochs = 50
    for epoch in range(1, epochs + 1):
        chronicle.classes(epoch, epoch, measured(classes))
    chronicle.close()
    assert sum(sizes) <= (1 << 16) + 4096 * epochs + 2 * max(sizes, default=0)
    assert max(sizes, default=0) < 1 << 17
    if classes <= 1000:
        assert written[-1]["epoch"] == epochs
    else:
        assert written == []


def test_of_very_short_epochs_some_are_kept(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = []
    chronicle = Chronicle(lambda content: written.append(content) or 1, 0.0)
    for epoch in range(1, 10_001):
        chronicle.classes(epoch, epoch, measured(2))
    chronicle.close()
    assert 61 <= len(written) < 200
    assert written[-1]["epoch"] == 10_000


def test_records_are_read_by_the_reader_of_metrics(tmp_path: Path) -> None:
    """So that an older version, which knows of none of these, shows the run."""
    run = tmp_path / "run"
    train("sample", run_dir=run, epochs=1, **SETTINGS)
    kinds = {record["kind"] for record in read_metrics(run / "metrics.jsonl")}
    assert kinds == {"session", "progress", "epoch", "classes", "fleet", "ended"}
