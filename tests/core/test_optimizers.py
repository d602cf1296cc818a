"""Update rules against their formulas, and elementwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.optim import OPTIMIZERS, make_optimizer

MU = 0.9
RATES = [0.1, 0.05, 0.2, 0.01, 0.3]


def random_gradients(size, steps=5, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(dtype)


def textbook_sgd(w, gradients):
    for g, eta in zip(gradients, RATES, strict=True):
        w = w - eta * g
        yield w


def textbook_momentum(w, gradients):
    v = np.zeros_like(w)
    for g, eta in zip(gradients, RATES, strict=True):
        v = MU * v + g
        w = w - eta * v
        yield w


def textbook_nesterov(w, gradients):
    """In the form v' = mu v + g, w' = w - eta (g + mu v')."""
    v = np.zeros_like(w)
    for g, eta in zip(gradients, RATES, strict=True):
        v = MU * v + g
        w = w - eta * (g + MU * v)
        yield w


def textbook_adagrad(w, gradients):
    squares = np.zeros_like(w)
    for g, eta in zip(gradients, RATES, strict=True):
        squares = squares + g**2
        w = w - eta * g / (np.sqrt(squares) + 1e-8)
        yield w


def textbook_adam(w, gradients):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, eta) in enumerate(zip(gradients, RATES, strict=True), 1):
        m = MU * m + (1 - MU) * g
        v = 0.999 * v + 0.001 * g**2
        w = w - eta * (m / (1 - MU**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        yield w


TEXTBOOK = {
    "sgd": textbook_sgd,
    "momentum": textbook_momentum,
    "nesterov": textbook_nesterov,
    "adagrad": textbook_adagrad,
    "adam": textbook_adam,
}


def train(name, weights, gradients, momentum=MU):
    """W after every step."""
    weights = weights.copy()
    optimizer = make_optimizer(name, weights, momentum)
    history = []
    for update, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        weights -= optimizer.change(gradient.copy(), rate, update)
        history.append(weights.copy())
    return history


def test_every_rule_is_tested():
    assert set(TEXTBOOK) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_follows_the_textbook_over_several_steps(name):
    gradients = random_gradients(6)
    start = np.linspace(-1, 1, 6)
    expected = list(TEXTBOOK[name](start, gradients))
    np.testing.assert_allclose(train(name, start, gradients), expected, rtol=1e-12, atol=1e-15)


def test_nesterov_steps_from_the_point_that_momentum_leads_to():
    """Sutskever et al. 2013: v' = mu v - eta grad(w + mu v), w' = w + v', on f = w**2 / 2.

    Their w + mu v is our w, when the rate is constant.
    """
    eta, theta, v = 0.1, np.array([1.0]), np.array([0.0])
    ours = theta.copy()
    optimizer = make_optimizer("nesterov", ours, MU)
    for update in range(1, 7):
        ours -= optimizer.change(ours.copy(), eta, update)
        v = MU * v - eta * (theta + MU * v)
        theta = theta + v
        assert ours[0] == pytest.approx((theta + MU * v)[0], rel=1e-14)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_without_momentum_every_rule_is_sgd(name):
    gradients, start = random_gradients(6), np.linspace(-1, 1, 6)
    found = train(name, start, gradients, momentum=0.0)
    np.testing.assert_allclose(found, list(textbook_sgd(start, gradients)), rtol=1e-14, atol=1e-15)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(["float32", "float64"]),
    st.integers(2, 70),
    st.data(),
)
def test_ranges_updated_apart_have_the_same_bits(name, dtype, size, data):
    cut = data.draw(st.integers(1, size - 1))
    gradients = random_gradients(size, dtype=dtype, seed=size)
    start = np.linspace(-3, 2, size, dtype=dtype)
    whole = train(name, start, gradients)[-1]
    low, high = (train(name, start[part], gradients[:, part])[-1] for part in parts(cut))
    assert whole.tobytes() == np.concatenate([low, high]).tobytes()
    assert whole.dtype == dtype


def parts(cut):
    return slice(None, cut), slice(cut, None)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adagrad", "adam"])
def test_a_rule_goes_on_from_its_state(name):
    """State copied into a new optimiser continues with the same bits: what a resume needs."""
    gradients, start = random_gradients(6, dtype="float32"), np.ones(6, dtype=np.float32)
    expected = train(name, start, gradients)[-1]
    weights = start.copy()
    optimizer = make_optimizer(name, weights, MU)
    for update, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        successor = make_optimizer(name, weights, MU)
        for key, array in optimizer.state.items():
            successor.state[key][...] = array
        weights -= successor.change(gradient.copy(), rate, update)
        optimizer = successor
    assert weights.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", TEXTBOOK)
def test_state_begins_at_zero_and_is_apart_from_the_weights(name):
    weights = np.ones(4)
    optimizer = make_optimizer(name, weights, MU)
    for array in optimizer.state.values():
        assert not array.any()
        assert not np.shares_memory(array, weights)
