"""Exact arithmetic: sums do not depend on their order up to the bounds, and do one bit beyond."""

import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.model import Grids, KernelSettings, Preprocessing, make_architecture
from distsgd.core.model.exact_losses import exact_loss, exact_sum
from distsgd.core.model.grids import (
    HIDDEN_RANGE,
    PART_BITS,
    SECOND_RANGE,
    WEIGHT_BITS,
    bits,
    hidden_bits,
)
from distsgd.core.model.losses import LOSSES
from distsgd.core.optim import Schedule, Updater, make_optimizer
from distsgd.core.reduction_tree import Node, sum_node

GRIDS = Grids(classes=10, hidden=0, examples=256, loss="softmax", scale=64.0)


def in_every_way(left, right):
    """The products' sum in many orders, as floats."""
    rng = np.random.default_rng(0)
    terms = left * right
    assert all(Fraction(t) == Fraction(a) * Fraction(b) for t, a, b in
               list(zip(terms, left, right, strict=True))[:50])  # fmt: skip
    orders = [np.arange(len(terms)), np.argsort(-terms, kind="stable")]
    orders += [rng.permutation(len(terms)) for _ in range(5)]
    found = {float(np.add.accumulate(terms[order])[-1]) for order in orders}
    wide = np.repeat(left[None], 12, axis=0)
    found |= set((wide @ np.ascontiguousarray(right)[:, None]).reshape(-1).tolist())
    found |= {float(left @ right), float(terms.sum()), float(np.add.reduceat(terms, [0])[0])}
    whole = sum(Fraction(t) for t in terms.tolist())  # integers of Python
    return found | {math.fsum(terms), float(whole)}


def extreme(count, largest, fraction):
    """Odd multiples of 2**-fraction just below a largest size, which differ a little."""
    step = 2.0**-fraction
    return largest - step * (2 * np.random.default_rng(1).integers(0, 50, count) + 1)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("features", [3072, 150_528])
def test_scores_are_exact_up_to_the_bound(features, beyond):
    largest = GRIDS.largest_row / features
    fraction = WEIGHT_BITS + beyond
    step = 2.0**-fraction
    rng = np.random.default_rng(features)
    weights = (2 * np.floor(largest / step / 2 * rng.uniform(0.98, 1, features)) - 1) * step
    assert GRIDS.first_layer_fits(weights[None], np.empty((1, features)))
    found = in_every_way(np.full(features, 255.0), weights)
    assert (len(found) == 1) == (beyond == 0)


def test_a_row_beyond_the_bound_does_not_fit():
    scratch = np.empty((2, 4))
    at = np.array([[0, 0, 0, 0], [4096, -4096, 0, 0.0]])
    assert GRIDS.first_layer_fits(at, scratch)
    assert not GRIDS.first_layer_fits(at + np.array([0, 0, 0, 2.0**-32]), scratch)
    for wrong in (np.nan, np.inf):
        assert not GRIDS.first_layer_fits(at + np.array([0, 0, 0, wrong]), scratch)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("examples", [32768, 65536])
def test_gradients_are_exact_up_to_the_bound(examples, beyond):
    grids = replace(GRIDS, examples=examples)
    gradient = extreme(examples, 1.0, grids.score_gradient + beyond)
    assert grids.score_gradient == 45 - bits(examples)
    found = in_every_way(gradient, np.full(examples, 255.0))
    assert (len(found) == 1) == (beyond == 0)


@pytest.mark.parametrize("beyond", [0, 1])
def test_second_scores_are_exact_up_to_the_bound(beyond):
    hidden = 1023
    values = extreme(hidden + 1, 2.0**HIDDEN_RANGE, hidden_bits(hidden) + beyond)
    upper = extreme(hidden + 1, 2.0**SECOND_RANGE, PART_BITS - SECOND_RANGE)
    assert hidden_bits(hidden) == 14
    found = in_every_way(values, upper)
    assert (len(found) == 1) == (beyond == 0)


