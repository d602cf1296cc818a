"""Rows held out for validation: measured after each epoch, and used for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Run, on_sample

import distsgd
from distsgd.errors import UsageError
from distsgd.runs.metrics import epoch_rows
from distsgd.runs.opened_run import open_run


def test_held_out_rows_are_measured_and_can_be_chosen_by(distsgd_here: Run, tmp_path: Path) -> None:
    config = on_sample(workers=0, epochs=2, validation=0.2, verify=0.3)
    found = distsgd.train(config=config, run_dir=tmp_path / "run")
    for split in ("train", "validation", "test"):
        measured = distsgd.evaluate(tmp_path / "run", split=split)
        assert measured.loss == getattr(found, f"{split}_loss")
        assert measured.examples == {"train": 1200, "validation": 300, "test": 400}[split]
    rows = epoch_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["validation_loss"] == found.validation_loss
    assert found.history.epochs["validation_accuracy"][-1] == found.validation_accuracy
    proof = distsgd.audit(tmp_path / "run")
    assert proof.complete and sum(proof.class_examples.values()) == 2400
    assert distsgd.replay(tmp_path / "run").weights_sha256 == found.weights_sha256
    shown = json.loads(distsgd_here("runs", "show", tmp_path / "run", "--json").stdout)
    assert shown["best"]["version"] in shown["checkpoints"]
    used = open_run(tmp_path / "run").job(config).plan.order(1)
    assert len(used) == len(set(used)) == 1200


def test_a_resume_holds_out_the_same_rows(tmp_path: Path) -> None:
    config = on_sample(workers=0, epochs=3, validation=0.1)
    whole = distsgd.train(config=config, run_dir=tmp_path / "whole")

    class Stops(distsgd.Reporter):
        def epoch(self, row: distsgd.EpochRow) -> None:
            raise KeyboardInterrupt

    with pytest.raises(distsgd.errors.TrainingInterrupted):
        distsgd.train(config=config, run_dir=tmp_path / "run", reporter=Stops())
    assert distsgd.resume(tmp_path / "run").weights_sha256 == whole.weights_sha256


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    found = distsgd.train("sample", workers=0, epochs=1, run_dir=tmp_path / "run")
    assert found.validation_loss is None
    with pytest.raises(UsageError, match=r"has no rows held out. Give split='test'"):
        distsgd.evaluate(tmp_path / "run", split="validation")
    with pytest.raises(UsageError, match="a share of the training rows from 0 to 0"):
        distsgd.train("sample", validation=0.6)
    with pytest.raises(UsageError, match="of 1500 training rows is no row"):
        distsgd.train("sample", workers=0, validation=1e-5)
