"""The lecture's three strategies, on the embedded sample."""

import numpy as np
import pytest

from distsgd.core.model import LOSSES
from distsgd.errors import UsageError
from distsgd.lecture.experiments import (
    draw_local_search,
    draw_numeric_gradient,
    draw_random_search,
    draw_step_sizes,
    local_search,
    numeric_gradient,
    random_search,
    step_sizes,
)
from distsgd.lecture.experiments.search import (
    direction,
    first_weights,
    local_search_loop,
    random_weights,
)
from distsgd.lecture.material import LOSS_OF_SCORES, Pieces, first_examples, gradient_of, loss_of
from distsgd.lecture.plain.loops import (
    central_gradient,
    eval_numerical_gradient,
    partials,
    steps_without_kinks,
)

SHAPE = (10, 3073)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_many_are_those_of_each(sample, loss):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((40, 7, 10)) * 3
    labels = rng.integers(0, 10, 40)
    every = LOSS_OF_SCORES[loss](scores.copy(), labels)
    for number in range(7):
        one = scores[:, number]
        np.testing.assert_allclose(every[:, number], LOSSES[loss](one, labels, np.empty_like(one)))
    weights = (rng.standard_normal((3, *SHAPE)) * 1e-4).astype(np.float32)
    examples = first_examples(sample, "train", 1200)
    found = Pieces.of(sample, "train", 1200).losses(weights, loss)
    expected = [loss_of(one.astype(np.float64), examples, loss) for one in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_random_search_keeps_the_best(sample):
    found = random_search("sample", attempts=60)
    assert len(found.losses) == 60 and found.best_loss == min(found.losses)
    best = random_weights(0, found.best_attempt, SHAPE).astype(np.float64)
    examples = first_examples(sample, "train")
    assert loss_of(best, examples, "svm") == pytest.approx(found.best_loss, rel=1e-5)
    test = first_examples(sample, "test")
    hits = (test.features @ best.T).argmax(axis=1) == test.labels
    assert hits.mean() == pytest.approx(found.test_accuracy, abs=0.01)
    draw_random_search(found)


def test_local_search_decides_as_the_plain_loop_does(sample):
    examples = first_examples(sample, "train", 300)
    found = local_search("sample", tries=120, examples=300)
    plain = local_search_loop(
        first_weights(0, SHAPE).astype(np.float64), examples.features, examples.labels,
        lambda weights: loss_of(weights, examples, "svm"), tries=120,
    )  # fmt: skip
    losses = [loss for _, loss in plain]
    taken = [i + 1 for i, loss in enumerate(losses) if loss < ([found.losses[0], *losses])[i]]
    np.testing.assert_allclose(found.losses[1:], losses, rtol=1e-5)
    assert [number for number in found.taken if number > 1] == [n for n in taken if n > 1]
    assert list(found.losses) == sorted(found.losses, reverse=True)
    draw_local_search(found)


def test_directions_are_a_tries_own():
    assert not np.array_equal(direction(0, 1, (3, 4)), direction(0, 2, (3, 4)))
    assert np.array_equal(direction(0, 1, (3, 4)), direction(0, 1, (3, 4)))


@pytest.mark.ray
def test_the_answers_are_the_same_for_any_number_of_workers(shared_ray):
    for call in (
        lambda workers: random_search("sample", attempts=80, workers=workers),
        lambda workers: local_search("sample", tries=40, examples=500, workers=workers),
        lambda workers: step_sizes("sample", workers=workers),
    ):
        assert call(0) == call(2)
    found = [
        numeric_gradient("sample", examples=40, parameters=1100, curve_parameters=5, workers=n)
        for n in (0, 2)
    ]
    assert [row.relative_error for row in found[0].rows] == [
        row.relative_error for row in found[1].rows
    ]


@pytest.mark.parametrize("gradient", [eval_numerical_gradient, central_gradient])
def test_numerical_gradients_of_a_known_function(gradient):
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before = x.copy()
    np.testing.assert_allclose(gradient(lambda a: float((a**3).sum()), x), 3 * x**2, rtol=1e-4)
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    ("scheme", "plain"), [("one-sided", eval_numerical_gradient), ("central", central_gradient)]
)
def test_partials_are_those_of_the_readable_loop(scheme, plain):
    x = np.random.default_rng(0).standard_normal((4, 5))
    calls = []

    def losses(stack):
        calls.append(len(stack))
        return np.sin(stack).sum(axis=(1, 2))

    found, count = partials(losses, x, np.arange(20), np.full(20, 1e-5), scheme)
    assert count == sum(calls) == (21 if scheme == "one-sided" else 40)
    expected = plain(lambda a: float(np.sin(a).sum()), x)
    np.testing.assert_allclose(found.reshape(4, 5), expected, rtol=1e-9)


