"""What Python users call: `train`, `evaluate`, `predict`."""

from distsgd.api.evaluation import Evaluation, Prediction, evaluate, predict
from distsgd.api.reporter import Reporter
from distsgd.api.results import EpochRow, TrainResult
from distsgd.api.training import train

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
