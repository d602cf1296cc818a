"""Whether a fork that is resumed still follows the recorded order of its parent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsgd.config.settings import RESUMABLE_SETTINGS
from distsgd.core.server import Ledger
from distsgd.errors import RunError
from distsgd.proof.timeline import Timeline
from distsgd.runs import Mark
from distsgd.runs.journal_check import Beginning
from distsgd.runs.lineage import lineage
from distsgd.runs.opened_run import OpenedRun
from distsgd.runs.parent import RECORDED
from distsgd.training.recorded_order import RecordedOrder, lines_after, lines_left
from distsgd.training.recovery import Tail
from distsgd.training.results import Reporter

__all__ = ["recorded_rest"]


def recorded_rest(
    run: OpenedRun, tail: Tail, given: Mapping[str, Any], reporter: Reporter
) -> RecordedOrder | None:
    """What is left of the recorded order that a fork follows; None if it goes on by itself.

    Args:
        run: the fork, which is resumed.
        tail: where it stands.
        given: the settings of the resume; None for those that are as before.
        reporter: notified if the order cannot be followed any more.
    """
    parent = run.parent
    if parent is None or parent.order != RECORDED:
        return None
    if any(given.get(name) is not None for name in RESUMABLE_SETTINGS):
        reporter.notice("the recorded order ends here: the resume changes settings")
        return None
    journal = run.journal()
    own = [entry for entry, _ in journal.entries()]
    try:
        before = lineage(run)[-2].run
        begin = _beginning(before, parent.update, parent.mark)
        left = lines_left(own, lines_after(before, begin))
    except RunError as error:
        reporter.notice(f"the recorded order cannot be followed any more: {error.problem}")
        return None
    return None if left is None else RecordedOrder(run, left, parent.changed)


def _beginning(parent: OpenedRun, update: int, mark: Mark) -> Beginning:
    """The place in the journal of a run at which a fork has left it."""
    moment = Timeline(parent).at(update)
    return Beginning(moment.config, Ledger.from_json(moment.ledger.to_json()), moment.fleet, mark)