def test_a_step_never_reaches_a_kink(sample):
    examples = first_examples(sample, "train", 60, scale=64.0)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(SHAPE) * 1e-2
    scores = examples.features @ weights.T

    def signs(moved):
        found = examples.features @ moved.T
        return found - found[np.arange(60), examples.labels][:, None] + 1 > 0

    steps = steps_without_kinks(scores, examples.labels, examples.features, 0.01)
    assert (steps <= 0.01).all() and (steps < 0.01).any() and (steps > 0).all()
    short = np.argwhere(steps < 0.01)
    right = np.eye(10, dtype=bool)[examples.labels]
    for place in short[rng.permutation(len(short))[:60]]:
        crossed = []
        for factor in (1, 2):  # twice as far is too far: on one side or the other
            moved = [weights.copy() for _ in range(2)]
            for one, sign in zip(moved, (1, -1), strict=True):
                one[tuple(place)] += sign * factor * steps[tuple(place)]
            same = [((signs(one) == signs(weights)) | right).all() for one in moved]
            crossed.append(not all(same))
        assert crossed[0] is False
        assert crossed[1] or factor * steps[tuple(place)] * 1.01 >= 0.005


@pytest.mark.parametrize("loss", LOSSES)
def test_numerical_and_analytic_gradients_agree(loss):
    found = numeric_gradient("sample", loss=loss, examples=60, parameters=1000)
    one_sided, central = found.rows
    assert one_sided.relative_error < 1e-4 and central.relative_error < 1e-7
    assert (one_sided.evaluations, central.evaluations) == (1001, 2000)
    for curve in found.curves:  # rounding to one side, truncation to the other
        lowest = int(np.argmin(curve.relative_errors))
        assert 0 < lowest < len(curve.steps) - 1
    draw_numeric_gradient(found)


def test_a_wrong_gradient_would_be_seen(monkeypatch):
    monkeypatch.setattr(
        "distsgd.lecture.experiments.gradients.gradient_of",
        lambda *a: 1.001 * gradient_of(*a),
    )
    found = numeric_gradient("sample", examples=30, parameters=200, curve_parameters=5)
    assert all(row.relative_error > 5e-4 for row in found.rows)


@pytest.mark.parametrize("loss", LOSSES)
def test_too_small_is_slow_and_too_large_grows_tenfold(loss):
    found = step_sizes("sample", loss=loss)
    best = found.steps.index(found.best_step)
    assert 0 < best < len(found.steps) - 1
    assert found.losses[0] == pytest.approx(found.loss_before, rel=1e-3)
    assert min(found.losses) < 0.98 * found.loss_before
    assert all(abs(ratio - 10) < 1 for ratio in found.last_ratios)
    draw_step_sizes([found])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: random_search("sample", attempts=0), "attempts cannot be 0"),
        (lambda: random_search("sample", examples=10**6), "examples"),
        (lambda: random_search("sample", loss="hinge"), "loss"),
        (lambda: local_search("sample", tries=0), "tries cannot be 0"),
        (lambda: local_search("sample", step=0), "step"),
        (lambda: local_search("sample", scale=float("nan")), "scale"),
        (lambda: numeric_gradient("sample", steps=()), "steps is empty"),
        (lambda: numeric_gradient("sample", h=0), "h cannot be 0"),
        (lambda: numeric_gradient("sample", steps=(1e-3, -1)), "h cannot be -1"),
        (lambda: numeric_gradient("sample", examples=10**6), "examples"),
        (lambda: numeric_gradient("sample", parameters=0), "parameters"),
        (lambda: step_sizes("sample", steps=(1e-3,)), "steps"),
        (lambda: step_sizes("sample", steps=(1e-3, 1e-2, 1e-1, 0)), "steps"),
    ],
)
def test_what_cannot_be_done_is_refused(call, says):
    with pytest.raises(UsageError, match=says):
        call()
