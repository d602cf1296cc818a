"""Slot gradients against one full-batch product, and the purity of the kernel."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from distsgd.core.arrays import as_matrix
from distsgd.core.model import LOSSES, Preprocessing, make_architecture
from distsgd.core.model.architecture import pad
from distsgd.core.model.gradient_check import analytic_gradient
from distsgd.core.model.slot_gradient import (
    SMALL_PRODUCTS,
    WHOLE_PRODUCTS,
    KernelSettings,
    LinearKernel,
)

CLASSES = 10
CIFAR = 3072
SMALL = 48
PRODUCTS = (SMALL_PRODUCTS, WHOLE_PRODUCTS)


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread():
    with threadpool_limits(1):
        yield


class Problem:
    """Random images, labels and W; and the full-batch gradient in one product."""

    def __init__(self, features, examples, dtype="float64", products=SMALL_PRODUCTS):
        self.products = products
        rng = np.random.default_rng(features + examples)
        self.features, self.dtype = features, dtype
        self.preprocessing = Preprocessing(rng.uniform(100, 150, features), scale=64.0)
        self.pixels = rng.integers(0, 256, (examples, features)).astype(np.uint8)
        self.labels = rng.integers(0, CLASSES, examples).astype(np.uint8)
        self.weights = (rng.standard_normal((CLASSES, features + 1)) * 0.05).astype(dtype)
        self.padded = as_matrix(pad(self.weights), CLASSES)

    def kernel(self, loss, slot_size):
        settings = KernelSettings(
            loss, self.preprocessing, slot_size, self.dtype, products=self.products
        )
        return LinearKernel(settings, CLASSES)

    def gradient(self, kernel, rows):
        """The gradient of some rows, written over nan, and their loss."""
        out = np.full_like(self.padded, np.nan)
        found = kernel.gradient(self.padded, self.pixels[rows], self.labels[rows], out)
        return out, found

    def serial(self, loss):
        """Sum of dL_i/dW over all examples, shape (classes, features + 1), and the scores."""
        centred = (self.pixels - self.preprocessing.mean) / self.preprocessing.scale
        features = np.hstack([centred, np.ones((len(centred), 1))])
        scores = features @ self.weights.T
        by_score = np.empty_like(scores)
        losses = LOSSES[loss](scores, self.labels, by_score)
        return by_score.T @ features, losses, scores


def slots_of(examples, slot_size):
    return [slice(low, low + slot_size) for low in range(0, examples, slot_size)]


def writer(pixels):
    """Writes these pixels, of shape (slots, examples, features)."""

    def write(first, rows):
        rows[:, :, : pixels.shape[2]] = pixels[first : first + len(rows)]

    return write


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("slot_size", [1, 3, 7, 33, 64, 101, 150])
def test_slot_sums_equal_the_serial_gradient(loss, slot_size):
    problem = Problem(SMALL, 101)
    check_against_serial(problem, loss, slot_size)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("slot_size", [37, 64, 101])
@pytest.mark.parametrize("products", PRODUCTS)
def test_slot_sums_equal_the_serial_gradient_of_cifar_images(loss, slot_size, products):
    """Here the products are cut into blocks of rows and of columns."""
    problem = Problem(CIFAR, 101, products=products)
    check_against_serial(problem, loss, slot_size)


def check_against_serial(problem, loss, slot_size):
    kernel = problem.kernel(loss, slot_size)
    parts = [problem.gradient(kernel, rows) for rows in slots_of(101, slot_size)]
    expected, losses, scores = problem.serial(loss)
    total = sum(gradient for gradient, _ in parts)
    columns = problem.features + 1
    assert relative_error(total[:, :columns], expected) <= 1e-12
    assert not total[:, columns:].any()
    assert sum(part.examples for _, part in parts) == 101
    assert sum(part.loss for _, part in parts) == pytest.approx(losses.sum(), rel=1e-12)
    hits = int((scores.argmax(axis=1) == problem.labels).sum())
    assert sum(part.correct for _, part in parts) == hits > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("slot_size", [5, 64])
def test_analytic_gradient_is_the_mean_with_the_penalty(loss, slot_size):
    problem, regularization = Problem(SMALL, 101), 0.3
    found = analytic_gradient(
        make_architecture("linear", SMALL, CLASSES), problem.weights, loss,
        problem.preprocessing, problem.pixels, problem.labels, regularization, slot_size,
    )  # fmt: skip
    expected = problem.serial(loss)[0] / 101
    expected[:, :SMALL] += 2 * regularization * problem.weights[:, :SMALL]
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("features", [SMALL, CIFAR])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_slot_has_the_same_bits_whatever_the_kernel_did_before(loss, features, dtype):
    """Full slots, shorter ones after them, and full ones again, in buffers that are reused."""
    problem = Problem(features, 101, dtype)
    slots = slots_of(101, 33)
    alone = [problem.gradient(problem.kernel(loss, 33), rows) for rows in slots]
    kernel = problem.kernel(loss, 33)
    for place in (0, 1, 3, 0, 3, 3, 2, 1):
        gradient, found = problem.gradient(kernel, slots[place])
        assert gradient.tobytes() == alone[place][0].tobytes()
        assert found == alone[place][1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("features", "slot_size"),
    [(SMALL, 1), (SMALL, 2), (SMALL, 7), (CIFAR, 1), (CIFAR, 33), (CIFAR, 64)],
)
@pytest.mark.parametrize("products", PRODUCTS)
def test_slots_have_the_same_bits_alone_and_together(loss, dtype, features, slot_size, products):
    """At any place among those computed with it, and after others in the same buffers."""
    problem = Problem(features, 6 * slot_size, dtype, products)
    problem.weights *= 3
    kernel = problem.kernel(loss, slot_size)
    slots = slots_of(6 * slot_size, slot_size)
    alone = [problem.gradient(problem.kernel(loss, slot_size), rows) for rows in slots]
    for first, last in [(0, 3), (1, 4), (2, 4), (3, 6), (5, 6), (2, 5)]:
        many = slice(first * slot_size, last * slot_size)
        write = writer(problem.pixels[many].reshape(last - first, slot_size, -1))
        out = np.full((last - first, *problem.padded.shape), np.nan, dtype)
        labels = problem.labels[many].reshape(last - first, slot_size)
        found = kernel.gradients(problem.padded, labels, out, write)
        for place, (gradient, loss_alone) in enumerate(alone[first:last]):
            assert out[place].tobytes() == gradient.tobytes()
            assert found[place] == loss_alone


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_where_weights_lie_in_memory(dtype):
    problem = Problem(CIFAR, 64, dtype)
    kernel = problem.kernel("softmax", 64)
    expected, _ = problem.gradient(kernel, slice(0, 64))
    memory = np.empty(problem.padded.size + 64, dtype)
    for offset in (1, 2, 3, 5, 16, 33):
        moved = memory[offset : offset + problem.padded.size].reshape(CLASSES, -1)
        moved[...] = problem.padded
        problem.padded = moved
        assert problem.gradient(kernel, slice(0, 64))[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_slot_after_a_diverged_one_is_clean(loss):
    """No nan or infinity stays behind in the buffers."""
    problem = Problem(SMALL, 40, "float32")
    rows = slice(0, 15)
    expected, loss_alone = problem.gradient(problem.kernel(loss, 20), rows)
    kernel = problem.kernel(loss, 20)
    with np.errstate(all="ignore"):
        broken = np.full_like(problem.padded, np.inf)
        found = kernel.gradient(
            broken, problem.pixels[20:], problem.labels[20:], np.empty_like(broken)
        )
    assert not np.isfinite(found.loss)
    gradient, found = problem.gradient(kernel, rows)
    assert gradient.tobytes() == expected.tobytes()
    assert found == loss_alone


def test_arguments_are_left_alone():
    problem = Problem(SMALL, 20)
    before = (problem.padded.tobytes(), problem.pixels.tobytes(), problem.labels.tobytes())
    problem.gradient(problem.kernel("svm", 20), slice(0, 20))
    assert before == (problem.padded.tobytes(), problem.pixels.tobytes(), problem.labels.tobytes())