@pytest.mark.parametrize("beyond", [0, 1])
def test_gradients_of_the_second_layer_are_exact_up_to_the_bound(beyond):
    grids = replace(GRIDS, hidden=20, examples=131072)
    assert grids.score_gradient == 24
    gradient = extreme(grids.examples, 1.0, grids.score_gradient + beyond)
    upper = extreme(grids.examples, 2.0**HIDDEN_RANGE, 2)
    found = in_every_way(gradient, upper)
    assert (len(found) == 1) == (beyond == 0)


@given(
    classes=st.integers(2, 5000), hidden=st.sampled_from([0, 1, 20, 1000, 10_000]),
    examples=st.integers(1, 2**20), loss=st.sampled_from(["softmax", "svm"]),
    scale=st.sampled_from([1.0, 64.0, 256.0]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_what_is_accepted_fits(classes, hidden, examples, loss, scale):
    """The inequalities of the module, in whole numbers."""
    grids = Grids(classes=classes, hidden=hidden, examples=examples, loss=loss, scale=scale)
    try:
        grids.check()
    except ValueError as error:
        assert "bits" in str(error)
        return
    largest, total = (1, 4) if loss == "softmax" else (classes - 1, 2 * (classes - 1))
    raw, p = max(255, int(scale)), grids.score_gradient
    assert Fraction(grids.largest_row) * raw * 2**WEIGHT_BITS <= 2**53
    if not hidden:
        assert raw * examples * largest * 2**p <= 2**53
        return
    q, r = grids.hidden_value, grids.hidden_gradient
    half = -(-(HIDDEN_RANGE + q) // 2)
    assert 2**HIDDEN_RANGE * 2**q * 2**PART_BITS * (hidden + 1) <= 2**53
    assert 2**PART_BITS * 2**p * total <= 2**53
    assert 2**half * 2**p * largest * examples <= 2**53
    assert raw * examples * total * 2**SECOND_RANGE * 2**r <= 2**53
    exponent = grids.second_gradient
    assert 2**HIDDEN_RANGE * largest * examples * Fraction(2) ** exponent <= 2**53


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 63.0}, "a pixel_scale of 63: it must be a power of two from 1 to 256"),
        ({"scale": 0.5}, "a pixel_scale of 0.5"),
        ({"examples": 2**36}, "take 36 bits, and pixels 8: of the 53 bits of a float64, 9 are"),
        ({"hidden": 10**6}, "1,000,000 hidden units take 20 bits, parts of W2 19, and the range"),
        ({"hidden": 9, "examples": 2**30}, "minibatches of 1,073,741,824 examples take 30 bits"),
        ({"loss": "svm", "examples": 2**43}, "more than the 53 of a float64"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(changes, message):
    with pytest.raises(ValueError) as refused:
        replace(GRIDS, **changes).check()
    assert message in str(refused.value)


def test_first_weights_beyond_the_bounds_are_refused():
    GRIDS.check_first(3072, [1e-4])
    with pytest.raises(ValueError, match=re.escape("add up to about 9.83e+03 in size")):
        GRIDS.check_first(3072, [4.0])
    with pytest.raises(ValueError, match="second layer of up to 86, more than 64"):
        GRIDS.check_first(3072, [0.01, 10.0])


class Problem:
    """Random images, labels and exact parameters."""

    def __init__(self, model, features=17, examples=24, classes=5, scale=64.0):
        rng = np.random.default_rng(features)
        self.preprocessing = Preprocessing(rng.integers(90, 150, features).astype(float), scale)
        self.pixels = rng.integers(0, 256, (examples, features)).astype(np.uint8)
        self.labels = rng.integers(0, classes, examples).astype(np.uint8)
        self.model = make_architecture(model, features, classes, "exact")
        size = 0.1 if model == "linear" else 1.0
        self.flat = self.model.initial(3, size, "float64")

    def gradient(self, loss, slot_size, order=None):
        """The sum over all slots along the tree, and the loss."""
        count = len(self.labels)
        kernel = self.model.kernel(
            KernelSettings(loss, self.preprocessing, slot_size, "float64", count)
        )
        order = np.arange(count) if order is None else order
        slots = [order[low : low + slot_size] for low in range(0, count, slot_size)]
        parts = np.empty((len(slots), self.model.parameters))
        losses = [
            kernel.gradient(self.flat, self.pixels[slot], self.labels[slot], out)
            for slot, out in zip(slots, parts, strict=True)
        ]
        top = Node((len(slots) - 1).bit_length(), 0)
        return sum_node(top, parts, 0, len(slots)).copy(), [part.loss for part in losses]


@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_gradient_of_one_layer_is_that_of_whole_numbers(loss):
    """Scores and gradient in fractions of Python; dL/ds by the loss."""
    problem = Problem("linear")
    gradient, losses = problem.gradient(loss, 24)
    mean, scale = problem.preprocessing.mean.astype(int).tolist(), 64
    rows = [
        [Fraction(int(x) - c, scale) for x, c in zip(row, mean, strict=True)] + [Fraction(1)]
        for row in problem.pixels
    ]
    kept = problem.model.unpad(problem.flat)
    weights = [[Fraction(w) for w in row] for row in kept.tolist()]
    scores = [
        [sum(w * x for w, x in zip(own, row, strict=True)) for own in weights] for row in rows
    ]
    found = np.array([[float(score) for score in row] for row in scores])
    assert all(
        Fraction(f) == s for a, b in zip(found, scores, strict=True)
        for f, s in zip(a.tolist(), b, strict=True)
    )  # fmt: skip
    errors = np.empty_like(found)
    wanted = exact_loss(loss, 30)(found, problem.labels, errors)
    assert losses == [math.fsum(wanted)]
    for k, own in enumerate(problem.model.unpad(gradient)):
        for j, value in enumerate(own.tolist()):
            exact = sum(
                Fraction(e) * row[j] for e, row in zip(errors[:, k].tolist(), rows, strict=True)
            )
            assert Fraction(value) == exact


@pytest.mark.parametrize("loss", ["softmax", "svm"])
@pytest.mark.parametrize("model", ["linear", "mlp:6"])
def test_gradient_does_not_depend_on_order(model, loss):
    problem = Problem(model)
    once, _ = problem.gradient(loss, 24)
    for seed in range(3):
        other = problem.gradient(loss, 24, np.random.default_rng(seed).permutation(24))[0]
        np.testing.assert_array_equal(other, once)


@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_gradient_of_one_layer_does_not_depend_on_slots(loss):
    problem = Problem("linear")
    found = {problem.gradient(loss, slot_size)[0].tobytes() for slot_size in (3, 8, 24)}
    assert len(found) == 1


@pytest.mark.parametrize("slot_size", [3, 40])
@pytest.mark.parametrize("model", ["linear", "mlp:6"])
def test_a_range_of_slots_has_the_sum_of_their_gradients(model, slot_size):
    """Slots shorter and longer than a block of rows, and more columns than a block has."""
    problem = Problem(model, features=300, examples=5 * slot_size)
    pixels = problem.pixels.reshape(5, slot_size, -1)
    labels = problem.labels.reshape(5, slot_size)

    def write(first, out, example=0, column=0):
        slots, examples, columns = out.shape
        part = pixels[first : first + slots, example:, column:][:, :examples, :columns]
        out[:, :, : part.shape[2]] = part

    settings = KernelSettings("softmax", problem.preprocessing, slot_size, "float64", 10_000)
    each, sums = np.full((2, 5, problem.model.parameters), np.nan)
    losses = problem.model.kernel(settings).gradients(problem.flat, labels, each, write)
    kernel = problem.model.kernel(settings)
    for _ in range(2):  # buffers are used again
        assert kernel.sums(problem.flat, labels, sums, write, [(0, 1), (1, 4), (4, 5)]) == losses
        np.testing.assert_array_equal(sums[1], each[1:4].sum(axis=0))
        np.testing.assert_array_equal(sums[[0, 4]], each[[0, 4]])
        assert np.isnan(sums[2:4]).all()


@pytest.mark.parametrize("loss", ["softmax", "svm"])
@pytest.mark.parametrize("model", ["linear", "mlp:6"])
def test_gradient_is_near_that_of_floats(model, loss):
    problem = Problem(model)
    gradient, losses = problem.gradient(loss, 8)
    floats = make_architecture(model, 17, 5)
    kernel = floats.kernel(KernelSettings(loss, problem.preprocessing, 24, "float64", 24))
    wanted = np.empty_like(gradient)
    total = kernel.gradient(problem.flat, problem.pixels, problem.labels, wanted)
    size = np.abs(wanted).max()
    fine = 1e-8 if model == "linear" else 2e-4  # hidden values are multiples of 2**-14
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=fine * size)
    assert sum(losses) == pytest.approx(total.loss, rel=fine)


@pytest.mark.parametrize("model", ["linear", "mlp:6"])
def test_evaluation_has_the_scores_of_training(model):
    problem = Problem(model)
    features = problem.preprocessing.buffer(24, "float64")
    problem.preprocessing.fill(problem.pixels, features)
    scores = problem.model.score(problem.flat, features, np.empty((24, 5)))
    wanted = exact_sum(exact_loss("softmax", 30)(scores, problem.labels, np.empty_like(scores)))
    assert problem.gradient("softmax", 24)[1] == [wanted]
    assert problem.model.total_loss("softmax", scores, problem.labels) == wanted


@pytest.mark.parametrize(
    ("model", "index", "value"),
    [("linear", 0, 9000.0), ("linear", 3, np.inf), ("mlp:6", 0, 9000.0), ("mlp:6", -16, 65.0),
     ("mlp:6", 17, 2000.0)],
)  # fmt: skip
def test_a_weight_out_of_range_makes_the_loss_infinite(model, index, value):
    """The server takes that for divergence; with 2000, a bias, it is a hidden value."""
    problem = Problem(model)
    problem.flat[index] = value
    with np.errstate(all="ignore"):
        assert problem.gradient("svm", 24)[1] == [math.inf]


@pytest.mark.parametrize("name", ["softmax", "svm"])
@given(st.integers(2, 40), st.floats(1e-3, 1e4), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_losses_are_near_those_of_floats(name, classes, size, seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.standard_normal((7, classes)) * size, 6)
    labels = rng.integers(0, classes, 7)
    found, wanted = np.empty_like(scores), np.empty_like(scores)
    losses = exact_loss(name, 30)(scores, labels, found)
    np.testing.assert_allclose(
        losses, LOSSES[name](scores, labels, wanted), rtol=1e-10, atol=1e-12 * classes
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2.0**-30)
    fraction = found * 2.0**30
    np.testing.assert_array_equal(fraction, np.rint(fraction))
    alone = exact_loss(name, 30)(scores[:1], labels[:1], np.empty((1, classes)))
    assert alone[0] == losses[0]


@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adagrad", "adam"])
def test_updates_leave_w_on_its_grid_near_that_of_floats(rule):
    rng = np.random.default_rng(0)
    start = np.rint(rng.standard_normal(50) * 2.0**32) / 2.0**32
    schedule = Schedule(name="cosine", learning_rate=0.01, total=20, exact=True)
    plain = replace(schedule, exact=False)
    exact, floats = (
        Updater(
            start.copy(), decay=np.full(50, 0.01),
            optimizer=make_optimizer(rule, start, 0.9, weight_bits), schedule=own,
        )
        for weight_bits, own in ((32, schedule), (None, plain))
    )  # fmt: skip
    for step in range(20):
        gradient = rng.standard_normal(50)
        for updater in (exact, floats):
            updater.apply(gradient * 3, 3, step)
        units = exact.weights * 2.0**32
        np.testing.assert_array_equal(units, np.rint(units))
    np.testing.assert_allclose(exact.weights, floats.weights, rtol=0, atol=20 * 2.0**-33)
    assert not np.array_equal(exact.weights, floats.weights)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_exact_schedules_are_near_those_of_the_c_library(name):
    schedule = Schedule(name=name, learning_rate=0.3, total=1000, warmup=10, every=7, factor=0.9)
    exact = replace(schedule, exact=True)
    for step in range(1001):
        assert exact.at(step) == pytest.approx(schedule.at(step), rel=1e-13, abs=1e-16)
