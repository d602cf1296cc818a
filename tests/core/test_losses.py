"""Losses and their gradients, against the formulas written as loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distsgd.core.model import LOSSES, penalty, softmax_probabilities
from distsgd.core.model.architecture import decay_factors, pad


def naive_softmax(row, label):
    """-log p_y and p - onehot(y) of one example, in floats of Python."""
    shift = max(row)
    exponentials = [math.exp(score - shift) for score in row]
    total = math.fsum(exponentials)
    probabilities = [value / total for value in exponentials]
    loss = math.log(total) - (row[label] - shift)
    return loss, [p - (j == label) for j, p in enumerate(probabilities)]


def naive_svm(row, label):
    """The hinge loss of one example, one class after the other."""
    loss, gradient = 0.0, [0.0] * len(row)
    for j, score in enumerate(row):
        margin = score - row[label] + 1
        if j != label and margin > 0:
            loss += margin
            gradient[j] += 1
            gradient[label] -= 1
    return loss, gradient


NAIVE = {"softmax": naive_softmax, "svm": naive_svm}


def run(name, scores, labels):
    """Losses and gradient; the gradient's place is full of nan before."""
    gradient = np.full_like(scores, np.nan)
    losses = LOSSES[name](scores, labels, gradient)
    return losses, gradient


@st.composite
def scores_and_labels(draw):
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(2, 11))
    elements = st.floats(-60, 60) | st.integers(-3, 3).map(float)
    scores = draw(arrays(np.float64, (rows, classes), elements=elements))
    labels = draw(arrays(np.uint8, rows, elements=st.integers(0, classes - 1)))
    return scores, labels


@settings(deadline=None, max_examples=150)
@given(scores_and_labels(), st.sampled_from(sorted(LOSSES)))
def test_loss_and_gradient_equal_the_naive_loops(case, name):
    scores, labels = case
    losses, gradient = run(name, scores, labels)
    for i, label in enumerate(labels):
        expected_loss, expected_gradient = NAIVE[name](scores[i].tolist(), int(label))
        assert losses[i] == pytest.approx(expected_loss, rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(gradient[i], expected_gradient, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=150)
@given(scores_and_labels(), st.sampled_from(sorted(LOSSES)))
def test_gradients_of_a_row_sum_to_zero(case, name):
    _, gradient = run(name, *case)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_scores_are_left_alone(name):
    scores = np.array([[0.5, -2.0, 3.0]])
    run(name, scores, np.array([1]))
    assert scores.tolist() == [[0.5, -2.0, 3.0]]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_extreme_float32_scores_give_finite_losses_and_gradients(name):
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1e4, 1e4, (50, 10)).astype(np.float32)
    scores[0], scores[1], scores[2, ::2], scores[3, 1:] = 1e4, -1e4, 1e4, -1e4
    labels = rng.integers(0, 10, 50).astype(np.uint8)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        losses, gradient = run(name, scores, labels)
    assert losses.dtype == gradient.dtype == np.float32
    assert np.isfinite(losses).all()
    assert (losses >= 0).all()
    assert np.isfinite(gradient).all()
    for i, label in enumerate(labels):
        expected_loss, expected_gradient = NAIVE[name](scores[i].tolist(), int(label))
        assert losses[i] == pytest.approx(expected_loss, rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(gradient[i], expected_gradient, atol=1e-6)


def test_softmax_of_a_hopeless_example_is_the_score_gap():
    losses, gradient = run("softmax", np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert losses.tolist() == [2e4]
    assert gradient.tolist() == [[1, -1]]


def test_softmax_of_equal_scores_is_the_log_of_the_number_of_classes():
    losses, gradient = run("softmax", np.zeros((1, 10)), np.array([3]))
    assert losses[0] == pytest.approx(math.log(10), rel=1e-15)
    np.testing.assert_allclose(gradient[0], np.where(np.arange(10) == 3, -0.9, 0.1), rtol=1e-15)


def test_svm_example_of_the_lecture():
    """CS231n, lecture 3: a cat, a car and a frog have the losses 2.9, 0 and 12.9."""
    scores = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    losses, gradient = run("svm", scores, np.array([0, 1, 2]))
    np.testing.assert_allclose(losses, [2.9, 0, 12.9], atol=1e-12)
    assert gradient.tolist() == [[-1, 1, 0], [0, 0, 0], [1, 1, -2]]


def test_svm_takes_the_subgradient_0_at_a_kink():
    """The margin of class 1 is exactly 0, that of class 2 the least float above."""
    least = np.nextafter(1.0, 2) - 1
    losses, gradient = run("svm", np.array([[1.0, 0.0, least]]), np.array([0]))
    assert losses.tolist() == [least]
    assert gradient.tolist() == [[-1, 0, 1]]


def test_svm_does_not_count_the_right_class():
    losses, _ = run("svm", np.array([[0.0, -5.0]]), np.array([0]))
    assert losses.tolist() == [0]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_score_that_is_not_a_number_shows_in_the_loss(name):
    losses, _ = run(name, np.array([[0.0, np.nan, 1.0]]), np.array([0]))
    assert np.isnan(losses[0])


@settings(deadline=None, max_examples=50)
@given(scores_and_labels())
def test_probabilities_are_the_gradient_plus_the_one_of_the_label(case):
    scores, labels = case
    _, gradient = run("softmax", scores, labels)
    gradient[np.arange(len(labels)), labels] += 1
    np.testing.assert_allclose(softmax_probabilities(scores), gradient, rtol=1e-12, atol=1e-14)


def test_probabilities_of_extreme_scores():
    found = softmax_probabilities(np.array([[1e4, -1e4, 1e4]], dtype=np.float32))
    assert found.tolist() == [[0.5, 0, 0.5]]


def test_penalty_is_lambda_times_the_squares_without_the_bias():
    weights = np.array([[1.0, 2.0, 100.0], [3.0, 4.0, -100.0]])
    assert penalty(weights, 2, 0.5) == 0.5 * (1 + 4 + 9 + 16)
    assert penalty(weights, 2, 0.0) == 0


def test_penalty_of_float32_weights_is_summed_in_float64():
    weights = np.full((1000, 1001), 0.1, dtype=np.float32)
    exact = 1_000_000 * float(np.float32(0.1)) ** 2
    assert penalty(weights, 1000, 1.0) == pytest.approx(exact, rel=1e-12)


def test_decay_is_the_gradient_of_the_penalty():
    classes, features, regularization, h = 3, 4, 0.7, 1e-3
    weights = np.random.default_rng(0).standard_normal((classes, features + 1))
    decay = decay_factors(classes, features, regularization, "float64") * pad(weights)
    for row, column in np.ndindex(*weights.shape):
        up, down = weights.copy(), weights.copy()
        up[row, column] += h
        down[row, column] -= h
        slope = penalty(up, features, regularization) - penalty(down, features, regularization)
        assert decay.reshape(classes, -1)[row, column] == pytest.approx(
            slope / (2 * h), rel=1e-9, abs=1e-12
        )
