"""Default settings on data of one's own, beside scikit-learn's on the same splits.

    python scripts/own_data.py [--splits N] [--only NAME ...] [--mnist FOLDER]

Prints a table of test accuracies, means over the splits: our linear classifier beside a
LogisticRegression, and mlp:50 beside an MLPClassifier with as many hidden units, both on scaled
features. Tables go through CSV files and `distsgd data import`, images through Parquet. FOLDER has
the four files of MNIST or Fashion-MNIST (train-images-idx3-ubyte and so on); without it that row is
left out.
It needs scikit-learn, and takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HIDDEN = 50
Split = tuple[Any, Any, Any, Any]


def mixed_table() -> tuple[Any, Any, Any]:
    """20 columns on scales from 0.1 to 100, one of them words, with one cell that is far off."""
    X, y = datasets.make_classification(
        4000, 19, n_informative=10, n_redundant=4, n_classes=3, random_state=0
    )
    random = np.random.default_rng(0)
    words = random.integers(0, 4, len(X))
    y = np.where((words == 3) & (random.random(len(X)) < 0.5), 0, y)
    X = X * random.uniform(0.1, 100, 19)
    X[7, 3] = 1e6
    return X, y, np.array(["red", "green", "blue", "grey"])[words]


def large_table() -> tuple[Any, Any]:
    """200,000 rows of 50 columns."""
    found: tuple[Any, Any] = datasets.make_classification(
        200_000, 50, n_informative=20, n_redundant=10, n_classes=5, random_state=1
    )
    return found


def mnist(folder: Path) -> Split:
    """MNIST: rows of 784 pixels, uint8."""

    def read(name: str, header: int) -> Any:
        return np.frombuffer((folder / name).read_bytes(), np.uint8)[header:]

    parts = [
        (read(f"{name}-images-idx3-ubyte", 16).reshape(-1, 784),
         read(f"{name}-labels-idx1-ubyte", 8))
        for name in ("train", "t10k")
    ]  # fmt: skip
    return parts[0][0], parts[1][0], parts[0][1], parts[1][1]


def as_table(X: Any, y: Any, words: Any = None) -> pa.Table:
    columns = {f"x{number}": X[:, number] for number in range(X.shape[1])}
    if words is not None:
        columns["colour"] = words
    return pa.table({**columns, "label": [f"class {one}" for one in y]})


def as_images(X: Any, y: Any) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    return pa.table({"image": flat, "label": [f"class {one}" for one in y]})


def ours(train: pa.Table, test: pa.Table, folder: Path, model: str) -> tuple[float, float]:
    """Test accuracy with default settings, and seconds of the training."""
    import distsgd
    from distsgd.data.importing.import_dataset import import_dataset

    images = "image" in train.column_names
    files = [folder / f"{name}.{'parquet' if images else 'csv'}" for name in ("train", "test")]
    write = pyarrow.parquet.write_table if images else pyarrow.csv.write_csv
    for table, file in zip((train, test), files, strict=True):
        write(table, file)
    found = import_dataset(files[0], "own", test=files[1], force=True)
    result = distsgd.train(found.dataset, model=model, workers=0)
    return result.test_accuracy, result.step_seconds


def peers(split: Split, words: tuple[Any, Any] | None, model: str) -> float:
    """Test accuracy of scikit-learn's model on scaled features."""
    train, test, y, truth = split
    if words is not None:
        encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
        train = np.hstack([train, encoder.fit_transform(words[0][:, None])])
        test = np.hstack([test, encoder.transform(words[1][:, None])])
    few = len(train) < 20_000
    peer = (
        LogisticRegression(max_iter=1000 if few else 100)
        if model == "linear"
        else MLPClassifier((HIDDEN,), max_iter=200 if few else 40, random_state=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(make_pipeline(StandardScaler(), peer).fit(train, y).score(test, truth))


def splits(
    name: str, count: int, folder: Path | None
) -> Iterator[tuple[Split, tuple[Any, Any] | None]]:
    """Training and test rows of a dataset, several times, and a column of words if it has one."""
    if name == "MNIST":
        if folder is not None:
            yield mnist(folder), None
        return
    words = None
    if name == "mixed table":
        X, y, words = mixed_table()
    elif name == "200,000 x 50":
        X, y = large_table()
        count = 1
    else:
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    for seed in range(count):
        rows = train_test_split(np.arange(len(X)), test_size=0.25, random_state=seed, stratify=y)
        split = X[rows[0]], X[rows[1]], y[rows[0]], y[rows[1]]
        yield split, None if words is None else (words[rows[0]], words[rows[1]])


NAMES = ("digits", "iris", "wine", "breast_cancer", "mixed table", "200,000 x 50", "MNIST")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--mnist", type=Path)
    given = parser.parse_args()
    print(
        "| data | training rows | linear | LogisticRegression | mlp:50 | MLPClassifier | seconds |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.only:
        found: dict[str, list[float]] = {}
        rows, spent = 0, 0.0
        for split, words in splits(name, given.splits, given.mnist):
            rows = len(split[0])
            make = as_images if name == "MNIST" else as_table
            own = (words[0],) if words else (), (words[1],) if words else ()
            tables = make(split[0], split[2], *own[0]), make(split[1], split[3], *own[1])
            for model in ("linear", f"mlp:{HIDDEN}"):
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["DISTSGD_HOME"] = os.environ["DISTSGD_CACHE"] = folder
                    accuracy, seconds = ours(*tables, Path(folder), model)
                spent += seconds
                found.setdefault(model, []).append(accuracy)
                found.setdefault(f"peer of {model}", []).append(peers(split, words, model))
        if found:
            cells = (f"{100 * np.mean(one):.1f} %" for one in found.values())
            count = len(next(iter(found.values())))
            print(f"| {name} | {rows:,} | {' | '.join(cells)} | {spent / count:.1f} |", flush=True)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - began:.0f} s")
