#!/usr/bin/env python
"""Accuracy and seconds of the estimator beside scikit-learn's, as the table of the manual.

    scripts/compare_estimators.py [--rounds 3] [--rows 200000] [--only digits,table]

Every classifier has its defaults; scikit-learn's get standardised columns. A round splits each set
anew, 70 % to train on, with each classifier in turn; printed are means over rounds of the test
accuracy, and medians of the seconds of fit, standardising included.
"""

import argparse
import time
import warnings
from statistics import mean, median

import numpy as np
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distsgd.sklearn import MinibatchSGDClassifier

LARGE = "table"


def scaled(model):
    return make_pipeline(StandardScaler(), model)


CLASSIFIERS = {
    "MinibatchSGD": MinibatchSGDClassifier,
    "SGDClassifier": lambda: scaled(SGDClassifier(random_state=0)),
    "SGD, log_loss": lambda: scaled(SGDClassifier(loss="log_loss", random_state=0)),
    "LogisticRegression": lambda: scaled(LogisticRegression()),
    "MinibatchSGD, svm": lambda: MinibatchSGDClassifier("svm"),
    "MinibatchSGD, hidden=100": lambda: MinibatchSGDClassifier(hidden=100),
    "MLPClassifier": lambda: scaled(MLPClassifier(random_state=0)),
}
SLOW = {"MLPClassifier"}
"""Minutes on the large table: left out there."""


def sets(rows):
    yield "iris", *load_iris(return_X_y=True)
    yield "wine", *load_wine(return_X_y=True)
    yield "breast cancer", *load_breast_cancer(return_X_y=True)
    yield "digits", *load_digits(return_X_y=True)
    yield (
        LARGE,
        *make_classification(
            rows, 50, n_informative=20, n_redundant=10, n_classes=4, flip_y=0.02, random_state=0
        ),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--only", help="names of sets, with commas between", default="")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else []
    warnings.simplefilter("ignore")  # of convergence, of scikit-learn's
    names = list(CLASSIFIERS)
    print("| data |", " | ".join(names), "|")
    print("| --- |" + " --- |" * len(names))
    for title, rows, labels in sets(options.rows):
        if chosen and title not in chosen:
            continue
        accuracy = {name: [] for name in names}
        seconds = {name: [] for name in names}
        for number in range(options.rounds):
            X, held, y, truth = train_test_split(
                rows, labels, test_size=0.3, random_state=number, stratify=labels
            )
            for name, make in CLASSIFIERS.items():
                if title == LARGE and name in SLOW:
                    continue
                model, began = make(), time.perf_counter()
                model.fit(X, y)
                seconds[name].append(time.perf_counter() - began)
                accuracy[name].append(float(np.mean(model.predict(held) == truth)))
        cells = [
            f"{100 * mean(accuracy[name]):.1f} %, {median(seconds[name]):.3g} s"
            if accuracy[name] else "-"
            for name in names
        ]  # fmt: skip
        print(f"| {title} {len(rows):,} x {rows.shape[1]} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
