"""What Python users call: `train`, `resume`, `scale`, `evaluate`, `predict`."""

from distsgd.api.evaluation import Evaluation, Prediction, evaluate, predict
from distsgd.api.reporter import Reporter
from distsgd.api.results import EpochRow, TrainResult
from distsgd.api.training import resume, scale, train
from distsgd.errors import TrainingInterrupted

__all__ = [
    "EpochRow",
    "Evaluation",
    "Prediction",
    "Reporter",
    "TrainResult",
    "TrainingInterrupted",
    "evaluate",
    "predict",
    "resume",
    "scale",
    "train",
]
