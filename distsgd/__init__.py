"""Distributed minibatch SGD on Ray, exact and replayable.

>>> import distsgd
>>> result = distsgd.train(dataset="sample", workers=0, epochs=2)
>>> distsgd.evaluate(result.run_dir).accuracy == result.test_accuracy
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distsgd.version import __version__

if TYPE_CHECKING:
    from distsgd.training import (
        EpochRow,
        Evaluation,
        Prediction,
        Reporter,
        TrainingInterrupted,
        TrainResult,
        evaluate,
        predict,
        resume,
        scale,
        train,
    )

__all__ = [
    "EpochRow",
    "Evaluation",
    "Prediction",
    "Reporter",
    "TrainResult",
    "TrainingInterrupted",
    "__version__",
    "evaluate",
    "predict",
    "resume",
    "scale",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used, so that importing distsgd is instant."""
    if name in __all__:
        from distsgd import training as api

        return getattr(api, name)
    raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
