"""An estimator whose fit is a run: what is in its folder, and what reads it."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import load_digits, load_iris

import distsgd
from distsgd.errors import RunError
from distsgd.sklearn import MinibatchSGDClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
"""Few epochs are enough for most tests."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("rows", "hidden"), [(1000, 0), (1000, 8), (200, 0)])
def test_the_run_is_the_fit(rows, hidden, tmp_path):
    """Of more rows than a minibatch, the weights are those of a fit without a run."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:rows], y[:rows]
    weights = np.random.default_rng(0).random(rows)
    alone = MinibatchSGDClassifier(epochs=3, hidden=hidden).fit(X, y, weights)
    found = MinibatchSGDClassifier(epochs=3, hidden=hidden, run_dir=tmp_path / "run")
    found.fit(X, y, weights)
    assert alone.run_dir_ is None and found.run_dir_ == str(tmp_path / "run")
    assert (found.n_iter_, found.t_) == (alone.n_iter_, alone.t_)
    close = {"rtol": 1e-4, "atol": 1e-5} if rows == 200 else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(found.decision_function(X), alone.decision_function(X), **close)
    np.testing.assert_allclose(found.loss_curve_, alone.loss_curve_, rtol=1e-5)
    run = distsgd.load(found.run_dir_)
    assert run.state == "finished" and run.history.epochs["epoch"] == [1, 2, 3]
    distsgd.audit(run)
    again = distsgd.replay(run)
    assert again.weights_sha256 == run.result.weights_sha256
    assert [one.label for one in distsgd.predict(run, X[:20])] == [
        str(label) for label in found.predict(X[:20])
    ]


def test_the_rows_are_stored_once_and_a_run_is_never_overwritten(tmp_path, cache):
    X, y = load_iris(return_X_y=True)
    for name in ("one", "two"):
        MinibatchSGDClassifier(epochs=2, run_dir=tmp_path / name).fit(X, y)
    assert len(list(cache.glob("datasets/arrays-*"))) == 1
    with pytest.raises(RunError, match="never overwritten"):
        MinibatchSGDClassifier(epochs=2, run_dir=tmp_path / "two").fit(X, y)


def test_partial_fit_has_no_run(tmp_path):
    with pytest.raises(ValueError, match="fit alone"):
        MinibatchSGDClassifier(run_dir=tmp_path / "run").partial_fit([[1.0], [2.0]], [0, 1], [0, 1])
