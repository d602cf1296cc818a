"""The residuals of a fleet: what the error feedback of each worker has not sent yet.

A residual belongs to a worker, and to a number of its answers: error feedback adds it to the next
gradient of that worker. It follows from the journal, as each answer does, so that it is always the
same at one version of W:

- after an update, a worker's residual is that after the last of its answers that are in W;
- where a run is resumed, the new fleet shares the residuals of the old one out (`share`);
- a worker that takes the place of a lost one, within a session, starts from none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.messages import LIFE

__all__ = ["Residual", "Residuals", "share", "shared_out", "start_of_life"]


class Residual(NamedTuple):
    """What one worker has not sent yet.

    Attributes:
        serial: of its next lease (`Lease.serial`).
        values: flat and padded, shape (parameters,); None for zeros.
    """

    serial: int
    values: Floats | None


Residuals = Mapping[int, Residual]
"""Worker -> its residual; a worker that is not in it has never answered."""


def share(residuals: Residuals, worker: int, workers: int) -> Residual:
    """The residual with which a worker of a new fleet starts.

    Args:
        residuals: of the old fleet.
        worker: a number; from ``workers`` on, of one that joins later.
        workers: how many the new fleet has at its start.
    """
    serial = residuals[worker].serial if worker in residuals else 0
    if serial % LIFE:
        serial = (serial // LIFE + 1) * LIFE
    parts = [
        values
        for number, (_, values) in sorted(residuals.items())
        if values is not None and worker < workers and number % workers == worker
    ]
    if not parts:
        return Residual(serial, None)
    total = parts[0].copy()
    for values in parts[1:]:
        np.add(total, values, out=total)
    return Residual(serial, total)


def shared_out(residuals: Residuals, workers: int) -> dict[int, Residual]:
    """The residuals of all workers when a new fleet of so many starts; see `share`."""
    known = sorted({*residuals, *(range(workers) if residuals else ())})
    return {worker: share(residuals, worker, workers) for worker in known}


def start_of_life(known: Residual | None, serial: int) -> Residual:
    """The residual with which the process started that answers a lease.

    Args:
        known: of its worker, before the lease.
        serial: of the lease.
    """
    life = serial // LIFE
    if known is not None and known.serial // LIFE == life:
        return known
    return Residual(life * LIFE, None)
