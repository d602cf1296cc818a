"""The estimator with worker processes, and what it leaves of them."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import load_digits
from support import PATIENCE

from distsgd.data.arrays import ArrayDataset, ArraySplit, written
from distsgd.sklearn import MinibatchSGDClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
"""Few epochs are enough for most tests."""


@pytest.fixture(autouse=True)
def fits(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path))
    return tmp_path / "fits"


def some_dataset():
    rows = np.zeros((6, 2), np.float32)
    return ArrayDataset(ArraySplit(rows, np.arange(6) % 2), ("0", "1"))


@pytest.mark.ray
def test_workers_give_the_same_weights(fits):
    X, y = load_digits(return_X_y=True)
    weights = np.random.default_rng(0).random(len(y))
    alone = MinibatchSGDClassifier(epochs=3).fit(X, y, weights)
    found = MinibatchSGDClassifier(epochs=3, workers=2).fit(X, y, weights)
    np.testing.assert_array_equal(found.coef_, alone.coef_)
    assert found.loss_curve_ == alone.loss_curve_
    assert [path.name for path in fits.iterdir()] == ["lock"]


def test_few_rows_need_no_workers(fits):
    X, y = load_digits(return_X_y=True)
    found = MinibatchSGDClassifier(workers=2, epochs=2).fit(X[:200], y[:200])
    assert found.n_iter_ == 2 and not fits.exists()


def test_a_folder_of_shards_is_private_and_removed(fits):
    with written(some_dataset()) as opened:
        assert opened.folder.stat().st_mode & 0o077 == 0
        assert len(opened.train) == 6
        with written(some_dataset()) as other:  # does not take the first for left over
            assert other.folder != opened.folder
        assert opened.folder.exists()
    assert [path.name for path in fits.iterdir()] == ["lock"]


def test_what_a_killed_process_left_is_removed_by_the_next(fits):
    code = (
        "import os, signal, numpy as np; from distsgd.data.arrays import *; "
        "rows = np.zeros((6, 2), np.float32); "
        "dataset = ArrayDataset(ArraySplit(rows, np.arange(6) % 2), ('0', '1')); "
        "context = written(dataset); context.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=PATIENCE)
    assert len(list(fits.iterdir())) == 3
    with written(some_dataset()):
        assert len(list(fits.iterdir())) == 3
    assert [path.name for path in fits.iterdir()] == ["lock"]
