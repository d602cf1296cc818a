"""Slot gradients through two layers against their definition, and the purity of the kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from two_layer_problem import Problem, slots_of

from distsgd.core.model import LOSSES

CIFAR, SMALL = 3072, 48


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread():
    with threadpool_limits(1):
        yield


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("slot_size", [1, 3, 33, 64, 101, 150])
@pytest.mark.parametrize("hidden", [1, 15, 16, 100])
def test_slot_sums_equal_the_definition(loss, slot_size, hidden):
    check_against_definition(Problem(SMALL, 101, model=f"mlp:{hidden}"), loss, slot_size)


@pytest.mark.parametrize("loss", LOSSES)
def test_slot_sums_equal_the_definition_for_cifar_images(loss):
    check_against_definition(Problem(CIFAR, 101, model="mlp:100"), loss, 64)


def check_against_definition(problem, loss, slot_size):
    kernel = problem.kernel(loss, slot_size)
    parts = [problem.gradient(kernel, rows) for rows in slots_of(101, slot_size)]
    total_loss, expected = problem.definition(loss)
    total = sum(gradient for gradient, _ in parts)
    assert relative_error(problem.model.unpad(total), expected) <= 1e-12
    assert np.count_nonzero(total) == np.count_nonzero(problem.model.unpad(total))
    assert sum(part.examples for _, part in parts) == 101
    assert sum(part.loss for _, part in parts) == pytest.approx(total_loss, rel=1e-12)
    hits = int((problem.scores().argmax(axis=1) == problem.labels).sum())
    assert sum(part.correct for _, part in parts) == hits


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_slot_has_the_same_bits_whatever_the_kernel_did_before(loss, dtype):
    """Full slots, shorter ones after them, and full ones again, in buffers that are reused."""
    problem = Problem(SMALL, 101, dtype)
    slots = slots_of(101, 33)
    alone = [problem.gradient(problem.kernel(loss, 33), rows) for rows in slots]
    kernel = problem.kernel(loss, 33)
    for place in (0, 1, 3, 0, 3, 3, 2, 1):
        gradient, found = problem.gradient(kernel, slots[place])
        assert gradient.tobytes() == alone[place][0].tobytes()
        assert found == alone[place][1]


@settings(max_examples=60)
@given(
    hidden=st.integers(1, 40),
    slot_size=st.integers(1, 40),
    loss=st.sampled_from(sorted(LOSSES)),
    dtype=st.sampled_from(["float32", "float64"]),
    data=st.data(),
)
def test_slots_have_the_same_bits_alone_and_together(hidden, slot_size, loss, dtype, data):
    """At any place among those computed with it, and after others in the same buffers."""
    problem = Problem(SMALL, 6 * slot_size, dtype, f"mlp:{hidden}")
    check_together(problem, loss, slot_size, data.draw(st.integers(0, 4)), 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("hidden", "slot_size"), [(100, 64), (150, 33), (7, 1)])
def test_slots_of_cifar_images_have_the_same_bits_together(dtype, hidden, slot_size):
    problem = Problem(CIFAR, 6 * slot_size, dtype, f"mlp:{hidden}")
    for first in (0, 2, 3):
        check_together(problem, "softmax", slot_size, first, 3)


def check_together(problem, loss, slot_size, first, more):
    kernel = problem.kernel(loss, slot_size)
    last = min(6, first + 1 + more)
    many = slice(first * slot_size, last * slot_size)
    pixels = problem.pixels[many].reshape(last - first, slot_size, -1)

    def write(first, rows):
        rows[:, :, : pixels.shape[2]] = pixels[first : first + len(rows)]

    # Rows of what workers push lie apart in memory that is shared.
    out = np.full((last - first, problem.flat.size + 32), np.nan, problem.dtype)
    out = out[:, : problem.flat.size]
    labels = problem.labels[many].reshape(last - first, slot_size)
    found = kernel.gradients(problem.flat, labels, out, write)
    for place, slot in enumerate(slots_of(6 * slot_size, slot_size)[first:last]):
        gradient, loss_alone = problem.gradient(problem.kernel(loss, slot_size), slot)
        assert out[place].tobytes() == gradient.tobytes()
        assert found[place] == loss_alone


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [1, 100])
def test_bits_do_not_depend_on_where_parameters_lie_in_memory(dtype, hidden):
    problem = Problem(CIFAR, 64, dtype, f"mlp:{hidden}")
    kernel = problem.kernel("softmax", 64)
    expected, _ = problem.gradient(kernel, slice(0, 64))
    memory, room = np.empty((2, problem.flat.size + 64), dtype)
    for offset in (1, 2, 3, 5, 16, 33):
        moved, out = (at[offset : offset + problem.flat.size] for at in (memory, room))
        moved[...] = problem.flat
        kernel.gradient(moved, problem.pixels, problem.labels, out)
        assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("model", ["linear", "mlp:20"])
@pytest.mark.parametrize(
    ("slot_size", "most"), [(4096, 7), (64, 7), (1, 7), (33, 40), (300, 300), (16, 256)]
)
def test_buffers_are_no_larger_than_a_minibatch_and_bits_are_the_same(model, slot_size, most):
    problem = Problem(CIFAR, most, "float32", model)
    kernel = problem.kernel("softmax", slot_size, most)
    examples = min(most, slot_size)
    assert kernel._rows.shape[:2] == (kernel.slots, examples + 1)
    assert examples * kernel.slots < most + slot_size and kernel._rows.nbytes < 2 * 13000 * most
    plain = problem.kernel("softmax", slot_size)
    for slot in slots_of(most, slot_size):
        found, expected = problem.gradient(kernel, slot), problem.gradient(plain, slot)
        assert found[0].tobytes() == expected[0].tobytes() and found[1] == expected[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_slot_after_a_diverged_one_is_clean(loss):
    """No nan or infinity stays behind in the buffers."""
    problem = Problem(SMALL, 40, "float32")
    rows = slice(0, 15)
    expected, loss_alone = problem.gradient(problem.kernel(loss, 20), rows)
    kernel = problem.kernel(loss, 20)
    with np.errstate(all="ignore"):
        broken = np.full_like(problem.flat, np.inf)
        found = kernel.gradient(
            broken, problem.pixels[20:], problem.labels[20:], np.empty_like(broken)
        )
    assert not np.isfinite(found.loss)
    gradient, found = problem.gradient(kernel, rows)
    assert gradient.tobytes() == expected.tobytes()
    assert found == loss_alone


def test_arguments_are_left_alone():
    problem = Problem(SMALL, 20)
    arguments = (problem.flat, problem.pixels, problem.labels)
    before = [argument.tobytes() for argument in arguments]
    problem.gradient(problem.kernel("svm", 20), slice(0, 20))
    assert before == [argument.tobytes() for argument in arguments]
