"""Refusals that several experiments share."""

from __future__ import annotations

from distsgd.core.model.losses import LOSSES
from distsgd.errors import UsageError

__all__ = ["check_loss"]


def check_loss(loss: str) -> None:
    """See that there is such a loss.

    Raises:
        UsageError: there is none.
    """
    if loss not in LOSSES:
        raise UsageError(f"--loss cannot be {loss}", f"Give one of {', '.join(LOSSES)}")
