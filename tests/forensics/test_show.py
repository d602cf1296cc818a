"""`distsgd show`: everything about one update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Run

from distsgd.core.model.reference import loss_and_gradient, with_bias
from distsgd.errors import UsageError
from distsgd.forensics.show import show
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import open_run
from distsgd.training import train

KINDS: dict[str, dict[str, Any]] = {
    "bsp": {"regularization": 0.01},
    "mlp": {"model": "mlp:5", "optimizer": "momentum"},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup"},
    "local": {"consistency": "local", "local_steps": 3},
    "topk": {"compress": "topk:0.1"},
    "svm": {"loss": "svm", "optimizer": "adam", "learning_rate": 0.001},
}


def trained(folder: Path, **settings: Any) -> Path:
    given = {"workers": 0, "epochs": 2, "batch_size": 100, "slot_size": 25, **settings}
    train("sample", run_dir=folder / "run", **given)
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_plain_formulas(kind: str, tmp_path: Path) -> None:
    run = open_run(trained(tmp_path, **KINDS[kind]))
    found = show(run, 7)
    (step,) = Timeline(run).steps(7, 7)
    job, split = step.job, run.dataset.train

    def plain(flat: Any, indices: Any) -> tuple[float, Any]:
        rows = np.empty((len(indices), job.features), np.uint8)
        split.gather(np.asarray(indices), rows)
        features = with_bias((rows - job.preprocessing.mean) / job.preprocessing.scale)
        layers = job.architecture.split_kept(job.architecture.unpad(flat).astype(np.float64))
        labels = split.labels_of(np.asarray(indices)).astype(np.intp)
        return loss_and_gradient(layers, features, labels, job.loss)

    indices = [one.example for one in found.all]
    loss, gradient = plain(step.before, indices)
    assert found.loss_before == pytest.approx(loss, rel=1e-4)
    assert found.loss_after == pytest.approx(plain(step.after, indices)[0], rel=1e-4)
    assert np.mean([one.loss_before for one in found.all]) == pytest.approx(loss, rel=1e-4)
    assert found.loss == pytest.approx(step.loss) and found.examples == len(indices)
    assert sum(piece.examples for piece in found.pieces) == len(indices)
    whole = plain(step.before, np.arange(len(split)))[1]
    if not KINDS[kind].get("regularization"):
        one, other = (np.concatenate([g.ravel() for g in part]) for part in (gradient, whole))
        penalty = np.linalg.norm(job.decay() * step.before)
        off = 1e-3 * np.linalg.norm(one) + 2 * penalty
        assert found.fresh_gradient_norm == pytest.approx(np.linalg.norm(one), abs=off)
        assert found.full_gradient_norm == pytest.approx(np.linalg.norm(other), abs=off)
    moved = np.linalg.norm(step.after.astype(np.float64) - step.before)
    assert found.step_norm == pytest.approx(moved)
    alone = plain(step.before, indices[:1])[1]
    size = np.sqrt(sum(np.linalg.norm(part) ** 2 for part in alone))
    assert found.all[0].gradient_norm == pytest.approx(size, rel=1e-5)
    assert bool(found.state_norms) == (job.optimizer != "sgd")
    assert bool(found.residual_norms) == (kind == "topk")
    assert found.full_examples == found.training_examples == len(split)


def test_a_checkpoint_confirms_it_and_a_sample_says_so(tmp_path: Path) -> None:
    run = trained(tmp_path)
    last = show(run, "last", rows=50)
    assert last.same_bits and last.epoch == 2 and last.minibatch == last.minibatches
    assert last.full_examples == 50 and last.worst(2)[0].loss_before >= last.worst(2)[1].loss_before
    assert show(run, 3, rows=0).cosine is None
    for wrong in (0, last.update + 1, "epoch:9", "soon"):
        with pytest.raises(UsageError):
            show(run, wrong)


def test_the_command_draws_a_sheet(distsgd_here: Run, tmp_path: Path) -> None:
    run = trained(tmp_path)
    sheet = tmp_path / "sheet.png"
    shown = distsgd_here("show", str(run), "epoch:1", "--out", str(sheet))
    assert "epoch          1, minibatch" in shown.stdout and sheet.read_bytes()[1:4] == b"PNG"
    found = json.loads(distsgd_here("show", str(run), "3", "--json", "--no-sheet").stdout)
    assert found["update"] == 3 and found["sheet"] is None and len(found["all"]) == 100
