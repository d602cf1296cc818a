"""Weights of examples in every kernel: the gradient is that of the weighted losses."""

import numpy as np
import pytest

from distsgd.core.model import KernelSettings, Preprocessing, make_architecture
from distsgd.core.model.reference import loss_and_gradient, with_bias

FEATURES, CLASSES, SLOTS, EXAMPLES = 20, 4, 3, 16
MODELS = [
    (model, loss, arithmetic)
    for model in ("linear", "mlp:7")
    for loss in ("softmax", "svm")
    for arithmetic in ("float", "exact")
]


@pytest.fixture
def problem():
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (SLOTS, EXAMPLES, FEATURES)).astype(np.uint8)
    labels = random.integers(0, CLASSES, (SLOTS, EXAMPLES)).astype(np.uint8)
    factors = random.uniform(0, 3, (SLOTS, EXAMPLES))
    return pixels, labels, factors


def computed(model, loss, arithmetic, pixels, labels, factors, largest=3.0):
    dtype = "float64" if arithmetic == "exact" else "float32"
    own = make_architecture(model, FEATURES, CLASSES, arithmetic)
    preprocessing = Preprocessing(np.full(FEATURES, 127.0), 64.0)
    kernel = own.kernel(
        KernelSettings(loss, preprocessing, EXAMPLES, dtype, SLOTS * EXAMPLES,
                       largest_factor=None if factors is None else largest)
    )  # fmt: skip
    weights = own.initial(3, 0.1 if model == "linear" else 1.0, dtype)
    out = np.empty((len(pixels), own.parameters), dtype)

    def write(first, rows, example=0, column=0):
        part = pixels[first : first + len(rows), example : example + rows.shape[1]]
        part = part[..., column : column + rows.shape[2]]
        np.copyto(rows[..., : part.shape[-1]], part)

    given = None if factors is None else factors.astype(dtype)
    losses = kernel.gradients(weights, labels, out, write, given)
    return own, weights, losses, out


@pytest.mark.parametrize(("model", "loss", "arithmetic"), MODELS)
def test_the_gradient_is_that_of_the_weighted_losses(model, loss, arithmetic, problem):
    pixels, labels, factors = problem
    own, weights, losses, out = computed(model, loss, arithmetic, pixels, labels, factors)
    layers = [np.asarray(part, np.float64) for part in own.split_kept(own.unpad(weights))]
    for slot in range(SLOTS):
        total, expected = 0.0, 0.0
        for row, label, factor in zip(pixels[slot], labels[slot], factors[slot], strict=True):
            features = with_bias((row[None] - 127.0) / 64.0)
            one, parts = loss_and_gradient(layers, features, np.array([label]), loss)
            total += factor * one
            expected = expected + factor * np.concatenate([part.reshape(-1) for part in parts])
        found = own.unpad(out[slot]).reshape(-1)
        assert losses[slot].loss == pytest.approx(total, rel=1e-4)
        assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("model", "loss", "arithmetic"), MODELS)
def test_ones_change_no_bit(model, loss, arithmetic, problem):
    pixels, labels, factors = problem
    _, _, without, plain = computed(model, loss, arithmetic, pixels, labels, None)
    ones = np.ones_like(factors)
    _, _, with_ones, same = computed(model, loss, arithmetic, pixels, labels, ones, 1.0)
    assert plain.tobytes() == same.tobytes()
    assert without == with_ones


@pytest.mark.parametrize("model", ["linear", "mlp:7"])
@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_exact_sums_do_not_depend_on_the_order_of_weighted_examples(model, loss, problem):
    pixels, labels, factors = problem
    own, _, _, out = computed(model, loss, "exact", pixels, labels, factors)
    order = np.random.default_rng(6).permutation(EXAMPLES)
    _, _, _, shuffled = computed(
        model, loss, "exact", pixels[:, order], labels[:, order], factors[:, order]
    )
    first = own.layers[0].outputs * own.layers[0].columns  # W2's is rounded slot by slot
    assert out[:, :first].tobytes() == shuffled[:, :first].tobytes()
