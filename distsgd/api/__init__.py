"""What Python users call: `train`, `evaluate`, `predict`."""

from distsgd.api.evaluation import Evaluation, Prediction, evaluate, predict
from distsgd.api.training import EpochRow, Reporter, TrainResult, train

__all__ = [
    "EpochRow",
    "Evaluation",
    "Prediction",
    "Reporter",
    "TrainResult",
    "evaluate",
    "predict",
    "train",
]
