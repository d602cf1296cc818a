from distsgd.core.messages import Lease
from distsgd.engine.lease_times import LeaseTimes


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


def test_who_is_far_beyond_hangs_and_the_next_is_given_twice_the_time() -> None:
    times = measured(0.01)
    assert times.hang_bound(4) == 10.0 and round(times.hang_bound(10), 6) == 20.0
    times.granted(1, Lease(1, 0, 4, 1), 100.0)
    assert times.overdue(104.0) == [1] and times.hung(109.0) == []
    assert times.hung(110.1) == [1] and times.hung(114.0) == []
    times.granted(1, Lease(1, 0, 4, 1), 115.0)
    for now in (118.0, 122.0, 126.0, 130.0, 134.9):
        assert times.hung(now) == []
    assert times.hung(135.1) == [1]


def test_a_sole_worker_may_hang_before_anything_is_known() -> None:
    times = LeaseTimes(hang_seconds=3.0)
    times.granted(0, Lease(0, 0, 2, 0), 1.0)
    assert times.hung(3.9) == [] and times.hung(4.1) == [0]


def test_who_stood_still_itself_blames_nobody() -> None:
    """As after Ctrl-Z, when all processes of a training were stopped."""
    times = measured(0.01)
    times.granted(1, Lease(1, 0, 4, 1), 100.0)
    assert times.overdue(100.5) == times.hung(100.5) == []
    assert times.overdue(1000.0) == times.hung(1000.0) == []
    assert times.overdue(1000.6) == [1] and times.hung(1004.0) == []
    assert times.hung(1008.0) == [] and times.hung(1009.8) == [1]
