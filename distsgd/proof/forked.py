"""Checks that a fork begins where it says: at the state of its parent after that update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from distsgd.config.jobs import make_job
from distsgd.core.server import Ledger
from distsgd.engine.job import Snapshot
from distsgd.errors import JournalError, RunError
from distsgd.runs import Model
from distsgd.runs.journal_check import Beginning, RunView, beginning_of, proven
from distsgd.runs.opened_run import OpenedRun

__all__ = ["check_left", "check_same_state", "proven_parent"]

T = TypeVar("T")


def proven_parent(parent: OpenedRun, check: Callable[[RunView], T]) -> T:
    """As `proven`; the error of a part of a history says whose it is.

    Raises:
        JournalError: the journal of the parent is invalid.
        RunError: it is damaged otherwise.
    """
    try:
        return proven(parent, check)
    except JournalError as error:
        raise JournalError(error.line, f"{error.why} (in {parent.folder.path})") from None


def check_left(parent: OpenedRun, end: Beginning | None, fork: OpenedRun) -> None:
    """Check that a fork begins with what its parent had applied by then.

    Args:
        parent: the run that it was forked from.
        end: where that was left.
        fork: the other.

    Raises:
        JournalError: it does not.
    """
    known = fork.parent
    assert known is not None
    if end is None or end.ledger.version != known.update:
        raise JournalError(
            known.update, f"{parent.folder.path} ends before {fork.folder.path} was forked from it"
        )
    if end.mark != known.mark:
        raise JournalError(
            known.update, f"its digest is another than the one where {fork.folder.path} begins"
        )
    try:
        model = fork.base(known.mark)
    except RunError:  # its own journal was shortened since
        return
    begin = beginning_of(fork, model)
    before, after = (make_job(one.config, fork.dataset).plan for one in (end, begin))
    expected = end.ledger.to_json()
    same = begin.ledger.to_json() == expected
    if not same:
        try:
            moved = Ledger.from_json(expected).replanned(before, after)
            same = moved.to_json() == begin.ledger.to_json()
        except ValueError:
            same = False
    if not same:
        raise JournalError(
            known.update, f"{fork.folder.path} begins with other examples than were applied by then"
        )


def check_same_state(fork: Model, parent: Snapshot) -> None:
    """Check that a fork begins with W of its parent, and its state as far as it has that.

    Args:
        fork: its first checkpoint.
        parent: the state of its parent after that update.

    Raises:
        JournalError: a bit differs.
    """
    unpad = fork.architecture.unpad
    state = {name: unpad(array) for name, array in parent.state.items()}
    pairs = [("W", fork.weights, unpad(parent.weights))]
    pairs += [
        (name, array, state.get(name, np.zeros_like(array))) for name, array in fork.state.items()
    ]
    for name, mine, its in pairs:
        if mine.tobytes() != its.tobytes():
            raise JournalError(
                fork.version, f"the bits of {name} with which the fork begins are not its parent's"
            )
