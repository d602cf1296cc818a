"""Work on its way to workers that wait in calls, some of which nobody waits for any more."""

from __future__ import annotations

import threading

import numpy as np

from distsgd.core.messages import Lease
from distsgd.engine.pending_replies import PendingReplies

WORK = (Lease(0, 0, 2, 0), np.ones(3, np.float32))


def test_the_call_of_a_dead_worker_takes_nothing_from_the_one_that_took_its_place() -> None:
    changed = threading.Condition(threading.RLock())
    with changed:
        replies = PendingReplies(changed)
        before = replies.called(0)
        replies.ask(0, 0.0)
        assert replies.fetch(0, before) is None
        after = replies.called(0)
        replies.ask(0, 0.0)
        replies.put(0, WORK)
        assert replies.fetch(0, before) == (None,)
        found = replies.fetch(0, after)
    assert found is not None and found[0] is not None and found[0][0] == WORK[0]


def test_nor_does_it_leave_anything_behind_for_it() -> None:
    changed = threading.Condition(threading.RLock())
    with changed:
        replies = PendingReplies(changed)
        replies.called(0)
        replies.ask(0, 0.0)
        replies.put(0, WORK)  # and it dies before it fetches
        assert replies.fetch(0, replies.called(0)) is None


def test_but_a_follower_keeps_what_may_be_for_the_new_one() -> None:
    changed = threading.Condition(threading.RLock())
    with changed:
        replies = PendingReplies(changed)
        replies.called(0)
        replies.ask(0, 0.0)  # and it dies; the coordinator grants its successor a lease
        replies.put(0, WORK)
        call = replies.called(0, keep=True)
        replies.ask(0, 0.0)
        found = replies.fetch(0, call)
    assert found is not None and found[0] is not None and found[0][0] == WORK[0]


def test_who_has_gone_asks_no_more() -> None:
    changed = threading.Condition(threading.RLock())
    given: list[object] = []
    with changed:
        replies = PendingReplies(changed)
        with replies.attached(0, given.append):
            replies.ask(0, 0.0)
        replies.gone(0)
        replies.put(0, WORK)
        with replies.attached(0, given.append):
            replies.ask(0, 0.0)
    assert len(given) == 1
