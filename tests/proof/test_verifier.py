"""`verify` finds what is really broken, names it, and finds nothing where nothing is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import distsgd
from distsgd.core import reduction_tree
from distsgd.core.model import slot_gradient
from distsgd.core.optim import optimizers, schedules
from distsgd.data import row_cache
from distsgd.errors import VerificationError

SMALL = {"dataset": "sample", "workers": 0, "epochs": 1, "verify": 1.0}


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "svm"}, {"dtype": "float64"}, {"consistency": "ssp"}, {"consistency": "asp"},
     {"consistency": "backup"}, {"consistency": "local", "local_steps": 3},
     {"arithmetic": "exact"}, {"arithmetic": "exact", "model": "mlp:8", "optimizer": "adam"},
     *({"optimizer": name} for name in ("momentum", "nesterov", "adagrad", "adam")),
     *({"compress": name} for name in ("fp16", "onebit", "topk:0.01"))],
    ids=str,
)  # fmt: skip
def test_a_sound_run_verifies(settings):
    result = distsgd.train(**{**SMALL, **settings})
    assert result.verified is not None
    assert result.verified["updates"] == result.steps
    assert result.verified["let_pass"] == 0


def test_it_does_not_change_a_bit():
    plain = distsgd.train(**{**SMALL, "verify": 0.0})
    assert plain.verified is None
    assert distsgd.train(**SMALL).weights_sha256 == plain.weights_sha256


def test_a_wrong_gradient_of_one_slot_is_named(monkeypatch, tmp_path: Path):
    real = slot_gradient.LinearKernel.gradients

    def wrong(self, weights, labels, out, write, *rest):
        found = real(self, weights, labels, out, write, *rest)
        wrong.calls += 1
        if wrong.calls == 3:
            out[1] = 0
        return found

    wrong.calls = 0
    monkeypatch.setattr(slot_gradient.LinearKernel, "gradients", wrong)
    with pytest.raises(VerificationError, match=r"update 3 .*step 2, slot 1, worker 0: the sum"):
        distsgd.train(**SMALL, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "journal.jsonl").stat().st_size
    assert [at for at in (tmp_path / "run" / "checkpoints").iterdir() if at.stem.endswith("2")]


def test_a_slot_that_counts_twice_is_named(monkeypatch):
    real = slot_gradient.LinearKernel.gradients

    def wrong(self, weights, labels, out, write, *rest):
        found = real(self, weights, labels, out, write, *rest)
        wrong.calls += 1
        if wrong.calls == 4:
            out[2] *= 2
        return found

    wrong.calls = 0
    monkeypatch.setattr(slot_gradient.LinearKernel, "gradients", wrong)
    with pytest.raises(VerificationError, match=r"step 3, slot 2, worker 0: the sum"):
        distsgd.train(**SMALL)


_IN_WORKERS = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "distsgd.on_ray.processes":
            return None
        sys.meta_path.remove(self)
        import importlib
        module = importlib.util.find_spec(name)
        from distsgd.engine.worker import Worker
        from distsgd.core.model.slot_gradient import LinearKernel
        real = LinearKernel.gradients
        def wrong(self, weights, labels, out, write, *rest):
            found = real(self, weights, labels, out, write, *rest)
            out.reshape(len(out), 10, -1)[:, 3, 7] *= 1.01
            return found
        LinearKernel.gradients = wrong
        return module
sys.meta_path.insert(0, Finder())
"""
"""Takes effect in the processes of Ray alone: a machine that multiplies wrongly."""


@pytest.mark.ray
def test_what_a_worker_process_computes_wrongly_is_found(distsgd, tmp_path, private_home):
    folder = tmp_path / "fault"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_IN_WORKERS)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = distsgd(
        "train", "--dataset", "sample", "--workers", "2", "--epochs", "2", "--verify", "1",
        "--run-dir", "run", "--json", env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert "update 1 does not verify: step 0, slot" in done.stderr
    assert "class 3, column 7" in done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "failed"


@pytest.mark.ray
@pytest.mark.parametrize("consistency", ["ssp", "local"])
def test_a_sound_run_on_ray_verifies(shared_ray, consistency):
    result = distsgd.train(
        "sample", workers=2, epochs=2, verify=1.0, consistency=consistency,
        chaos="kill-worker:at=5,dup-push:p=0.1",
    )  # fmt: skip
    assert result.verified["updates"] + result.verified["let_pass"] == result.steps
    assert result.verified["tolerance_used"] < 1


def test_only_a_sampled_share_is_recomputed():
    result = distsgd.train("sample", workers=0, epochs=20, verify=0.1)
    assert 0.02 * result.steps < result.verified["updates"] < 0.3 * result.steps
    again = distsgd.train("sample", workers=0, epochs=20, verify=0.1)
    assert again.verified["updates"] == result.verified["updates"]


def test_a_wrong_sum_is_found(monkeypatch):
    real = reduction_tree.TreeSum.total
    monkeypatch.setattr(reduction_tree.TreeSum, "total", lambda self: real(self) * 1.001)
    with pytest.raises(VerificationError, match=r"step 0, .*the sum of gradients"):
        distsgd.train(**SMALL)


@pytest.mark.parametrize("name", ["Sgd", "Momentum", "Nesterov", "Adagrad", "Adam"])
@pytest.mark.parametrize("fault", ["scaled", "twice"])
def test_a_wrong_update_is_found(monkeypatch, name, fault):
    rule = getattr(optimizers, name)
    real = rule.change

    def wrong(self, gradient, rate, number):
        copy = gradient.copy()
        change = real(self, gradient, rate * (1.001 if fault == "scaled" else 1), number).copy()
        return change + real(self, copy, rate, number) if fault == "twice" else change

    monkeypatch.setattr(rule, "change", wrong)
    with pytest.raises(VerificationError, match=r"step 0, .*W after it"):
        distsgd.train(**SMALL, optimizer=name.lower())


def test_a_wrong_schedule_is_found(monkeypatch):
    real = schedules.Schedule.at
    monkeypatch.setattr(schedules.Schedule, "at", lambda self, step: real(self, step) * 1.01)
    with pytest.raises(VerificationError, match=r"step 0, .*the learning rate"):
        distsgd.train(**SMALL)


def test_a_byte_changed_in_memory_is_named_with_its_slot(monkeypatch):
    real = row_cache._Stored.gather

    def wrong(self, indices):
        real(self, indices)
        wrong.calls += 1
        if wrong.calls == 3:
            self._rows[2, 5, 100] ^= 255

    wrong.calls = 0
    monkeypatch.setattr(row_cache._Stored, "gather", wrong)
    with pytest.raises(VerificationError, match="step 2, slot 2, worker 0"):
        distsgd.train(**SMALL)
