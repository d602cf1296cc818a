"""The gradient check of two layers on real images: it passes what is right, catches the wrong."""

import numpy as np
import pytest

from distsgd.core.model import LOSSES, gradient_check, make_architecture, slot_gradient
from distsgd.core.model.gradient_check import check_gradient
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE

LIMIT = 1e-6
WRONG = 1e-4
"""What a wrong gradient must at least show: far above LIMIT."""

HIDDEN, EXAMPLES = 20, 30
FIRST, ALL = HIDDEN * 3073, HIDDEN * 3073 + 10 * (HIDDEN + 1)


@pytest.fixture(scope="module")
def check():
    sample = Dataset(SAMPLE)
    preprocessing, model = sample.preprocessing(64.0), make_architecture("mlp:20", 3072, 10)
    pixels = np.empty((EXAMPLES, 3072), dtype=np.uint8)
    sample.train.gather(np.arange(EXAMPLES), pixels)
    labels = sample.train.labels[:EXAMPLES]

    def run(loss, *, scale=1.0, h=3e-4, regularization=0.1, parameters=None):
        rng = np.random.default_rng(0)
        weights = model.unpad(model.initial(0, scale, "float64"))
        weights += rng.standard_normal(weights.shape) * 1e-3 * scale  # biases too
        if parameters is None:
            chosen = rng.permutation(FIRST)[:40], FIRST + rng.permutation(ALL - FIRST)[:40]
            parameters = np.concatenate(chosen)
        return check_gradient(
            model, weights, loss, preprocessing, pixels, labels,
            regularization=regularization, parameters=parameters, h=h,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularization", [0.0, 0.1])
@pytest.mark.parametrize(("scale", "h"), [(0.1, 1e-4), (1.0, 3e-4), (100.0, 1e-3)])
def test_the_gradients_are_right_on_real_images(check, loss, regularization, scale, h):
    found = check(loss, scale=scale, h=h, regularization=regularization)
    assert found.largest_relative_error <= LIMIT
    assert found.compared > 60
    assert found.compared + found.skipped == 80


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_the_biases_are_right(check, loss):
    first = np.arange(HIDDEN) * 3073 + 3072
    second = FIRST + np.arange(10) * (HIDDEN + 1) + HIDDEN
    found = check(loss, parameters=np.concatenate([first, second]), regularization=1.0)
    assert found.largest_relative_error <= LIMIT
    assert found.compared > 20


def unmasked(hidden, gradient, active):
    return gradient


def masked_by_its_own_sign(hidden, gradient, active):
    return np.maximum(gradient, 0, out=gradient)


def one_unit_forgotten(hidden, gradient, active):
    np.multiply(gradient, hidden > 0, out=gradient)
    gradient[3] = 0
    return gradient


@pytest.mark.parametrize("wrong", [unmasked, masked_by_its_own_sign, one_unit_forgotten])
def test_a_wrong_gradient_of_the_relu_is_caught(check, monkeypatch, wrong):
    monkeypatch.setattr(slot_gradient, "relu_gradient", wrong)
    third = 3 * 3073 + np.arange(0, 3073, 100)
    assert check("softmax", parameters=third).largest_relative_error > WRONG


def scaled(weights, gradient, out):
    return np.multiply(weights.T @ gradient, 1.001, out=out)


def test_a_wrong_gradient_of_the_hidden_units_is_caught(check, monkeypatch):
    monkeypatch.setattr(slot_gradient, "input_gradient", scaled)
    first, second = np.arange(0, FIRST, 3001), np.arange(FIRST, ALL)
    assert check("softmax", parameters=first, regularization=0).largest_relative_error > WRONG
    assert check("softmax", parameters=second).largest_relative_error <= LIMIT


def test_kinks_of_hidden_units_are_skipped_and_would_be_large_errors(check, monkeypatch):
    first = np.arange(0, FIRST, 307)
    narrow, wide = check("softmax", parameters=first), check("softmax", parameters=first, h=1e-2)
    assert 0 <= narrow.skipped < wide.skipped
    assert wide.compared + wide.skipped == len(first)
    monkeypatch.setattr(gradient_check._Lines, "crosses_zero", lambda *_: False)
    assert check("softmax", parameters=first, h=1e-2).largest_relative_error > WRONG


def test_parameters_of_the_second_layer_have_no_kinks_with_softmax(check):
    found = check("softmax", parameters=np.arange(FIRST, ALL), h=1e-2)
    assert found.skipped == 0


def test_kinks_of_the_svm_loss_are_skipped(check):
    second = np.arange(FIRST, ALL)
    assert check("svm", parameters=second, h=1e-2).skipped > 0
