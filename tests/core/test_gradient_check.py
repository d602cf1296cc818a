"""The gradient check on real images: it passes what is right and catches what is wrong."""

import numpy as np
import pytest

from distsgd.core.model import LOSSES, architecture, gradient_check, make_architecture
from distsgd.core.model.architecture import decay_factors
from distsgd.core.model.gradient_check import GradientCheck, check_gradient
from distsgd.core.model.slot_gradient import LinearKernel
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE

CLASSES = 10
LIMIT = 1e-6
WRONG = 1e-4
"""What a wrong gradient must at least show: far above LIMIT."""


@pytest.fixture(scope="module")
def sample():
    return Dataset(SAMPLE)


@pytest.fixture(scope="module")
def images(sample):
    """Thirty real images and their labels."""
    pixels = np.empty((30, sample.manifest.features), dtype=np.uint8)
    sample.train.gather(np.arange(30), pixels)
    return pixels, sample.train.labels[:30]


@pytest.fixture(scope="module")
def preprocessing(sample):
    return sample.preprocessing(64.0)


@pytest.fixture
def check(preprocessing, images):
    pixels, labels = images

    def run(
        loss, *, scale=1e-2, h=1e-3, regularization=0.1, parameters=80, weights=None, examples=30
    ):
        rng = np.random.default_rng(0)
        shape = (CLASSES, preprocessing.features + 1)
        if weights is None:
            weights = rng.standard_normal(shape) * scale
        if isinstance(parameters, int):
            parameters = rng.permutation(weights.size)[:parameters]
        return check_gradient(
            make_architecture("linear", preprocessing.features, CLASSES), weights, loss,
            preprocessing, pixels[:examples], labels[:examples],
            regularization=regularization, parameters=parameters, h=h,
        )  # fmt: skip

    return run


def biases(features):
    return np.arange(CLASSES) * (features + 1) + features


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularization", [0.0, 0.1])
@pytest.mark.parametrize(("scale", "h"), [(1e-4, 1e-3), (1e-2, 1e-3), (30.0, 5e-3)])
def test_the_gradients_are_right_on_real_images(check, loss, regularization, scale, h):
    found = check(loss, scale=scale, h=h, regularization=regularization)
    assert found.largest_relative_error <= LIMIT
    assert found.compared > 60
    assert found.compared + found.skipped == 80


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_the_biases_are_right(check, loss, preprocessing):
    found = check(loss, parameters=biases(preprocessing.features))
    assert found.largest_relative_error <= LIMIT
    assert found.compared > 0


def test_softmax_has_no_kinks_to_skip(check):
    assert check("softmax", scale=30.0, h=0.1).skipped == 0


def scaled(gradient, labels):
    gradient *= 1.001


def without_the_label(gradient, labels):
    gradient[np.arange(len(labels)), labels] = 0


def of_one_example_only(gradient, labels):
    gradient[0] += 0.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mistake", [scaled, without_the_label, of_one_example_only])
def test_a_wrong_gradient_of_the_scores_is_caught(check, monkeypatch, loss, mistake):
    right = LOSSES[loss]

    def wrong(scores, labels, gradient):
        losses = right(scores, labels, gradient)
        mistake(gradient, labels)
        return losses

    monkeypatch.setitem(LOSSES, loss, wrong)
    assert check(loss, regularization=0.0).largest_relative_error > WRONG


@pytest.mark.parametrize("loss", LOSSES)
def test_a_kernel_that_loses_its_last_rows_is_caught(check, monkeypatch, loss):
    right = LinearKernel.gradient

    def wrong(self, weights, pixels, labels, out):
        return right(self, weights, pixels[:-1], labels[:-1], out)

    monkeypatch.setattr(LinearKernel, "gradient", wrong)
    assert check(loss).largest_relative_error > WRONG


def half_decay(classes, features, regularization, dtype):
    return decay_factors(classes, features, regularization / 2, dtype)


def decay_of_all(classes, features, regularization, dtype):
    return np.full_like(decay_factors(classes, features, 0, dtype), 2 * regularization)


@pytest.mark.parametrize("wrong", [half_decay, decay_of_all])
def test_a_wrong_penalty_is_caught(check, monkeypatch, preprocessing, wrong):
    monkeypatch.setattr(architecture, "decay_factors", wrong)
    chosen = [0, 1000, *biases(preprocessing.features)]
    found = check("softmax", scale=1.0, regularization=1.0, parameters=chosen)
    assert found.largest_relative_error > WRONG


def weights_at_a_kink(features, labels):
    """W whose scores make the margin of class 0 exactly 0 for every example not of class 0."""
    weights = np.zeros((CLASSES, features + 1))
    weights[0, features] = -1
    assert (labels != 0).any()
    return weights


def test_parameters_at_a_kink_are_counted_as_skipped(check, preprocessing, images):
    features = preprocessing.features
    weights = weights_at_a_kink(features, images[1])
    found = check("svm", weights=weights, parameters=[features], regularization=0.0)
    assert found == GradientCheck(0.0, compared=0, skipped=1)


def test_kinks_are_skipped_and_the_others_compared(check, preprocessing, images):
    """The labels' own classes and class 0 are at a kink, classes without an image are not."""
    features, labels = preprocessing.features, images[1][:6]
    weights = weights_at_a_kink(features, labels)
    found = check(
        "svm", weights=weights, parameters=biases(features), regularization=0.0, examples=6
    )
    at_a_kink = len({0, *labels.tolist()})
    assert (found.compared, found.skipped) == (CLASSES - at_a_kink, at_a_kink)
    assert found.compared > 0
    assert found.largest_relative_error <= LIMIT


def test_a_kink_would_be_a_large_error_if_it_were_not_skipped(
    check, monkeypatch, preprocessing, images
):
    features = preprocessing.features
    monkeypatch.setattr(gradient_check, "_margins_flip", lambda *_: False)
    weights = weights_at_a_kink(features, images[1])
    found = check("svm", weights=weights, parameters=[features], regularization=0.0)
    assert found.largest_relative_error > WRONG


def test_a_wider_step_meets_more_kinks(check):
    narrow, wide = check("svm", h=1e-5), check("svm", h=1e-1)
    assert narrow.skipped < wide.skipped
    assert narrow.compared + narrow.skipped == wide.compared + wide.skipped == 80


def test_a_gradient_that_is_not_a_number_is_caught(check, monkeypatch):
    right = LOSSES["softmax"]

    def wrong(scores, labels, gradient):
        losses = right(scores, labels, gradient)
        gradient[...] = np.nan
        return losses

    monkeypatch.setitem(LOSSES, "softmax", wrong)
    assert not check("softmax").largest_relative_error <= LIMIT
