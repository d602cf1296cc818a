from distsgd.core.messages import Lease
from distsgd.runtime.lease_times import LeaseTimes


def measured(seconds: float) -> LeaseTimes:
    """After a worker has taken so long for each of its slots."""
    times = LeaseTimes()
    times.granted(0, Lease(0, 0, 2, 0), 10.0)
    times.answered(0, 10.0 + 2 * seconds)
    return times


def test_nothing_is_overdue_before_anything_is_known() -> None:
    times = LeaseTimes()
    times.granted(0, Lease(0, 0, 2, 0), 0.0)
    assert times.overdue(1e6) == []


def test_a_lease_is_overdue_after_a_multiple_of_what_others_took_and_only_once() -> None:
    times = measured(0.5)
    assert times.bound(4) == 40.0
    times.granted(1, Lease(1, 0, 4, 1), 100.0)
    assert times.overdue(139.0) == []
    assert times.overdue(141.0) == [1]
    assert times.overdue(1e6) == []


def test_fast_slots_are_not_called_late_for_a_hiccup() -> None:
    times = measured(1e-4)
    times.granted(1, Lease(1, 0, 4, 1), 100.0)
    assert times.overdue(100.9) == [] and times.overdue(101.1) == [1]


def test_local_steps_count_as_slots_each() -> None:
    times = measured(0.5)
    times.granted(1, Lease(1, 0, 2, 1, 8), 100.0)
    assert times.overdue(259.0) == [] and times.overdue(261.0) == [1]


def test_who_has_answered_or_is_lost_is_not_overdue() -> None:
    times = measured(0.01)
    times.granted(1, Lease(1, 0, 4, 1), 100.0)
    times.granted(2, Lease(1, 0, 4, 1), 100.0)
    times.answered(1, 100.1)
    times.lost(2)
    assert times.overdue(1e6) == []
