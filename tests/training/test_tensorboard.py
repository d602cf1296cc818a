"""What TensorBoard's own reader finds in the events of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Run, on_sample

import distsgd
from distsgd.runs.metrics import read_metrics


@pytest.mark.filterwarnings("ignore")
def test_read_back_by_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="distsgd[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = on_sample(workers=0, epochs=2, log_every=2)
    result = distsgd.train(config=config, callbacks=[distsgd.TensorBoard(tmp_path)])
    found = EventAccumulator(str(tmp_path / Path(result.run_dir).name))
    found.Reload()
    records = read_metrics(Path(result.run_dir) / "metrics.jsonl")
    for kind, tag, name in (
        ("progress", "loss/minibatch", "loss"),
        ("progress", "accuracy/minibatch", "accuracy"),
        ("progress", "learning_rate", "learning_rate"),
        ("epoch", "loss/test", "test_loss"),
        ("epoch", "accuracy/test", "test_accuracy"),
        ("epoch", "loss/train", "train_loss"),
    ):
        rows = [record for record in records if record["kind"] == kind]
        events = found.Scalars(tag)
        steps = [row["step" if kind == "progress" else "version"] for row in rows]
        assert [event.step for event in events] == steps and len(rows) >= 2
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows])
    assert "images_per_second" in found.Tags()["scalars"]
    (settings,) = found.Tensors("settings/text_summary")
    assert b"| learning_rate |" in settings.tensor_proto.string_val[0]
    (ended,) = found.Tensors("result/text_summary")
    assert result.weights_sha256.encode() in ended.tensor_proto.string_val[0]


def test_by_the_command_line(distsgd_here: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="distsgd[tensorboard] is not installed")
    words = ("train", "--dataset", "sample", "--workers", 0, "--epochs", 1, "--run-dir", "a-run")
    done = distsgd_here(*words, "--tensorboard", "events")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["a-run"]
    (tmp_path / "file").write_text("")
    done = distsgd_here(*words[:-1], "another", "--tensorboard", "file")
    assert done.returncode == 1 and "file" in done.stderr and not (tmp_path / "another").exists()
