"""Training on arrays and tables in memory, and predictions for more of them."""

import numpy as np
import pytest

import distsgd
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def some_rows(count=300, seed=0):
    """Two columns of very different sizes; the class is whether their scaled sum is positive."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 2))
    words = np.where(rows.sum(axis=1) > 0, "more", "less")
    return rows * [1e4, 1e-3] + [5e4, 0], words


def train(*arguments, **named):
    return distsgd.train(
        *arguments,
        **{"workers": 0, "epochs": 20, "learning_rate": 0.5, "regularization": 1e-4, **named},
    )


def test_rows_and_words(own_cache):
    X, y = some_rows()
    result = train(X, y, batch_size=32)
    assert result.test_accuracy > 0.9
    assert distsgd.evaluate(result.run_dir).accuracy == result.test_accuracy
    more, truth = some_rows(seed=1)
    labels = np.array([found.label for found in distsgd.predict(result.run_dir, more)])
    assert (labels == truth).mean() > 0.9
    assert distsgd.audit(result.run_dir).updates == result.steps


def test_the_same_arrays_are_stored_once(own_cache):
    X, y = some_rows()
    first, again = train(X, y), train(dataset=(X, y), loss="svm")
    other = train(X, y, seed=1)
    assert first.dataset == again.dataset != other.dataset
    assert first.loss == "softmax" and again.loss == "svm"
    assert sorted(path.name for path in own_cache.iterdir() if path.is_dir()) == sorted(
        {first.dataset, other.dataset}
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in own_cache.iterdir() if path.is_dir())


def test_test_rows_of_ones_own_and_a_config():
    X, y = some_rows()
    config = distsgd.TrainConfig(workers=0, epochs=20, batch_size=64, learning_rate=0.5)
    result = distsgd.train(X[:200], y[:200], test=(X[200:], y[200:]), config=config)
    manifest = open_dataset(result.dataset).manifest
    assert (manifest.rows("train"), manifest.rows("test")) == (200, 100)
    assert manifest.classes == ("less", "more")


def test_weights_are_used_and_zeros_leave_out():
    X, y = some_rows(600)
    wrong = np.where(np.arange(600) % 2 == 0, np.where(y == "more", "less", "more"), y)
    weights = np.where(np.arange(600) % 2 == 0, 0.01, 1.0)
    result = train(X, wrong, sample_weight=weights, test=some_rows(seed=1))
    assert result.test_accuracy > 0.95
    result = train(X, wrong, sample_weight=np.floor(weights), test=some_rows(seed=1))
    assert result.test_accuracy > 0.95
    assert open_dataset(result.dataset).manifest.rows("train") == 300


def test_images_stay_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 5, 3), dtype=np.uint8)
    result = train(images, rng.integers(0, 3, 60), epochs=1, learning_rate=1e-3)
    opened = open_dataset(result.dataset)
    assert opened.manifest.shape == (3, 4, 5) and opened.manifest.values == "uint8"
    found = np.empty((1, 60), np.uint8)
    opened.train.gather(np.array([0]), found)
    flat = images.transpose(0, 3, 1, 2).reshape(60, -1)
    assert (flat == found[0]).all(axis=1).any()


def test_a_table_with_words_and_gaps():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, _ = some_rows(400)
    colours = np.array(["red", "green", "blue"])[np.arange(400) % 3]
    table = pandas.DataFrame({"size": X[:, 0], "colour": colours})
    table.loc[::7, "size"] = np.nan
    result = train(table, colours == "red", epochs=50)
    assert result.test_accuracy > 0.95
    columns = open_dataset(result.dataset).manifest.columns
    assert columns.feature_names == ("size", "colour=blue", "colour=green", "colour=red")
    found = distsgd.predict(result.run_dir, table[:3])
    assert [one.label for one in found] == ["True", "False", "False"]


X, Y = np.zeros((6, 2)), np.array([0, 1] * 3)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: train(X), "a dataset cannot be a ndarray alone"),
        (lambda: train(X, Y[:5]), "X has 6 rows, and y has 5"),
        (lambda: train(X, Y * 0), "y has 1 class"),
        (lambda: train(X + np.inf, Y), "not finite"),
        (lambda: train(X.astype(str), Y), "array of <U"),
        (lambda: train(X, Y / 2), "neither a whole number nor a word"),
        (lambda: train(X, Y, test=(X[:, :1], Y)), "rows of 1 numbers, and X has rows of 2"),
        (lambda: train(X, Y, test=(X, Y + 1)), "class '2', which y has not"),
        (lambda: train(X, Y, test_share=0.9), "test_share cannot be 0.9"),
        (lambda: train(X, Y, sample_weight=[1, 2]), "sample_weight"),
        (lambda: train(X, Y, epochs=0), "epochs cannot be 0"),
        (lambda: train("sample", Y), "y goes with arrays alone"),
        (lambda: train("sample", sample_weight=Y), "sample_weight goes with arrays alone"),
        (lambda: train(np.zeros((6, 2, 2)), Y), "images of float64"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_it_is_stored(call, part, own_cache):
    with pytest.raises(UsageError, match=part):
        call()
    assert not own_cache.exists() or not [path for path in own_cache.iterdir() if path.is_dir()]


def test_a_sparse_matrix_is_refused():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    with pytest.raises(UsageError, match="X is a sparse matrix"):
        train(sparse.csr_matrix(X), Y)


def test_the_loss_by_position():
    result = distsgd.train("sample", "svm", workers=0, epochs=1)
    assert result.loss == "svm"
