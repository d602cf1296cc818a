"""One update of W: mean gradient, penalty, update rule. The server and the replay share it."""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.optim.optimizers import Optimizer
from distsgd.core.optim.schedules import Schedule

__all__ = ["Updater"]


class Updater:
    """Holds W and applies updates to it in place.

    Args:
        weights: flat parameters, shape (parameters,).
        decay: shape (parameters,): the gradient of the L2 penalty is decay * W.
        optimizer: update rule.
        schedule: learning rate of each step.
        version: updates already applied to W.

    Attributes:
        weights: W.
        version: updates applied to it.
        decay: as given.
        schedule: as given.
    """

    def __init__(
        self,
        weights: Floats,
        *,
        decay: Floats,
        optimizer: Optimizer,
        schedule: Schedule,
        version: int = 0,
    ) -> None:
        self.weights, self.optimizer, self.version = weights, optimizer, version
        self.decay, self.schedule = decay, schedule
        self._scratch = np.empty_like(weights)

    def apply(self, total: Floats, examples: int, step: int) -> float:
        """Apply the mean of a gradient sum plus the penalty; returns the learning rate.

        Args:
            total: sum of dL_i/dW, shape (parameters,); overwritten.
            examples: how many examples it is over.
            step: step of the plan, for the learning rate.
        """
        learning_rate = self.schedule.at(step)
        np.multiply(total, total.dtype.type(1 / examples), out=total)
        np.multiply(self.decay, self.weights, out=self._scratch)
        np.add(total, self._scratch, out=total)
        self.version += 1
        self.optimizer.step(self.weights, total, learning_rate, self.version)
        return learning_rate

    def average(self, total: Floats, examples: int, step: int) -> float:
        """Subtract the mean of (W before - W after) of the replicas, weighted by examples.

        Args:
            total: sum over replicas of examples * (W before - W after); overwritten.
            examples: of all replicas.
            step: first step of the round, for the learning rate that is reported.
        """
        np.multiply(total, total.dtype.type(1 / examples), out=total)
        np.subtract(self.weights, total, out=self.weights)
        self.version += 1
        return self.schedule.at(step)
