"""`verify` of two layers: sound runs hold, a fault in any formula of backpropagation is named."""

from __future__ import annotations

import numpy as np
import pytest

import distsgd
from distsgd.core.model import slot_gradient
from distsgd.core.model.reference import loss_and_gradient, recompute, with_bias
from distsgd.core.optim import optimizers
from distsgd.errors import VerificationError

SMALL = {"dataset": "sample", "model": "mlp:20", "workers": 0, "epochs": 2, "verify": 1.0}


@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_the_reference_is_the_definition(loss):
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((5, 9)), rng.standard_normal((4, 6))
    pixels, labels = rng.integers(0, 256, (7, 8)).astype(float), rng.integers(0, 4, 7)
    mean = pixels.mean(axis=0)
    found = recompute([w1, w2], pixels, labels, mean, 64.0, loss, 6e-8)
    total, (by_w1, by_w2) = loss_and_gradient(
        [w1, w2], with_bias((pixels - mean) / 64), labels, loss
    )
    assert found.losses.mean() == pytest.approx(total)
    expected = 7 * np.concatenate([by_w1.reshape(-1), by_w2.reshape(-1)])
    np.testing.assert_allclose(found.gradient, expected, atol=1e-12)
    assert (found.variance > 0).any() and (found.flips >= 0).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "svm"}, {"dtype": "float64"}, {"optimizer": "adam"}, {"consistency": "ssp"},
     {"consistency": "local", "local_steps": 3}, {"compress": "fp16"}],
    ids=str,
)  # fmt: skip
def test_a_sound_run_verifies(settings):
    result = distsgd.train(**{**SMALL, **settings})
    assert result.verified["updates"] == result.steps
    assert result.verified["tolerance_used"] <= 1


@pytest.mark.ray
def test_a_sound_run_on_ray_verifies(shared_ray):
    settings = {**SMALL, "workers": 2, "chaos": "kill-worker:at=5,dup-push:p=0.1"}
    result = distsgd.train(**settings)
    assert result.verified["updates"] + result.verified["let_pass"] == result.steps


FAULTS = {
    "a factor in W2": ("weight_gradient", lambda out: out.__imul__(1.001)),
    "the way back": ("input_gradient", lambda out: out.__imul__(1.001)),
    "no kink": ("relu_gradient", None),
    "a unit": ("relu", lambda out: out[3].__imul__(1.01)),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_a_wrong_formula_is_found(monkeypatch, name, loss):
    function, spoil = FAULTS[name]
    real = getattr(slot_gradient, function)

    def wrong(*arguments):
        if spoil is None:
            return arguments[1]
        out = real(*arguments)
        spoil(out)
        return out

    monkeypatch.setattr(slot_gradient, function, wrong)
    with pytest.raises(VerificationError, match=r"update 1 does not verify: step 0"):
        distsgd.train(**SMALL, loss=loss)


def test_a_slot_that_is_left_out_is_named(monkeypatch):
    kernel = slot_gradient.TwoLayerKernel
    real = kernel.gradients

    def wrong(self, weights, labels, out, write, *rest):
        found = real(self, weights, labels, out, write, *rest)
        wrong.calls += 1
        if wrong.calls == 3:
            out[1] = 0
        return found

    wrong.calls = 0
    monkeypatch.setattr(kernel, "gradients", wrong)
    with pytest.raises(VerificationError, match=r"update 3 .*slot 1, worker 0: the sum .*column"):
        distsgd.train(**SMALL)


@pytest.mark.parametrize(
    ("at", "place"), [(7, "hidden unit 0, column 7"), (-160, "class 5, column 0")]
)
def test_a_wrong_update_of_either_layer_is_placed(monkeypatch, at, place):
    real = optimizers.Sgd.change

    def wrong(self, gradient, rate, number):
        change = real(self, gradient, rate, number)
        change[at] -= 0.01
        return change

    monkeypatch.setattr(optimizers.Sgd, "change", wrong)
    with pytest.raises(VerificationError, match=f"W after it, {place}"):
        distsgd.train(**SMALL)
