"""Which faults come when: a pure function of the seed."""

from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.chaos import Chaos, Fault

KILLS = (Fault("kill-worker", every=7), Fault("kill-server", at=30), Fault("drop-push", share=0.1))


def test_a_fault_comes_at_its_updates():
    due = [(strike.version, strike.fault.name) for strike in Chaos(KILLS).strikes(0, 35)]
    assert due == [
        (7, "kill-worker"), (14, "kill-worker"), (21, "kill-worker"), (28, "kill-worker"),
        (30, "kill-server"), (35, "kill-worker"),
    ]  # fmt: skip


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_strikes_do_not_depend_on_how_often_one_asks(low, middle, high, seed):
    low, middle, high = sorted((low, middle, high))
    chaos = Chaos(KILLS, seed)
    in_two = chaos.strikes(low, middle) + chaos.strikes(middle, high)
    assert in_two == chaos.strikes(low, high)
    assert all(0 <= strike.choice < 1 for strike in in_two)


def test_choices_differ_by_update_and_by_seed():
    once, again, other = (Chaos(KILLS, seed).strikes(0, 700) for seed in (1, 1, 2))
    assert once == again
    assert len({strike.choice for strike in once}) == len(once)
    assert [strike.choice for strike in once] != [strike.choice for strike in other]


def test_pushes_suffer_as_often_as_asked_and_each_on_its_own():
    chaos = Chaos((Fault("drop-push", share=0.1), Fault("dup-push", share=0.3)))
    found = [chaos.of_push(worker, n) for worker in range(4) for n in range(2000)]
    for name, share in (("drop-push", 0.1), ("dup-push", 0.3)):
        assert abs(sum(name in one for one in found) / len(found) - share) < 0.02
    both = sum(len(one) == 2 for one in found) / len(found)
    assert abs(both - 0.03) < 0.01
    assert [chaos.of_push(0, n) for n in range(50)] != [chaos.of_push(1, n) for n in range(50)]


def test_always_is_always_and_faults_of_processes_are_not_of_pushes():
    chaos = Chaos((*KILLS[:2], Fault("delay", share=1.0, seconds=0.02)))
    assert all(list(chaos.of_push(0, n)) == ["delay"] for n in range(100))
