"""The estimator: scikit-learn's own checks, its results, and what it leaves of its caller."""

import asyncio
import os
import pickle
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_info

from distsgd.errors import DistsgdError
from distsgd.sklearn import MinibatchSGDClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
"""Few epochs are enough for most tests."""


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)


def test_every_check_of_scikit_learn_passes():
    found = check_estimator(MinibatchSGDClassifier(epochs=100), on_skip=None, on_fail=None)
    assert len(found) > 50
    wrong = [(one["check_name"], one["exception"]) for one in found if one["status"] == "failed"]
    assert wrong == []
    assert not [one for one in found if one["expected_to_fail"]]


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_it_finds_the_optimum_of_logistic_regression(load):
    X, y = load(return_X_y=True)
    ours = MinibatchSGDClassifier(batch_size=512, epochs=2000, schedule="constant").fit(X, y)
    theirs = LogisticRegression(max_iter=5000, tol=1e-10)
    theirs.fit(StandardScaler().fit_transform(X), y)
    assert np.abs(ours.predict_proba(X) - theirs.predict_proba(
        StandardScaler().fit_transform(X))).max() < 1e-3  # fmt: skip


def test_digits_are_as_good_as_with_logistic_regression(digits):
    X, held, y, truth = digits
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X, y)
    best = theirs.score(held, truth)
    assert MinibatchSGDClassifier(epochs=60).fit(X, y).score(held, truth) > best - 0.005
    assert MinibatchSGDClassifier("svm", epochs=60).fit(X, y).score(held, truth) > best - 0.02
    mlp = MinibatchSGDClassifier(hidden=50, epochs=60).fit(X, y)
    assert mlp.score(held, truth) > best
    assert [part.shape for part in mlp.coefs_] == [(64, 50), (50, 10)]


def test_coefficients_are_those_of_rows_as_they_are_given(iris):
    X, y = iris
    X = X * [1, 1e3, 1e-3, 1] + [0, 5e4, 0, -7]
    found = MinibatchSGDClassifier().fit(X, y)
    scores = X @ found.coef_.T + found.intercept_
    assert found.coef_.shape == (3, 4)
    np.testing.assert_allclose(found.decision_function(X), scores, rtol=1e-6, atol=1e-6)
    two = MinibatchSGDClassifier().fit(X[:100], y[:100])
    assert two.coef_.shape == (1, 4) and two.intercept_.shape == (1,)
    np.testing.assert_allclose(
        two.decision_function(X), X @ two.coef_[0] + two.intercept_[0], rtol=1e-6, atol=1e-6
    )
    assert np.array_equal(two.predict(X) == 1, two.decision_function(X) > 0)


def test_labels_can_be_text(iris):
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    found = MinibatchSGDClassifier().fit(X, names)
    assert set(found.predict(X)) == set(names)
    assert found.score(X, names) > 0.95


@pytest.mark.parametrize("early_stopping", [False, True])
def test_weights_of_larger_data_count_in_the_kernel(early_stopping):
    """Rows of weight 0 are as good as gone; those of a large weight win."""
    X, y = make_classification(1000, 5, random_state=0, flip_y=0)
    wrong = np.where(np.arange(1000) % 3 == 0, 1 - y, y)
    weights = np.where(np.arange(1000) % 3 == 0, 0.01, 1.0)
    estimator = MinibatchSGDClassifier(epochs=20, early_stopping=early_stopping)
    plain = clone(estimator).fit(X, y).score(X, y)
    weighted = clone(estimator).fit(X, wrong, weights).score(X, y)
    assert weighted > plain - 0.02
    gone = clone(estimator).fit(X, wrong, np.where(weights < 1, 0, 1.0))
    same = clone(estimator).fit(X[weights == 1], y[weights == 1])
    np.testing.assert_array_equal(gone.coef_, same.coef_)


def test_balanced_classes(digits):
    X, y = make_classification(2000, 10, weights=[0.95], flip_y=0.1, random_state=1)
    recall = [
        (MinibatchSGDClassifier(class_weight=how, epochs=20).fit(X, y).predict(X) == y)[y == 1]
        for how in (None, "balanced", {1: 20.0})
    ]
    plain, balanced, given = (part.mean() for part in recall)
    assert balanced > plain + 0.1 and given > plain + 0.1


def test_early_stopping_keeps_the_best_epoch(digits):
    X, _, y, _ = digits
    found = MinibatchSGDClassifier(
        hidden=20, early_stopping=True, epochs=300, n_iter_no_change=3, learning_rate=0.02,
        schedule="constant",
    ).fit(X, y)  # fmt: skip
    losses = found.validation_loss_curve_
    assert found.n_iter_ == len(losses) == len(found.loss_curve_) < 300
    assert found.best_epoch_ == int(np.argmin(losses)) + 1 == found.n_iter_ - 3


