"""A run ends once its validation loss has not become smaller for some epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import Run, on_sample

import distsgd
from distsgd.errors import UsageError
from distsgd.training.early_stopping import Patience, still_falling

REASON = "stopped early: no better validation loss for 2 epochs; best epoch 1"


def overfitted(**more: Any) -> distsgd.TrainConfig:
    """Settings whose validation loss is the smallest after the first epoch."""
    rate: dict[str, Any] = {"schedule": "constant", "learning_rate": 0.02}
    return on_sample(**{"workers": 0, "epochs": 40, "validation": 0.2, "patience": 2} | rate | more)


def test_patience_counts_epochs_without_a_smaller_loss() -> None:
    patience = Patience(2)
    for epoch, loss in enumerate((3.0, 2.0, 2.0), 1):
        patience.add(epoch, loss)
    assert not patience.exhausted
    patience.add(4, 2.5)
    assert patience.exhausted
    patience.wait_from(4)
    assert not patience.exhausted


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ((2.0, 1.0, 0.5), "100 %"),
        ((1.84, 1.74, 1.70, 1.68, 1.66), ""),
        ((1.0, 0.002, 0.001), ""),  # next to nothing, of what it has fallen
        ((2.0, 1.0), ""),
        ((1.0, 1.1, 1.3), ""),
    ],
)
def test_a_loss_that_is_still_falling(losses: tuple[float, ...], falls: str) -> None:
    assert (falls in still_falling(losses)) if falls else still_falling(losses) == ""


def test_too_few_epochs_get_a_notice_and_the_default_none(distsgd_here: Run) -> None:
    few = distsgd_here("train", "--dataset", "sample", "--workers", "0", "--epochs", "4",
                       "--model", "mlp:20")  # fmt: skip
    assert few.returncode == 0 and "still falling, by" in few.stderr
    usual = distsgd_here("train", "--dataset", "sample", "--workers", "0")
    assert usual.returncode == 0 and "falling" not in usual.stderr


def test_the_run_ends_with_its_epoch_and_all_proofs_hold(distsgd_here: Run, tmp_path: Path) -> None:
    found = distsgd.train(config=overfitted(verify=0.5), run_dir=tmp_path / "run")
    assert (found.status, found.reason, found.steps) == ("finished", REASON, 3 * 5)
    assert found.history.reason == REASON and found.history.events[-1]["text"] == REASON
    proof = distsgd.audit(tmp_path / "run")
    assert (proof.epochs, proof.partial, proof.complete) == (3, False, False)
    assert distsgd.replay(tmp_path / "run").weights_sha256 == found.weights_sha256
    assert distsgd.evaluate(tmp_path / "run").loss == found.test_loss
    assert REASON in distsgd_here("runs", "show", tmp_path / "run").stdout
    assert distsgd.resume(tmp_path / "run") == found
    again = distsgd.train(config=overfitted(verify=0.5), run_dir=tmp_path / "run",
                          resume_if_exists=True)  # fmt: skip
    assert again == found
    longer = distsgd.resume(tmp_path / "run", epochs=41)
    assert longer.steps >= 5 * 5 and longer.reason  # two epochs more at least
    assert distsgd.audit(tmp_path / "run").epochs == longer.steps // 5


def test_a_killed_run_counts_on(tmp_path: Path) -> None:
    whole = distsgd.train(config=overfitted(), run_dir=tmp_path / "whole")

    class Stops(distsgd.Reporter):
        def epoch(self, row: distsgd.EpochRow) -> None:
            if row.epoch == last:
                raise KeyboardInterrupt

    for last in (2, 3):  # within its patience, and after it, before the end
        run = tmp_path / str(last)
        with pytest.raises(distsgd.errors.TrainingInterrupted):
            distsgd.train(config=overfitted(), run_dir=run, reporter=Stops())
        found = distsgd.resume(run)
        assert (found.reason, found.steps) == (REASON, whole.steps)
        assert found.weights_sha256 == whole.weights_sha256


@pytest.mark.ray
def test_workers_end_with_the_same_weights(shared_ray: None, tmp_path: Path) -> None:
    alone = distsgd.train(config=overfitted(), run_dir=tmp_path / "alone")
    found = distsgd.train(config=overfitted(workers=2), run_dir=tmp_path / "run")
    assert (found.reason, found.steps) == (REASON, alone.steps)
    assert found.weights_sha256 == alone.weights_sha256
    assert distsgd.audit(tmp_path / "run").epochs == 3


def test_without_rows_held_out_it_is_refused() -> None:
    with pytest.raises(UsageError, match="needs rows held out, whose loss it waits for"):
        distsgd.train("sample", patience=3)
    with pytest.raises(UsageError, match="does not go with a search"):
        distsgd.tune(dataset="sample", validation=0.1, patience=3)
