"""`verify` finds what is really broken, names it, and finds nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.core import optimizers, reduction_tree, schedules, slot_gradient
from distsgd.data import row_cache
from distsgd.errors import VerificationError

SMALL = {"dataset": "sample", "workers": 0, "epochs": 1, "verify": 1.0}


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "svm"}, {"dtype": "float64"}, {"consistency": "ssp"}, {"consistency": "asp"},
     {"consistency": "backup"}, {"consistency": "local", "local_steps": 3},
     *({"optimizer": name} for name in ("momentum", "nesterov", "adagrad", "adam")),
     *({"compress": name} for name in ("fp16", "onebit", "topk:0.01"))],
    ids=str,
)  # fmt: skip
def test_a_sound_run_verifies(settings):
    result = distsgd.train(**{**SMALL, **settings})
    assert result.verified is not None
    assert result.verified["updates"] == result.steps
    assert result.verified["skipped"] == 0


def test_it_does_not_change_a_bit():
    plain = distsgd.train(**{**SMALL, "verify": 0.0})
    assert plain.verified is None
    assert distsgd.train(**SMALL).weights_sha256 == plain.weights_sha256


def test_a_wrong_gradient_of_one_slot_is_named(monkeypatch, tmp_path: Path):
    real = slot_gradient.SlotKernel.gradients

    def wrong(self, weights, labels, out):
        found = real(self, weights, labels, out)
        wrong.calls += 1
        if wrong.calls == 3:
            out[1] = 0
        return found

    wrong.calls = 0
    monkeypatch.setattr(slot_gradient.SlotKernel, "gradients", wrong)
    with pytest.raises(VerificationError, match=r"update 3 .*step 2, slot 1, worker 0: the sum"):
        distsgd.train(**SMALL, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "journal.jsonl").stat().st_size
    assert [at for at in (tmp_path / "run" / "checkpoints").iterdir() if at.stem.endswith("2")]


def test_a_wrong_sum_is_found(monkeypatch):
    real = reduction_tree.TreeSum.total
    monkeypatch.setattr(reduction_tree.TreeSum, "total", lambda self: real(self) * 1.001)
    with pytest.raises(VerificationError, match=r"step 0, .*the sum of gradients"):
        distsgd.train(**SMALL)


@pytest.mark.parametrize("name", ["Sgd", "Momentum", "Nesterov", "Adagrad", "Adam"])
@pytest.mark.parametrize("fault", ["scaled", "twice"])
def test_a_wrong_update_is_found(monkeypatch, name, fault):
    rule = getattr(optimizers, name)
    real = rule.step

    def wrong(self, weights, gradient, rate, number):
        copy = gradient.copy()
        real(self, weights, gradient, rate * (1.001 if fault == "scaled" else 1), number)
        if fault == "twice":
            real(self, weights, copy, rate, number)

    monkeypatch.setattr(rule, "step", wrong)
    with pytest.raises(VerificationError, match=r"step 0, .*W after it"):
        distsgd.train(**SMALL, optimizer=name.lower())


def test_a_wrong_schedule_is_found(monkeypatch):
    real = schedules.Schedule.at
    monkeypatch.setattr(schedules.Schedule, "at", lambda self, step: real(self, step) * 1.01)
    with pytest.raises(VerificationError, match="step 0, .*the learning rate"):
        distsgd.train(**SMALL)


def test_a_byte_changed_in_memory_is_named_with_its_slot(monkeypatch):
    real = row_cache._Pixels.gather

    def wrong(self, indices, out):
        real(self, indices, out)
        wrong.calls += 1
        if wrong.calls == 3:
            out[2, 5, 100] = np.where(out[2, 5, 100] > 127, 0, 255)

    wrong.calls = 0
    monkeypatch.setattr(row_cache._Pixels, "gather", wrong)
    with pytest.raises(VerificationError, match="step 2, slot 2, worker 0"):
        distsgd.train(**SMALL)