def test_partial_fit_learns_as_rows_come(digits):
    X, held, y, truth = digits
    found = MinibatchSGDClassifier()
    for _ in range(3):
        for low in range(0, len(X), 100):
            found.partial_fit(X[low : low + 100], y[low : low + 100], classes=range(10))
    assert found.score(held, truth) > 0.9
    assert found.n_iter_ == 3 * 13 == found.t_


def test_more_rows_change_the_scale_but_not_the_scores(iris):
    """A pass with a learning rate of almost 0 over rows elsewhere leaves predictions alone."""
    X, y = iris
    found = MinibatchSGDClassifier(learning_rate=0.1).partial_fit(X, y, classes=[0, 1, 2])
    before = found.decision_function(X)
    found.set_params(learning_rate=1e-12).partial_fit(X * 50 + 1000, y)
    np.testing.assert_allclose(found.decision_function(X), before, rtol=1e-4, atol=1e-4)


def test_a_loss_that_still_falls_is_told(iris):
    with pytest.warns(ConvergenceWarning, match="after 3 epochs"):
        MinibatchSGDClassifier(epochs=3).fit(*iris)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MinibatchSGDClassifier().fit(*iris)
        MinibatchSGDClassifier(hidden=10).fit(*iris)
        MinibatchSGDClassifier(
            "svm", early_stopping=True, n_iter_no_change=1, epochs=500, learning_rate=0.05
        ).fit(*iris)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"loss": "hinge"}, "loss cannot be hinge"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"hidden": -1}, "model"),
        ({"early_stopping": True, "validation_fraction": 2.0}, "validation_fraction"),
        ({"class_weight": "equal"}, "class_weight"),
        ({"run_dir": "run", "early_stopping": True}, "run_dir does not go with early_stopping"),
        ({"run_dir": 3}, "run_dir"),
        ({"learning_rate": 1e9, "optimizer": "sgd", "hidden": 5}, "diverged"),
    ],
)
def test_what_cannot_be_used_is_named(iris, arguments, part):
    with pytest.raises((DistsgdError, ValueError), match=part):
        MinibatchSGDClassifier(**arguments).fit(*iris)


def test_an_svm_has_no_probabilities(iris):
    assert not hasattr(MinibatchSGDClassifier("svm").fit(*iris), "predict_proba")


def test_clone_pickle_pipeline_and_cross_validation(iris):
    X, y = iris
    found = MinibatchSGDClassifier(epochs=50, regularization=0.01).fit(X, y)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))
    assert clone(found).get_params() == found.get_params()
    piped = make_pipeline(MinMaxScaler(), MinibatchSGDClassifier(epochs=50))
    assert cross_val_score(piped, X, y, cv=3).mean() > 0.9


@pytest.fixture(scope="module")
def trackers():
    """The processes in which joblib and Python track their files, which stay until this one ends.

    They start before any test, as the fixture that ends what a test has left would end them, too.
    """
    import multiprocessing.resource_tracker

    from joblib.externals.loky.backend import resource_tracker

    multiprocessing.resource_tracker.ensure_running()
    resource_tracker.ensure_running()


def children():
    """The command lines of the children of this process, by pid."""
    tasks = Path("/proc/self/task").iterdir()
    pids = {pid for task in tasks for pid in (task / "children").read_text().split()}
    return {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}


def test_a_grid_search_over_processes_leaves_none(iris, trackers):
    from joblib.externals.loky import get_reusable_executor

    before = children()
    grid = {"regularization": [1e-4, 1e-3], "batch_size": [32, 256]}
    search = GridSearchCV(MinibatchSGDClassifier(epochs=20), grid, n_jobs=2, cv=2).fit(*iris)
    assert search.best_score_ > 0.9
    get_reusable_executor().shutdown(wait=True)
    assert [line for pid, line in children().items() if pid not in before] == []


def state():
    threads = [(one["filepath"], one["num_threads"]) for one in threadpool_info()]
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return threads, signals, dict(os.environ), threading.active_count()


def test_the_process_of_the_caller_is_left_alone(iris, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, numbers = state(), np.random.get_state()[1].tolist()
    MinibatchSGDClassifier(batch_size=32, epochs=3).fit(*iris).predict(iris[0])
    assert state() == before
    assert np.random.get_state()[1].tolist() == numbers
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_threads_and_asyncio_give_the_same_weights(iris):
    def weights():
        return MinibatchSGDClassifier(batch_size=32, epochs=5).fit(*iris).coef_.tolist()

    alone, before = weights(), state()

    async def together():
        return await asyncio.gather(*(asyncio.to_thread(weights) for _ in range(4)))

    with ThreadPoolExecutor(4) as pool:
        threads = [future.result() for future in [pool.submit(weights) for _ in range(8)]]
    assert threads == [alone] * 8
    assert asyncio.run(together()) == [alone] * 4
    assert state()[0] == before[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_trains(iris):
    coef = MinibatchSGDClassifier(epochs=5).fit(*iris).coef_
    pid = os.fork()
    if pid == 0:
        same = np.array_equal(MinibatchSGDClassifier(epochs=5).fit(*iris).coef_, coef)
        os._exit(0 if same else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
