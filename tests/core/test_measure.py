"""Loss and confusion matrix of both models, against a count by hand."""

from itertools import pairwise

import numpy as np
import pytest
from two_layer_problem import CLASSES, Problem

from distsgd.core.model import LOSSES, SlotLoss, measure


@pytest.mark.parametrize("model", ["linear", "mlp:1", "mlp:20"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cuts", [[0, 300], [0, 1, 140, 141, 300]])
def test_measure_equals_a_count_by_hand(model, loss, cuts):
    problem = Problem(48, 300, model=model)
    batches = [(problem.pixels[low:high], problem.labels[low:high]) for low, high in pairwise(cuts)]
    found, confusion = measure(problem.model, problem.flat, loss, problem.preprocessing, batches)
    scores = problem.scores()
    losses = LOSSES[loss](scores, problem.labels, np.empty_like(scores))
    expected = np.zeros((CLASSES, CLASSES), dtype=int)
    for truth, guess in zip(problem.labels, scores.argmax(axis=1), strict=True):
        expected[truth, guess] += 1
    assert confusion.tolist() == expected.tolist()
    assert found.loss == pytest.approx(losses.sum(), rel=1e-12)
    assert (found.correct, found.examples) == (int(np.trace(expected)), 300)


@pytest.mark.parametrize("model", ["linear", "mlp:20"])
def test_measure_of_nothing(model):
    problem = Problem(48, 1, model=model)
    found, confusion = measure(problem.model, problem.flat, "softmax", problem.preprocessing, [])
    assert found == SlotLoss(0.0, 0, 0)
    assert not confusion.any()
