from __future__ import annotations

import json
import zlib
from itertools import pairwise
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
        "train_accuracy": 0.4, "test_loss": 1.1, "test_accuracy": 0.5,
        "validation_loss": 1.0, "validation_accuracy": accuracy,
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


def fleet(seconds: float, images: int, generation: int = 0, **more: object) -> dict[str, object]:
    return {
        "kind": "fleet", "step": 1, "seconds": seconds, "generation": generation,
        "workers": {"0": [images, seconds / 2, 0.01, seconds / 4, "computing"], **more},
        "ages": {"0": images // 10, "1": 1}, "pushed": 8 * images,
    }  # fmt: skip


def test_workers_over_two_generations_of_processes(run: RunFolder) -> None:
    metrics = writer(run)
    metrics.write(fleet(1.0, 100))
    metrics.write(fleet(2.0, 250))
    metrics.write(fleet(3.0, 40, generation=1))
    metrics.write({"kind": "session", "step": 9, "seconds": 3.0, "resumed": True, "planned": 77})
    metrics.write(fleet(4.0, 10))
    found = HistoryReader(run.path).look()
    own = found.fleet["0"]
    assert own["seconds"] == [1.0, 2.0, 3.0, 4.0]
    assert own["images"] == [100, 150, 40, 10]
    assert own["computing"] == pytest.approx([0.5, 0.5, 1.5, 2.0])
    assert own["state"] == "computing"
    assert found.staleness == {"0": 25 + 4 + 1, "1": 3}
    assert found.bytes["pushed"] == [800, 2000, 2320, 2400]
    assert found.updates_planned == 77
    (event,) = found.events
    assert event == {"seconds": 3.0, "step": 9, "kind": "resumed",
                     "text": "resumed after update 9"}  # fmt: skip


def test_classes_and_mistakes(run: RunFolder) -> None:
    metrics = writer(run)
    for number, hits in ((1, 10), (2, 30), (2, 20)):  # the second epoch was repeated
        metrics.write({
            "kind": "classes", "epoch": number, "version": 10 * number,
            "confusion": [[hits, 100 - hits], [0, 0]], "wrong": [[7, 0, 1, 0.9]],
        })  # fmt: skip
    found = HistoryReader(run.path).look().classes
    assert found["names"] == ["cat", "dog"]
    assert found["epochs"] == [1, 2]
    assert found["accuracy"] == [[0.1, None], [0.2, None]]
    assert found["confusion"] == [[20, 80], [0, 0]]
    assert found["surest_wrong"] == [{"index": 7, "label": 0, "predicted": 1, "probability": 0.9}]


def test_a_long_run_is_read_in_bounded_size(run: RunFolder) -> None:
    metrics = writer(run)
    every = 30_000
    lines = [{**steps(step), "c": 0} for step in range(1, every + 1)]
    with metrics.path.open("a") as file:
        for line in lines:
            content = {name: value for name, value in line.items() if name != "c"}
            sum_ = zlib.crc32(json.dumps(content, sort_keys=True).encode())
            file.write(json.dumps({**content, "c": sum_}) + "\n")
    for number in range(1, 301):
        metrics.write(epoch(number, 0.5 if number == 77 else 0.1))
    reader = HistoryReader(run.path, most=100)
    found = reader.look()
    assert len(found.progress["step"]) == len(found.epochs["epoch"]) == 100
    for column, first, last in (
        (found.progress["step"], 1, every), (found.epochs["epoch"], 1, 300)
    ):  # fmt: skip
        assert (column[0], column[-1]) == (first, last)
        gaps = [b - a for a, b in pairwise(column)]
        assert min(gaps) > 0 and max(gaps) <= 3 * every // 100
    assert found.best == 770
    assert len(json.dumps(found.to_json())) < 60_000
    metrics.write(steps(every + 1))
    assert reader.look().progress["step"][-1] == every + 1


def test_damaged_lines_are_left_out_and_named(run: RunFolder) -> None:
    metrics = writer(run)
    metrics.write(steps(1))
    metrics.write({"kind": "fleet", "seconds": 1.0})
    metrics.write({"kind": "of a later version"})
    with metrics.path.open("ab") as file:
        file.write(b'{"kind": "epoch", "epoch": 1}\n\xff\xfe\n[]\n' + b"x" * 100_000 + b"\n")
    metrics = writer(run)
    metrics.write(steps(2))
    found = HistoryReader(run.path).look()
    assert found.progress["step"] == [1, 2]
    (event,) = found.events
    assert event["kind"] == "notice" and "5 lines of metrics.jsonl" in event["text"]


def test_a_file_that_was_replaced_is_read_anew(run: RunFolder) -> None:
    metrics, reader = writer(run), HistoryReader(run.path)
    metrics.write(steps(1))
    metrics.write(steps(2))
    reader.look()
    metrics.path.unlink()
    assert reader.look().progress["step"] == []
    metrics = writer(run)
    metrics.write(steps(5))
    assert reader.look().progress["step"] == [5]


def test_states(run: RunFolder) -> None:
    reader = HistoryReader(run.path)
    assert reader.look().state == "running"
    run.release()
    assert reader.look().state == "empty"
    writer(run).write(steps(1))
    assert reader.look().state == "crashed"
    run.write("report.json", {"status": "diverged", "problem": "the loss is nan"})
    found = reader.look()
    assert (found.state, found.error) == ("diverged", "the loss is nan")
    assert [event["kind"] for event in found.events] == ["stopped"]


def test_an_older_run(run: RunFolder) -> None:
    """Without sessions, what happened is in the journal, and ages are in the report."""
    metrics = writer(run)
    metrics.write(steps(10))
    metrics.write(steps(20))
    lines = [{"v": 15, "s": 14, "c": [], "q": []}, {"w": 4},
             {"r": 15, "e": 2, "n": 4, "s": 1, "h": "auto"}]  # fmt: skip
    (run.path / "journal.jsonl").write_text(
        "".join(json.dumps({**line, "d": "e" * 32}) + "\n" for line in lines)
    )
    run.write("report.json", {"status": "finished", "staleness": {"0": 20}, "steps": 20})
    run.release()
    found = HistoryReader(run.path).look()
    assert found.staleness == {"0": 20}
    assert [(e["kind"], e["step"]) for e in found.events] == [("scaled", 15), ("resumed", 15)]
    assert found.events[0]["seconds"] == pytest.approx(0.15)
    assert found.journal == {"head": "e" * 32, "lines": 3,
                             "bytes": (run.path / "journal.jsonl").stat().st_size}  # fmt: skip
