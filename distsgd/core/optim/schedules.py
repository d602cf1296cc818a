"""Learning rates as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distsgd.core.portable import cos_pi, power

__all__ = ["SCHEDULES", "Schedule"]

SCHEDULES = ("constant", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every update.

    Attributes:
        name: "constant"; "step": multiplied by ``factor`` every ``every`` steps; "cosine":
            eta (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter 2017, eq. 5, one cycle).
        learning_rate: eta, the largest rate.
        total: T, number of steps of the whole run.
        warmup: steps over which the rate grows linearly up to eta (Goyal et al. 2017, 2.2);
            the named schedule runs over the steps that remain.
        every: steps between drops of "step".
        factor: what each drop of "step" multiplies by.
        exact: whether cosines and powers have the same bits on every machine.
    """

    name: str
    learning_rate: float
    total: int
    warmup: int = 0
    every: int = 1
    factor: float = 0.1
    exact: bool = False

    def at(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        past, span = step - self.warmup, max(1, self.total - self.warmup)
        if self.name == "cosine":
            share = min(1.0, past / span)
            cosine = float(cos_pi(share)) if self.exact else math.cos(math.pi * share)
            return self.learning_rate * 0.5 * (1 + cosine)
        if self.name == "step":
            drops = past // self.every
            return self.learning_rate * (
                power(self.factor, drops) if self.exact else self.factor**drops
            )
        return self.learning_rate
