"""What Python users call: `train`, `resume`, `scale`, `evaluate`, `predict`."""

from distsgd.errors import TrainingInterrupted
from distsgd.training.evaluation import Evaluation, Prediction, evaluate, predict
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.training.training import resume, scale, train

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
