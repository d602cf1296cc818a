"""The settings of a fit: those that were given, and the others by the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import hidden_units

__all__ = ["CHOSEN", "settings_for"]

# `distsgd.config.recipes` is for rows without weights in minibatches of up to 256. Here a row of
# weight 2 must train as two rows do, and up to 256 rows make one update, so penalty and learning
# rate follow from the weights, and settings for updates with all rows are needed.

CHOSEN = (
    "loss", "batch_size", "epochs", "learning_rate", "optimizer", "momentum", "schedule",
    "regularization",
)  # fmt: skip
"""The arguments of an estimator that are settings; None for those that depend on the data."""

_FULL_UPDATES, _UPDATES, _TWO_LAYER_UPDATES = 200, 1000, 2000
"""Updates with all rows; and at least with minibatches, of a linear classifier and of two layers.
With twice as many, accuracy on digits, breast cancer and tables of 20 and 50 columns is the same
to 0.2 points."""

_LEAST_EPOCHS, _MOST_EPOCHS = 2, 200

_SAMPLE = 2048
"""Rows that the learning rate is computed from."""

_OF_SOFTMAX = 0.5
"""The second derivative of the softmax loss by the scores is at most this (Bohning 1992)."""

_SVM_SHARE = 0.05
"""The hinge loss has no second derivative; its learning rate is this share of the softmax's."""


def settings_for(
    model: str,
    chosen: dict[str, Any],
    rows: Floats,
    weights: Floats | None,
    *,
    one_pass: bool = False,
) -> dict[str, Any]:
    """All settings of a training that depend on the data.

    Args:
        model: "linear" or "mlp:HIDDEN".
        chosen: what was given.
        rows: standardised, shape (rows, features).
        weights: of the rows, or None.
        one_pass: over rows of which more come, rather than a whole training.
    """
    count = len(rows)
    batch = min(chosen["batch_size"], count)
    full, steps = batch == count, -(-count // max(1, batch))
    two_layers = hidden_units(model) > 0
    optimizer = "adam" if two_layers else "nesterov"
    updates = _TWO_LAYER_UPDATES if two_layers else _UPDATES
    epochs = _FULL_UPDATES if full else -(-updates // steps)
    usual: dict[str, Any] = {
        "optimizer": "sgd" if one_pass else optimizer,
        "epochs": 1 if one_pass else min(_MOST_EPOCHS, max(_LEAST_EPOCHS, epochs)),
        "regularization": 0.5 / (count if weights is None else float(weights.sum())),
    }
    found = {name: usual.get(name) if value is None else value for name, value in chosen.items()}
    if one_pass:
        found.update(epochs=1, schedule="constant", optimizer="sgd")
    if found["learning_rate"] is None:
        found["learning_rate"] = _learning_rate(rows, weights, batch, found)
    return {
        **found,
        "model": model,
        "batch_size": batch,
        "slot_size": batch if full else max(64, batch // 2),
        "dtype": "float64" if full else "float32",
        "sampling": "sequential" if full else "shuffle",
        "init_scale": 1.0 if two_layers else 0.0,  # from zero, no class is preferred
    }


def _learning_rate(
    rows: Floats, weights: Floats | None, batch: int, found: dict[str, Any]
) -> float:
    """The inverse of the smoothness of the loss of a minibatch, for plain and momentum updates.

    Source: Gower et al. 2019, "SGD: general analysis and improved rates", eq. 42.
    """
    if found["optimizer"] in ("adam", "adagrad"):
        return 0.005
    sample = rows[:: max(1, len(rows) // _SAMPLE)].astype(np.float64)
    factors = np.ones(len(sample))
    if weights is not None:
        factors = weights[:: max(1, len(rows) // _SAMPLE)] / weights.mean()
    some = np.hstack([sample, np.ones((len(sample), 1))]) * np.sqrt(factors)[:, None]
    gram = some.T @ some if len(some) > some.shape[1] else some @ some.T
    whole = _OF_SOFTMAX * float(np.linalg.eigvalsh(gram)[-1]) / len(some)
    single = _OF_SOFTMAX * float(np.trace(gram)) / len(some) * float(factors.max())
    share = (1 - batch / len(rows)) / batch
    rate = 1 / (whole * (1 - share) + single * share + 2 * float(found["regularization"]))
    return rate if found["loss"] == "softmax" else _SVM_SHARE * rate
