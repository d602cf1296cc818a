"""The public functions and what they take and return; `distsgd` itself exports them."""

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.errors import DistsgdError, TrainingInterrupted, UsageError
from distsgd.training.callbacks.callback import Callback
from distsgd.training.callbacks.prometheus import Prometheus
from distsgd.training.callbacks.tensorboard import TensorBoard
from distsgd.training.evaluation import Evaluation, Prediction, evaluate, predict
from distsgd.training.results import EpochRow, Reporter, TrainResult
from distsgd.training.training import resume, scale, train

__all__ = [
    "Callback",
    "DistsgdError",
    "EpochRow",
    "Evaluation",
    "Prediction",
    "Progress",
    "Prometheus",
    "Reporter",
    "TensorBoard",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "UsageError",
    "evaluate",
    "predict",
    "resume",
    "scale",
    "train",
]
