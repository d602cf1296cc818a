"""Which checkpoints of a run stay: the newest, and a series of older ones that thins out.

A long run would otherwise fill the disk. What draws the path of a run, such as `landscape`, needs
some from its whole length, more where W moves fast; what goes on with a run needs the newest.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["superfluous", "wanted"]

_NEWEST = 8
"""The newest that stay, if as many may."""


def wanted(epoch: int, keep: int) -> bool:
    """Whether the checkpoint of an epoch that has just ended belongs to the series.

    Those that a later epoch still counts in are among those that did when they ended.

    Args:
        epoch: which, from 1.
        keep: how many checkpoints stay; 0 for all.
    """
    return not keep or _in_series(epoch, epoch - min(keep, _NEWEST), keep)


def superfluous(versions: Sequence[int], epochs: int, version: int, keep: int) -> set[int]:
    """The checkpoints that need not stay.

    The newest stay, 8 or ``keep``, whatever is less. Of the others those of every epoch stay, or
    of every 2nd, 4th, 8th, ..., with epochs 1, 2, 4, 8, ..., so that all are at most ``keep``. A
    checkpoint within an epoch counts as one of the nearest end of an epoch.

    Args:
        versions: of W that there are checkpoints of, ascending.
        epochs: that have ended, at least 1.
        version: of W at the end of the last of them.
        keep: how many stay; 0 for all.
    """
    if not keep:
        return set()
    newest = min(keep, _NEWEST)
    updates = max(1, version) / epochs  # of an epoch; with some policies that is a mean
    return {
        older
        for older in versions[:-newest]
        if not _in_series(round(older / updates), epochs - newest, keep)
    }


def _in_series(epoch: int, epochs: int, keep: int) -> bool:
    """Whether an epoch is in the series of the first ``epochs``, which has room beside the newest.

    Powers of two take half of the room at most; if they need more, there are none.
    """
    room, epochs = keep - min(keep, _NEWEST), max(0, epochs)
    for powers in (True, False):
        most = room // 2 if powers else epochs.bit_length()
        for doublings in range(most + 1):
            # From 1 on, as many powers of two as doublings are no multiples of the stride.
            if (epochs >> doublings) + (doublings if powers else 0) <= room:
                return epoch % (1 << doublings) == 0 or (powers and epoch & (epoch - 1) == 0)
    return False
