"""Update rules, applied at the server to flat parameters, element by element.

All are elementwise, so that splitting W over several servers does not change a bit.
"""

from __future__ import annotations

import numpy as np

from distsgd.core.arrays import Floats

__all__ = ["OPTIMIZERS", "Momentum", "Nesterov", "Optimizer", "Sgd", "make_optimizer"]


class Optimizer:
    """An update rule with its state.

    Args:
        like: parameters of the shape and dtype to be updated.
        momentum: coefficient mu, used by the rules that have one.
    """

    def __init__(self, like: Floats, momentum: float) -> None:
        self.momentum = momentum
        self.state: dict[str, Floats] = {}
        self._scratch = np.empty_like(like)

    def step(self, weights: Floats, gradient: Floats, learning_rate: float) -> None:
        """Update ``weights`` in place; ``gradient`` may be overwritten."""
        raise NotImplementedError


class Sgd(Optimizer):
    """w <- w - eta g."""

    def step(self, weights: Floats, gradient: Floats, learning_rate: float) -> None:
        """See the class."""
        np.multiply(gradient, weights.dtype.type(learning_rate), out=gradient)
        np.subtract(weights, gradient, out=weights)


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

    def step(self, weights: Floats, gradient: Floats, learning_rate: float) -> None:
        """See the class."""
        velocity = self._advance(gradient)
        np.multiply(velocity, weights.dtype.type(learning_rate), out=self._scratch)
        np.subtract(weights, self._scratch, out=weights)


class Nesterov(Momentum):
    """v <- mu v + g;  w <- w - eta (g + mu v).

    Source: Nesterov 1983, in the form of Sutskever et al. 2013 and Bengio et al. 2012.
    """

    def step(self, weights: Floats, gradient: Floats, learning_rate: float) -> None:
        """See the class."""
        velocity = self._advance(gradient)
        np.multiply(velocity, velocity.dtype.type(self.momentum), out=self._scratch)
        np.add(self._scratch, gradient, out=self._scratch)
        np.multiply(self._scratch, weights.dtype.type(learning_rate), out=self._scratch)
        np.subtract(weights, self._scratch, out=weights)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": Sgd, "momentum": Momentum, "nesterov": Nesterov}


def make_optimizer(name: str, like: Floats, momentum: float) -> Optimizer:
    """The update rule called ``name``, with zero state."""
    return OPTIMIZERS[name](like, momentum)
