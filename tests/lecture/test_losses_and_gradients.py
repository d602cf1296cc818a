"""The small studies: initial losses, hinges, convexity, the chain rule, formulas."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

from distsgd.core.model import LOSSES
from distsgd.errors import UsageError
from distsgd.figures.drawn import svg_of
from distsgd.lecture.drawing import draw_chain_rule
from distsgd.lecture.experiments import (
    check_convexity,
    compare_formulas,
    draw_convexity,
    draw_formulas,
    draw_initial_loss,
    hinges,
    initial_loss,
)
from distsgd.lecture.experiments.piecewise import excess, loss_at
from distsgd.lecture.material import loss_and_gradient
from distsgd.lecture.plain.chain_rule import (
    EXAMPLE_GRADIENT,
    EXAMPLE_LOSS,
    chain_through_jacobian,
    mean_gradient,
    probabilities,
    score,
    softmax_gradient_by_scores,
    softmax_jacobian,
    worked_examples,
)
from distsgd.lecture.plain.loops import central_gradient


def test_small_weights_lose_nine_and_ln_ten():
    found = initial_loss("sample", examples=300)
    assert found.rows[0].svm == pytest.approx(9, abs=0.01)
    assert found.rows[0].softmax == pytest.approx(log(10), abs=0.005)
    assert found.rows[-1].svm > 50 and len(found.scores) == 10
    assert "<svg" in svg_of(draw_initial_loss(found), "loss")


@pytest.mark.parametrize("points", [(1.0, -0.5, 2.0), (0.3, 0.0, -1.0), (5.0, 5.0, 5.0)])
def test_the_loss_of_three_points_is_its_hinges(points):
    found = hinges(points, (0.5, -1.0))
    places = np.linspace(-4, 4, 161)
    total = sum(term(places) for term in found.terms) / 3
    np.testing.assert_allclose(total, [loss_at(w0, points, (0.5, -1.0)) for w0 in places])
    assert min(total) >= loss_at(found.lowest, points, (0.5, -1.0)) - 1e-12


def test_slopes_change_at_kinks_and_nowhere_else():
    found = hinges()
    where = [kink.w0 for kink in found.kinks]
    assert where == [-1.5, 0.0, 1.5, 2.5]

    def slope(w0):
        ends = (loss_at(w0 + d, found.points, found.weights) for d in (1e-6, -1e-6))
        above, below = ends
        return (above - below) / 2e-6

    for kink in found.kinks:
        assert slope(kink.w0 - 0.01) == pytest.approx(kink.left, abs=1e-6)
        assert slope(kink.w0 + 0.01) == pytest.approx(kink.right, abs=1e-6)
        assert kink.left <= kink.used <= kink.right and kink.left < kink.right
        assert kink.loss == pytest.approx(loss_at(kink.w0, found.points, found.weights))


def test_the_subgradient_is_the_one_that_training_uses():
    found = hinges()
    for kink in found.kinks:
        scores = np.outer(found.points, (kink.w0, *found.weights))
        by_score = np.empty_like(scores)
        LOSSES["svm"](scores, np.arange(3), by_score)
        assert (by_score[:, 0] @ found.points) / 3 == pytest.approx(kink.used)


def test_linear_scores_are_convex_and_two_layers_are_not():
    found = check_convexity("sample", examples=60, segments=10)
    assert found.worst_linear < 1e-12
    worst = {(one.model, one.loss): one.excess for one in found.shown}
    assert worst["two layers", "softmax"] > 0.01 and worst["two layers", "svm"] > 0.01
    assert excess(np.array([1.0, 2.0, 1.0]), np.array([0, 0.5, 1])) == 1
    assert excess(np.array([0.0, 2.0, 0.0]), np.array([0, 0.5, 1])) == 2
    assert excess(np.zeros(3), np.array([0, 0.5, 1])) == 0
    assert "<svg" in svg_of(draw_convexity(found), "convexity")


def test_the_chain_rule_agrees_with_differences():
    found = worked_examples()
    assert {one.name for one in found.examples} >= {"two paths", "a neuron"}
    assert max(one.largest_difference for one in found.examples) < 1e-8
    product = found.examples[0].quantities
    assert [(one.name, one.gradient) for one in product[:3]] == [("x", -4), ("y", -4), ("z", 3)]
    assert "<svg" in svg_of(draw_chain_rule(found), "chain")


def test_softmax_by_its_jacobian_is_p_minus_one_at_the_label():
    s = np.random.default_rng(0).standard_normal(10)
    p = probabilities(s)
    expected = p - (np.arange(10) == 3)
    np.testing.assert_allclose(softmax_gradient_by_scores(s, 3), expected, atol=1e-15)
    for k in range(10):
        slopes = central_gradient(lambda v, k=k: float(probabilities(v)[k]), s.copy())
        np.testing.assert_allclose(softmax_jacobian(p)[k], slopes, atol=1e-9)
    assert chain_through_jacobian(np.ones(10), softmax_jacobian(p)) == pytest.approx(np.zeros(10))


@pytest.mark.parametrize("loss", LOSSES)
def test_formulas_for_one_example_are_the_fast_gradient(loss):
    rng = np.random.default_rng(1)
    weights, x, y = rng.standard_normal((4, 6)), rng.standard_normal((9, 6)), np.arange(9) % 4
    mean = mean_gradient(weights, x, y, loss)
    total, fast = loss_and_gradient(weights, x, y, loss)
    np.testing.assert_allclose(mean, fast, atol=1e-14)
    one_by_one = [EXAMPLE_LOSS[loss](score(weights, a), int(b)) for a, b in zip(x, y, strict=True)]
    assert np.mean(one_by_one) == pytest.approx(total)
    slopes = central_gradient(lambda w: EXAMPLE_LOSS[loss](score(w, x[0]), 0), weights.copy(), 1e-6)
    row = EXAMPLE_GRADIENT[loss](score(weights, x[0]), 0, x[0])
    np.testing.assert_allclose(row, slopes, atol=1e-8)


def test_formulas_on_real_images():
    found = compare_formulas("sample", examples=10)
    for row in found.rows:
        assert row.of_an_example < 1e-12 and row.of_the_mean < 1e-12 and row.numerical < 1e-7
    assert sum(found.first.probabilities) == pytest.approx(1)
    assert "<svg" in svg_of(draw_formulas(found), "formulas")
    strange = ("$x^", "$\\frac$", "a\x1b[31m", *found.first.classes[3:])
    named = replace(found, first=replace(found.first, classes=strange))
    assert "<svg" in svg_of(draw_formulas(named), "formulas")  # names are no formulas


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: initial_loss("sample", scales=()), "scales"),
        (lambda: initial_loss("sample", examples=0), "examples cannot be 0"),
        (lambda: hinges((0.0, 0.0, 0.0)), "points"),
        (lambda: hinges(weights=(1.0,)), "weights"),
        (lambda: check_convexity("sample", segments=0), "segments cannot be 0"),
        (lambda: compare_formulas("sample", examples=10_000), "examples cannot be 10000"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(UsageError, match=says):
        call()
