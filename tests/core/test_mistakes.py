from __future__ import annotations

import numpy as np

from distsgd.core.model import SurestMistakes


def test_the_surest_mistakes_of_several_batches() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.standard_normal((60, 4)) * 3).astype(np.float32)
    labels = rng.integers(0, 4, 60).astype(np.uint8)
    found = SurestMistakes(5)
    for low in range(0, 60, 17):
        part = scores[low : low + 17]
        found.add(part, labels[low : low + 17], part.argmax(axis=1))
    powers = np.exp(scores.astype(np.float64))
    sure = powers.max(axis=1) / powers.sum(axis=1)
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    expected = wrong[np.argsort(-sure[wrong])][:5]
    assert [one.index for one in found.found()] == expected.tolist()
    np.testing.assert_allclose([one.probability for one in found.found()], sure[expected])
    first = found.found()[0]
    assert (first.label, first.predicted) == (labels[first.index], scores[first.index].argmax())


def test_no_mistakes_and_scores_that_are_not_finite() -> None:
    found = SurestMistakes()
    found.add(np.eye(3), np.arange(3), np.arange(3))
    assert found.found() == []
    found.add(np.array([[np.inf, np.inf]]), np.array([1]), np.array([0]))
    assert [(one.index, one.probability) for one in found.found()] == [(3, 0.0)]
