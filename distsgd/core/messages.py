"""What workers and the parameter server say to each other, and what the server decides."""

from __future__ import annotations

from dataclasses import dataclass

from distsgd.core.arrays import Floats
from distsgd.core.slot_gradient import SlotLoss

__all__ = ["Applied", "Decision", "Dismiss", "Diverged", "Dropped", "Grant", "Lease", "Push"]


@dataclass(frozen=True)
class Lease:
    """Slots that one worker has been asked to compute.

    Attributes:
        step: the update they belong to, from 0 over the whole run.
        first: first slot.
        last: one past the last slot.
        version: the version of W to compute them at (number of updates applied to it).
    """

    step: int
    first: int
    last: int
    version: int


@dataclass(frozen=True, eq=False)
class Push:
    """The answer to a lease.

    Attributes:
        lease: what was computed.
        losses: one for each slot of the lease.
        gradients: shape (nodes, parameters): the sums of the nodes that cover the lease, left
            to right (`reduction_tree.cover`).
    """

    lease: Lease
    losses: tuple[SlotLoss, ...]
    gradients: Floats


@dataclass(frozen=True)
class Grant:
    """Send this worker W, as it is now, and this lease."""

    worker: int
    lease: Lease


@dataclass(frozen=True)
class Dismiss:
    """Tell this worker that there is no more work."""

    worker: int


@dataclass(frozen=True)
class Dropped:
    """A push that was not used: doubled, or for slots that are no longer wanted."""

    worker: int
    lease: Lease


@dataclass(frozen=True)
class Applied:
    """An update of W.

    Attributes:
        step: the update, from 0.
        version: version of W after it.
        loss: mean loss of the minibatch, without regularisation, before the update.
        correct: examples of the minibatch that were classified rightly, before the update.
        examples: examples of the minibatch.
        learning_rate: learning rate of the update.
    """

    step: int
    version: int
    loss: float
    correct: int
    examples: int
    learning_rate: float


@dataclass(frozen=True)
class Diverged:
    """The loss of a step is not finite; W has been left as it was."""

    step: int
    loss: float
    learning_rate: float


Decision = Grant | Dismiss | Dropped | Applied | Diverged
