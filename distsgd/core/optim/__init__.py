"""From a gradient to an update: learning rate schedules, optimisers, gradient compression."""

from distsgd.core.optim.compression import (
    CODECS,
    Codec,
    ErrorFeedback,
    Residual,
    Residuals,
    make_codec,
    share,
    shared_out,
    start_of_incarnation,
)
from distsgd.core.optim.optimizers import OPTIMIZERS, Optimizer, Updater, make_optimizer
from distsgd.core.optim.schedules import SCHEDULES, Schedule

__all__ = [
    "CODECS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Codec",
    "ErrorFeedback",
    "Optimizer",
    "Residual",
    "Residuals",
    "Schedule",
    "Updater",
    "make_codec",
    "make_optimizer",
    "share",
    "shared_out",
    "start_of_incarnation",
]
