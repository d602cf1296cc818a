"""`MinibatchSGDClassifier`: minibatch SGD of this package behind scikit-learn's interface."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.model import LOSSES, make_architecture, softmax_probabilities
from distsgd.data.arrays import ArrayDataset, ArraySplit, written
from distsgd.sklearn.recipe import CHOSEN, settings_for
from distsgd.sklearn.recorded import fit_as_run
from distsgd.sklearn.standardising import Standardiser
from distsgd.training.in_memory import Epoch, fit

__all__ = ["MinibatchSGDClassifier"]

Weights = Floats

_FALLING = 0.05
"""A larger share by which the loss falls in the last quarter of the epochs is worth a warning. With
default arguments it is at most 0.04 on the tables of the manual."""


def _gives_probabilities(estimator: MinibatchSGDClassifier) -> bool:
    if estimator.loss != "softmax":
        raise AttributeError(f"loss={estimator.loss!r} is not trained to give probabilities")
    return True


class MinibatchSGDClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier, or one with a hidden layer, trained by minibatch SGD.

    Unlike scikit-learn's `SGDClassifier` it takes the mean gradient of a minibatch for an update,
    and for several classes one multinomial softmax, or one multiclass hinge loss.

    Columns are standardised inside, to mean 0 and deviation 1 over the training rows; `coef_` and
    `intercept_` are those of rows as they are given. Sparse matrices are refused.

    Up to one minibatch of rows, every update uses all of them, in float64: a row of sample weight
    2 is then the same as two rows, to rounding. Training uses one BLAS thread; the same data and
    arguments give the same weights.

    Args:
        loss: "softmax" or "svm".
        hidden: units of a hidden layer of max(0, x); 0 for a linear classifier.
        batch_size: rows of a minibatch.
        epochs: passes over the rows; None for as many as some 1,000 updates need.
        learning_rate: the largest of the schedule; None for one that suits the data.
        optimizer: "sgd", "momentum", "nesterov", "adagrad" or "adam"; None for nesterov, or adam
            with hidden units.
        momentum: its coefficient.
        schedule: "cosine", "constant" or "step".
        regularization: lambda of the penalty lambda * sum of W**2; None for 1 / (2 * rows), which
            is C=1 of `LogisticRegression`.
        class_weight: class -> weight, "balanced", or None.
        early_stopping: whether to set rows aside, to stop when their loss no longer falls, and to
            keep the weights of the epoch where it was lowest.
        validation_fraction: the share of rows set aside.
        n_iter_no_change: epochs without a lower loss of these rows after which training stops.
        random_state: seed of the first weights and of the order of rows: a number, a
            `numpy.random.RandomState`, or None for the global one of numpy.
        workers: processes that train, with the same result; 0 trains in this one, and so do as
            few rows as a minibatch.
        run_dir: a new folder for a run of each `fit`, which `distsgd.load`, `audit` and `replay`
            take; its rows are stored in the cache, as float32. None keeps no run.

    Attributes:
        classes_: the classes, sorted.
        coef_: shape (classes, features), or (1, features) for two classes; without hidden units.
        intercept_: shape (classes,), or (1,).
        coefs_: with hidden units, the matrix of each layer, shape (inputs, outputs).
        intercepts_: likewise, shape (outputs,).
        n_iter_: epochs.
        t_: updates.
        loss_curve_: mean loss of each epoch, with the penalty.
        validation_loss_curve_: mean loss of the rows set aside after each epoch; None without.
        best_epoch_: the epoch whose weights were kept; None without rows set aside.
        run_dir_: the run folder; None without.
        n_features_in_: columns.
        feature_names_in_: their names, if they all have one that is text.
    """

    def __init__(
        self,
        loss: str = "softmax",
        *,
        hidden: int = 0,
        batch_size: int = 256,
        epochs: int | None = None,
        learning_rate: float | None = None,
        optimizer: str | None = None,
        momentum: float = 0.9,
        schedule: str = "cosine",
        regularization: float | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 20,
        random_state: int | np.random.RandomState | None = 0,
        workers: int = 0,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.loss = loss
        self.hidden = hidden
        self.batch_size = batch_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.schedule = schedule
        self.regularization = regularization
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.workers = workers
        self.run_dir = run_dir

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from the beginning.

        Args:
            X: shape (rows, features): an array or a table of finite numbers.
            y: shape (rows,): the class of each row, numbers or text.
            sample_weight: shape (rows,), not negative; None if all rows count alike.

        Warns:
            ConvergenceWarning: the loss was still falling in the last epochs.
        """
        if self.run_dir is not None and self.early_stopping:
            raise ValueError("run_dir does not go with early_stopping: set one of the two to None")
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), order="C")
        self.classes_, numbers = _classes_of(y)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs rows of 2 classes or more; got 1 class")
        weights = self._weights(sample_weight, X, numbers)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._fit(*_used(X, numbers, weights), seed)
        best = self.best_epoch_
        if best is None or self.n_iter_ - best < self.n_iter_no_change:  # not stopped early
            self._warn_of_falling_loss()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train one pass over more rows, at a constant learning rate.

        The mean and deviation of columns become those of all rows so far, and the weights are
        changed so that predictions do not.

        Args:
            X: as for `fit`.
            y: likewise.
            classes: all classes that will come; for the first call.
            sample_weight: as for `fit`.
        """
        if self.run_dir is not None:
            raise ValueError("run_dir is for fit alone: partial_fit needs run_dir=None")
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), order="C", reset=first)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes, all that will come")
            self.classes_ = np.unique(classes)
            if len(self.classes_) < 2:
                raise ValueError(f"{type(self).__name__} needs 2 classes or more; got 1 class")
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes are {self.classes_} since the first call, not {classes}")
        numbers = self._numbers(y)
        X, numbers, weights = _used(X, numbers, self._weights(sample_weight, X, numbers))
        found, before = Standardiser.of(X, weights), None
        if first:
            self._reset()
        else:
            found = self._standardiser.with_more(found)
            before = _moved(self._layers, self._standardiser, found)
        rows = found.rows(X, self._dtype(X))
        settings = settings_for(self._model(), self._chosen(), rows, weights, one_pass=True)
        self._train(found, rows, numbers, weights, settings, self._seed + self.n_iter_, before)
        return self

    def decision_function(self, X: Any) -> Floats:
        """The scores, shape (rows, classes); for two classes that of the second less the first.

        Args:
            X: shape (rows, features).
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the largest score of each row, shape (rows,).

        Args:
            X: shape (rows, features).
        """
        scores = self._scores(X)
        found: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return found

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """The softmax of the scores, shape (rows, classes); not for the SVM.

        Args:
            X: shape (rows, features).
        """
        return softmax_probabilities(self._scores(X))

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: Any) -> Floats:
        """Its logarithm.

        Args:
            X: shape (rows, features).
        """
        scores = self._scores(X)
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return scores

    def _scores(self, X: Any) -> Floats:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        hidden = self._standardiser.rows(X, "float64")
        for number, layer in enumerate(self._layers):
            if number:
                np.maximum(hidden, 0, out=hidden)
            hidden = hidden @ layer[:, :-1].T + layer[:, -1]
        return hidden

    def _model(self) -> str:
        return f"mlp:{self.hidden}" if self.hidden else "linear"

    def _chosen(self) -> dict[str, Any]:
        """The arguments that are settings of a training, checked."""
        chosen = {name: getattr(self, name) for name in CHOSEN}
        given = {name: value for name, value in chosen.items() if value is not None}
        TrainConfig(dataset="arrays", model=self._model(), workers=self.workers, **given)
        return chosen

    def _weights(self, given: Any, X: Floats, numbers: NDArray[np.intp]) -> Weights | None:
        """The weight of each row; None if all count alike."""
        weights: Weights | None = None
        if given is not None:
            weights = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
            assert weights is not None
            if not weights.any():
                raise ValueError("sample_weight is 0 for all rows: there is nothing to train on")
        if self.class_weight is None:
            return weights
        weights = np.ones(len(X)) if weights is None else weights
        if isinstance(self.class_weight, str):
            if self.class_weight != "balanced":
                raise ValueError(
                    f"class_weight cannot be {self.class_weight!r}: give 'balanced', class -> "
                    "weight, or None"
                )
            sums = np.bincount(numbers, weights, len(self.classes_))
            per_class = weights.sum() / (len(sums) * np.where(sums > 0, sums, 1.0))
        else:
            chosen = dict(self.class_weight)
            per_class = np.array([chosen.get(name, 1.0) for name in self.classes_.tolist()])
        product: Weights = weights * per_class[numbers]
        return product

    def _numbers(self, y: Any) -> NDArray[np.intp]:
        """The number of each row's class."""
        y = column_or_1d(y, warn=True)
        numbers = np.searchsorted(self.classes_, y)
        numbers = np.minimum(numbers, len(self.classes_) - 1)
        if len(wrong := y[self.classes_[numbers] != y]):
            raise ValueError(f"y has the class {wrong[0]!r}, which is not one of {self.classes_}")
        return np.asarray(numbers, dtype=np.intp)

    def _reset(self) -> None:
        """Nothing is learned yet."""
        self.n_iter_, self.t_ = 0, 0
        self.loss_curve_: list[float] = []
        self.validation_loss_curve_: list[float] | None = None
        self.best_epoch_: int | None = None
        self.run_dir_: str | None = None

    def _fit(
        self, X: Floats, numbers: NDArray[np.intp], weights: Weights | None, seed: int
    ) -> None:
        held = None
        if self.early_stopping:
            aside = _set_aside(numbers, self.validation_fraction, seed)
            kept = ~aside
            held = X[aside], numbers[aside], None if weights is None else weights[aside]
            X, numbers = X[kept], numbers[kept]
            weights = None if weights is None else weights[kept]
        self._seed = seed
        standardiser = Standardiser.of(X, weights)
        self._reset()
        rows = standardiser.rows(X, self._dtype(X))
        settings = settings_for(self._model(), self._chosen(), rows, weights)
        watch = None if held is None else _Validation(self, standardiser, *held)
        if watch is not None:
            self.validation_loss_curve_ = watch.losses
        self._train(standardiser, rows, numbers, weights, settings, seed, None, watch)

    def _dtype(self, X: Floats) -> str:
        """Of standardised rows: exact to rounding where every update uses all rows.

        Shards, from which a run can be audited later, hold float32.
        """
        exact = len(X) <= self.batch_size and self.run_dir is None
        return "float64" if exact else "float32"

    def _warn_of_falling_loss(self) -> None:
        """Warn if the loss fell by more than a small share in the last quarter of the epochs."""
        curve = self.loss_curve_
        before = curve[-1 - max(1, len(curve) // 4)] if len(curve) > 1 else curve[-1]
        if before - curve[-1] > _FALLING * abs(before):
            warnings.warn(
                f"the loss was still falling after {len(curve)} epochs, from {before:.3g} to "
                f"{curve[-1]:.3g} in the last quarter of them: give more epochs, or a larger "
                "learning_rate",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _train(
        self,
        standardiser: Standardiser,
        rows: Floats,
        numbers: NDArray[np.intp],
        weights: Weights | None,
        settings: dict[str, Any],
        seed: int,
        start: list[Floats] | None,
        watch: _Validation | None = None,
    ) -> None:
        """Train on rows, and keep what was learned."""
        # As many rows as an update takes are not worth a process.
        workers = self.workers if settings["batch_size"] < len(rows) else 0
        config = TrainConfig(
            dataset="arrays", seed=seed, workers=workers, log_every=10**9, checkpoint_seconds=0,
            **settings,
        )  # fmt: skip
        if weights is not None:
            weights = weights.astype(config.dtype)
        split = ArraySplit(rows, numbers, weights)
        dataset = ArrayDataset(split, tuple(map(str, range(len(self.classes_)))))
        architecture = make_architecture(config.model, rows.shape[1], len(self.classes_))

        def follow(epoch: Epoch) -> bool:
            self.loss_curve_.append(epoch.loss)
            return watch is not None and watch.look(epoch, architecture.split(epoch.weights))

        if self.run_dir is not None:
            run = fit_as_run(
                config, self.run_dir, split, tuple(map(str, self.classes_.tolist())),
                standardiser, getattr(self, "feature_names_in_", ()),
            )  # fmt: skip
            self.run_dir_, self.loss_curve_ = run.run_dir, run.losses
            self._keep(standardiser, architecture.split_kept(run.weights), run.epochs, run.updates)
            return
        flat = None
        if start is not None:
            flat = architecture.pad(np.concatenate([part.reshape(-1) for part in start]))
            flat = flat.astype(config.dtype)
        with written(dataset) if workers else nullcontext(dataset) as opened:
            found = fit(config, opened, follow, flat)
        best = found.weights
        if watch is not None:
            best, self.best_epoch_ = watch.best, watch.best_epoch
        kept = architecture.split_kept(architecture.unpad(best))
        self._keep(standardiser, kept, found.epochs, found.updates)

    def _keep(
        self, standardiser: Standardiser, layers: list[Floats], epochs: int, updates: int
    ) -> None:
        """Keep what was learned."""
        self.n_iter_ += epochs
        self.t_ += updates
        self._standardiser = standardiser
        self._layers: list[Floats] = [part.astype(np.float64) for part in layers]
        self._publish()

    def _publish(self) -> None:
        """Make `coef_` and the like: of rows as they are given."""
        layers = [part.copy() for part in self._layers]
        first = layers[0]
        first[:, :-1] /= self._standardiser.scale
        first[:, -1] -= first[:, :-1] @ self._standardiser.mean
        if self.hidden:
            self.coefs_ = [np.ascontiguousarray(part[:, :-1].T) for part in layers]
            self.intercepts_ = [part[:, -1].copy() for part in layers]
            return
        if len(self.classes_) == 2:
            first = first[1:] - first[:1]
        self.coef_, self.intercept_ = first[:, :-1].copy(), first[:, -1].copy()


def _classes_of(y: Any) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The classes, sorted, and the number of each row's."""
    check_classification_targets(y)
    found, numbers = np.unique(column_or_1d(y, warn=True), return_inverse=True)
    return found, numbers


def _used(
    X: Floats, numbers: NDArray[np.intp], weights: Weights | None
) -> tuple[Floats, NDArray[np.intp], Weights | None]:
    """The rows of a weight above 0."""
    if weights is None or weights.all():
        return X, numbers, weights
    used = weights > 0
    return X[used], numbers[used], weights[used]


def _moved(layers: list[Floats], old: Standardiser, new: Standardiser) -> list[Floats]:
    """Layers with the same scores on rows that are standardised in another way."""
    first = layers[0].copy()
    apart = (new.mean - old.mean) / old.scale
    first[:, -1] += first[:, :-1] @ apart
    first[:, :-1] *= new.scale / old.scale
    return [first, *layers[1:]]


def _set_aside(numbers: NDArray[np.intp], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows to validate on: the share of each class, drawn by seed, but not all of one."""
    if not 0 < share < 1:
        raise ValueError(f"validation_fraction cannot be {share}: give a share between 0 and 1")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    aside = np.zeros(len(numbers), dtype=np.bool_)
    for number in np.unique(numbers):
        rows = rng.permutation(np.flatnonzero(numbers == number))
        aside[rows[: min(len(rows) - 1, round(share * len(rows)))]] = True
    if not aside.any():
        raise ValueError(
            f"validation_fraction={share} of {len(numbers)} rows is none: give a larger share"
        )
    return aside


class _Validation:
    """The loss of rows that were set aside, after each epoch."""

    def __init__(
        self,
        estimator: MinibatchSGDClassifier,
        standardiser: Standardiser,
        X: Floats,
        numbers: NDArray[np.intp],
        weights: Weights | None,
    ) -> None:
        self._rows = standardiser.rows(X, "float64")
        self._numbers, self._weights = numbers, weights
        self._patience, self._loss = estimator.n_iter_no_change, estimator.loss
        self.losses: list[float] = []
        self.best: Floats = np.empty(0)
        self.best_epoch = 0

    def look(self, epoch: Epoch, layers: list[Floats]) -> bool:
        """Measure the weights after an epoch; returns whether to stop."""
        hidden: Floats = self._rows
        for number, layer in enumerate(layers):
            if number:
                hidden = np.maximum(hidden, 0)
            inputs = hidden.shape[1]
            hidden = hidden @ layer[:, :inputs].T.astype(np.float64) + layer[:, inputs]
        losses = LOSSES[self._loss](hidden, self._numbers, np.empty_like(hidden))
        loss = float(np.average(losses, weights=self._weights))
        if not self.losses or loss < min(self.losses):
            self.best, self.best_epoch = epoch.weights, epoch.number
        self.losses.append(loss)
        return epoch.number - self.best_epoch >= self._patience
