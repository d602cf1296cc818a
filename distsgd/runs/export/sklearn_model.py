"""A model as a scikit-learn pipeline that takes raw pixels, and as a file without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd.errors import import_optional
from distsgd.runs.export.layers import ExportedModel

__all__ = ["skops_bytes", "to_sklearn"]


def to_sklearn(model: ExportedModel) -> Any:
    """A fitted `sklearn.pipeline.Pipeline`, whose ``predict`` takes rows and returns class names.

    Rows have the pixels of an example, channel by channel, from 0 to 255; or the numbers of its
    columns. The last step is a `LogisticRegression` (softmax), a `LinearSVC` (svm), or for two
    layers an `MLPClassifier`. It can be used and looked into; ``fit`` would train it anew, as
    scikit-learn does.

    Raises:
        DistsgdError: scikit-learn is not installed.
    """
    import_optional("sklearn", "sklearn")
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    features = model.features
    scaler = StandardScaler()
    scaler.mean_ = model.mean.astype(np.float64)
    scaler.scale_ = np.full(features, model.scale)
    scaler.var_, scaler.n_samples_seen_ = scaler.scale_**2, 1
    scaler.n_features_in_ = features
    steps: list[tuple[str, Any]] = []
    if model.bounds is not None:
        return Pipeline([
            ("inside", _clipping(model.bounds)), ("columns", _standardising(model)),
            ("model", _classifier(model)),
        ])  # fmt: skip
    if model.low is not None and model.factor is not None:
        steps += [("columns", _to_pixels(model)), ("round", FunctionTransformer(np.rint))]
    return Pipeline([*steps, ("centre", scaler), ("model", _classifier(model))])


def _clipping(bounds: Any) -> Any:
    """Clips each column to its own bounds: (x - low) / (high - low), clipped to 0 ... 1, and back.

    It is a scaler, and no function of numpy, so that a skops file needs no function to be trusted.
    """
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MinMaxScaler

    low, high = bounds
    width = np.where(high > low, high - low, 1.0)
    there, back = MinMaxScaler(clip=True), MinMaxScaler()
    there.scale_ = np.where(high > low, 1 / width, 0.0)
    there.min_ = -low * there.scale_
    back.scale_, back.min_ = width, low
    for scaler in (there, back):
        scaler.data_min_, scaler.data_max_, scaler.data_range_ = low, low + width, width
        scaler.n_features_in_, scaler.n_samples_seen_ = len(low), 1
    return Pipeline([("clip", there), ("back", back)])


def _standardising(model: ExportedModel) -> Any:
    from sklearn.preprocessing import StandardScaler

    assert model.low is not None and model.factor is not None
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = np.array(model.low), 1 / model.factor
    scaler.var_, scaler.n_samples_seen_ = scaler.scale_**2, 1
    scaler.n_features_in_ = model.features
    return scaler


def _to_pixels(model: ExportedModel) -> Any:
    from sklearn.preprocessing import MinMaxScaler

    assert model.low is not None and model.factor is not None
    scaler = MinMaxScaler(feature_range=(0, 255), clip=True)
    scaler.scale_, scaler.min_ = model.factor, -model.low * model.factor
    scaler.data_min_ = np.array(model.low)
    scaler.data_range_ = np.divide(
        255.0, model.factor, out=np.zeros(model.features), where=model.factor > 0
    )
    scaler.data_max_ = scaler.data_min_ + scaler.data_range_
    scaler.n_features_in_, scaler.n_samples_seen_ = model.features, 1
    return scaler


def _classifier(model: ExportedModel) -> Any:
    """The last step: its classes are sorted, as scikit-learn's are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    order = np.argsort(np.array(model.classes))
    weights, bias = model.weights[-1][order], model.biases[-1][order]
    if len(model.classes) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
    if len(model.weights) > 1:
        found = _two_layers(model, weights, bias)
    else:
        found = LogisticRegression() if model.loss == "softmax" else LinearSVC()
        found.coef_, found.intercept_ = weights.astype(np.float64), bias.astype(np.float64)
        found.n_iter_ = np.array([model.version], np.int32)
    found.classes_ = np.array(model.classes)[order]
    found.n_features_in_ = model.features
    return found


def _two_layers(model: ExportedModel, weights: Any, bias: Any) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import LabelBinarizer

    found = MLPClassifier(hidden_layer_sizes=tuple(len(part) for part in model.weights[:-1]))
    found.coefs_ = [part.T.astype(np.float64) for part in (*model.weights[:-1], weights)]
    found.intercepts_ = [part.astype(np.float64) for part in (*model.biases[:-1], bias)]
    found.n_layers_, found.n_outputs_ = len(found.coefs_) + 1, len(bias)
    found.out_activation_ = "logistic" if len(bias) == 1 else "softmax"
    found.n_iter_ = model.version
    found._label_binarizer = LabelBinarizer().fit(np.array(model.classes))
    return found


def skops_bytes(model: ExportedModel) -> bytes:
    """The pipeline as a skops file, which can be loaded without running code from it.

    Raises:
        DistsgdError: scikit-learn or skops is not installed.
    """
    pipeline = to_sklearn(model)
    skops = import_optional("skops.io", "sklearn")
    content: bytes = skops.dumps(pipeline)
    return content
