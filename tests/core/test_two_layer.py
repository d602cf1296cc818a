"""Two layers by their definition: the gradient is that of the loss."""

import numpy as np
import pytest

from distsgd.core.model import LOSSES
from distsgd.core.model.reference import forward, loss_and_gradient, with_bias

EXAMPLES, FEATURES, HIDDEN, CLASSES = 9, 5, 7, 4


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((HIDDEN, FEATURES + 1))
    w2 = rng.standard_normal((CLASSES, HIDDEN + 1))
    features = with_bias(rng.standard_normal((EXAMPLES, FEATURES)))
    return w1, w2, features, rng.integers(0, CLASSES, EXAMPLES)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_every_entry_of_the_gradient_is_a_central_difference(problem, loss, regularization):
    w1, w2, features, labels = problem
    _, gradients = loss_and_gradient([w1, w2], features, labels, loss, regularization)
    for weights, gradient in zip((w1, w2), gradients, strict=True):
        assert gradient.shape == weights.shape
        numeric = np.empty_like(weights)
        for place in np.ndindex(weights.shape):
            kept, found = weights[place], []
            for moved in (kept - 1e-5, kept + 1e-5):
                weights[place] = moved
                found.append(loss_and_gradient([w1, w2], features, labels, loss, regularization)[0])
            weights[place] = kept
            numeric[place] = (found[1] - found[0]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_scores_are_those_of_one_example_after_another(problem):
    w1, w2, features, _ = problem
    for x, scores in zip(features, forward([w1, w2], features)[1][-1], strict=True):
        hidden = [max(0.0, float(row @ x)) for row in w1]
        np.testing.assert_allclose(scores, w2 @ [*hidden, 1.0], rtol=1e-12)


def test_at_the_kink_the_subgradient_is_0(problem):
    """All units are exactly at 0, so nothing reaches the first layer."""
    _, w2, features, labels = problem
    w1 = np.zeros((HIDDEN, FEATURES + 1))
    _, (by_w1, by_w2) = loss_and_gradient([w1, w2], features, labels)
    assert not by_w1.any()
    assert not by_w2[:, :-1].any()
    assert by_w2[:, -1].any()


def test_float32_is_computed_in_float64(problem):
    w1, w2, features, labels = problem
    single = [array.astype(np.float32) for array in (w1, w2)]
    _, gradients = loss_and_gradient(single, features, labels)
    assert [gradient.dtype for gradient in gradients] == [np.float64] * 2
