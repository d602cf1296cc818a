"""What each policy promises about its updates, and the draws of its numbers.

A new policy is one line in `PROMISES`; `any_schedule` plays it and `crew_account` checks it.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """What a policy says of itself.

    Attributes:
        staleness: the most updates that a gradient is old, and the most minibatches that a piece
            is ahead of the oldest that is not applied; None if there is no bound.
        window: how many minibatches may be open, given the number of workers.
        pieces: into how many pieces a minibatch of so many slots is cut for so many workers.
        local_steps: steps of the plan in one update.
        backup: pieces of a minibatch that are not waited for.
    """

    staleness: int | None = 0
    window: Callable[[int], int] = lambda workers: 1
    pieces: Callable[[int, int], int] = lambda slots, workers: min(slots, max(1, workers))
    local_steps: int = 1
    backup: int = 0

    @property
    def is_bsp(self):
        """Whether W must have the bits of `bsp`."""
        return (self.staleness, self.local_steps, self.backup) == (0, 1, 0)

    @property
    def is_local(self):
        return self.local_steps > 1


# The draws of a policy: what to make it of, and what it then promises. `slots` is the n of a plan.


def any_bsp(random, slots):
    return {}, Promise()


def any_ssp(random, slots):
    bound = random.randint(0, 5)
    return {"staleness": bound}, Promise(staleness=bound, window=lambda workers: bound + 1)


def any_asp(random, slots):
    return {}, Promise(None, window=lambda workers: max(1, workers), pieces=lambda n, workers: 1)


def any_backup(random, slots):
    backup = random.randint(1, slots - 1)
    return {"backup": backup}, Promise(pieces=lambda n, workers: n, backup=backup)


def any_local(random, slots):
    steps, replicas = random.randint(1, 4), random.randint(1, 6)
    promise = Promise(pieces=lambda n, workers: min(n, replicas), local_steps=steps)
    return {"local_steps": steps, "replicas": replicas}, promise


PROMISES = {
    "bsp": any_bsp,
    "ssp": any_ssp,
    "asp": any_asp,
    "backup": any_backup,
    "local": any_local,
}
