"""Update rules, applied at the server to flat parameters, element by element.

All are elementwise, so that splitting W over several servers does not change a bit.

One update of W: mean gradient, penalty, update rule. The server and the replay share it.

With exact arithmetic W is rounded to a grid after each update. What comes before is made of
elementwise +, -, *, / and square roots, which are the same on every machine; see
`distsgd.core.model.grids`.
"""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.optim.schedules import Schedule
from distsgd.core.portable import power, rounded

__all__ = ["OPTIMIZERS", "Optimizer", "Updater", "make_optimizer"]


EPSILON = 1e-8
BETA2 = 0.999


class Optimizer:
    """An update rule with its state.

    Args:
        like: parameters of the shape and dtype to be updated.
        momentum: coefficient mu, used by the rules that have one.

    Attributes:
        weight_bits: W is rounded to multiples of 2**-(this) after each update; None: not at all.
    """

    weight_bits: int | None = None

    def __init__(self, like: Floats, momentum: float) -> None:
        self.momentum = momentum
        self.state: dict[str, Floats] = {}
        self._scratch = np.empty_like(like)

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """What an update subtracts from w; the state is updated.

        Args:
            gradient: shape (parameters,); may be overwritten, and returned.
            learning_rate: eta.
            update: number of this update, from 1.
        """
        raise NotImplementedError

    def settle(self, weights: Floats) -> None:
        """Round W to its grid, if it has one, in place."""
        if self.weight_bits is not None:
            rounded(weights, self.weight_bits, out=weights)

    def _power(self, base: float, exponent: int) -> float:
        """base**n; with a grid, with the same bits on every machine."""
        return base**exponent if self.weight_bits is None else power(base, exponent)


class Sgd(Optimizer):
    """w <- w - eta g."""

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """See the class."""
        np.multiply(gradient, gradient.dtype.type(learning_rate), out=gradient)
        return gradient


class Momentum(Optimizer):
    """v <- mu v + g;  w <- w - eta v.

    Source: Polyak 1964, in the form of Sutskever et al. 2013 with eta outside of v.
    """

    def __init__(self, like: Floats, momentum: float) -> None:
        super().__init__(like, momentum)
        self.state["velocity"] = np.zeros_like(like)

    def _advance(self, gradient: Floats) -> Floats:
        velocity = self.state["velocity"]
        np.multiply(velocity, velocity.dtype.type(self.momentum), out=velocity)
        np.add(velocity, gradient, out=velocity)
        return velocity

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """See the class."""
        velocity = self._advance(gradient)
        np.multiply(velocity, gradient.dtype.type(learning_rate), out=self._scratch)
        return self._scratch


class Nesterov(Momentum):
    """v <- mu v + g;  w <- w - eta (g + mu v).

    Source: Nesterov 1983, in the form of Sutskever et al. 2013 and Bengio et al. 2012.
    """

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """See the class."""
        velocity = self._advance(gradient)
        np.multiply(velocity, velocity.dtype.type(self.momentum), out=self._scratch)
        np.add(self._scratch, gradient, out=self._scratch)
        np.multiply(self._scratch, gradient.dtype.type(learning_rate), out=self._scratch)
        return self._scratch


class Adagrad(Optimizer):
    """G <- G + g**2;  w <- w - eta g / (sqrt(G) + 1e-8).

    Source: Duchi, Hazan and Singer 2011.
    """

    def __init__(self, like: Floats, momentum: float) -> None:
        super().__init__(like, momentum)
        self.state["squares"] = np.zeros_like(like)

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """See the class."""
        squares = self.state["squares"]
        np.multiply(gradient, gradient, out=self._scratch)
        np.add(squares, self._scratch, out=squares)
        np.sqrt(squares, out=self._scratch)
        np.add(self._scratch, gradient.dtype.type(EPSILON), out=self._scratch)
        np.divide(gradient, self._scratch, out=gradient)
        np.multiply(gradient, gradient.dtype.type(learning_rate), out=gradient)
        return gradient


class Adam(Optimizer):
    """m <- mu m + (1 - mu) g;  v <- b v + (1 - b) g**2;  w <- w - eta m' / (sqrt(v') + 1e-8).

    With b = 0.999, m' = m / (1 - mu**t) and v' = v / (1 - b**t) at update t.
    Source: Kingma and Ba 2015, algorithm 1.
    """

    def __init__(self, like: Floats, momentum: float) -> None:
        super().__init__(like, momentum)
        self.state["mean"] = np.zeros_like(like)
        self.state["squares"] = np.zeros_like(like)

    def change(self, gradient: Floats, learning_rate: float, update: int) -> Floats:
        """See the class."""
        mean, squares, kind = self.state["mean"], self.state["squares"], gradient.dtype.type
        np.multiply(mean, kind(self.momentum), out=mean)
        np.multiply(gradient, kind(1 - self.momentum), out=self._scratch)
        np.add(mean, self._scratch, out=mean)
        np.multiply(squares, kind(BETA2), out=squares)
        np.multiply(gradient, gradient, out=gradient)
        np.multiply(gradient, kind(1 - BETA2), out=gradient)
        np.add(squares, gradient, out=squares)
        np.divide(squares, kind(1 - self._power(BETA2, update)), out=gradient)
        np.sqrt(gradient, out=gradient)
        np.add(gradient, kind(EPSILON), out=gradient)
        np.divide(mean, gradient, out=gradient)
        rate = learning_rate / (1 - self._power(self.momentum, update))
        np.multiply(gradient, kind(rate), out=gradient)
        return gradient


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": Adagrad,
    "adam": Adam,
}


def make_optimizer(
    name: str, like: Floats, momentum: float, weight_bits: int | None = None
) -> Optimizer:
    """The update rule called ``name``, with zero state; see `Optimizer`."""
    rule = OPTIMIZERS[name](like, momentum)
    rule.weight_bits = weight_bits
    return rule


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

    def apply(self, total: Floats, examples: int, step: int, before: Floats | None = None) -> float:
        """Apply the mean of a gradient sum plus the penalty; returns the learning rate.

        Args:
            total: sum of dL_i/dW, shape (parameters,); overwritten.
            examples: how many examples it is over.
            step: step of the plan, for the learning rate.
            before: W before the update, if that is kept and ``weights`` is to hold W after it.
        """
        learning_rate = self.schedule.at(step)
        np.multiply(total, total.dtype.type(1 / examples), out=total)
        before = self.weights if before is None else before
        np.multiply(self.decay, before, out=self._scratch)
        np.add(total, self._scratch, out=total)
        self.version += 1
        change = self.optimizer.change(total, learning_rate, self.version)
        np.subtract(before, change, out=self.weights)
        self.optimizer.settle(self.weights)
        return learning_rate

    def average(
        self, total: Floats, examples: int, step: int, before: Floats | None = None
    ) -> float:
        """Subtract the mean of (W before - W after) of the replicas, weighted by examples.

        Args:
            total: sum over replicas of examples * (W before - W after); overwritten.
            examples: of all replicas.
            step: first step of the round, for the learning rate that is reported.
            before: as for `apply`.
        """
        np.multiply(total, total.dtype.type(1 / examples), out=total)
        np.subtract(self.weights if before is None else before, total, out=self.weights)
        self.optimizer.settle(self.weights)
        self.version += 1
        return self.schedule.at(step)
