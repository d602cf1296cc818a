"""The parameter server under any schedule of pulls, pushes, doubles, losses and arrivals.

Whatever happens: the final W has the bits of a run with a single worker, every slot is used
once, no gradient is stale, nobody waits in vain, and one living worker can always finish.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy_fleet import Fleet, Toy, run_alone, toy_plan, what_was_applied

from distsgd.core.optim import OPTIMIZERS

NAMES = range(5)
some = st.integers(0, 1000)


def pick(choices, number):
    return choices[number % len(choices)]


class AnySchedule(RuleBasedStateMachine):
    """Every rule is one thing that can happen next."""

    @initialize(
        examples=st.integers(1, 40),
        batch_size=st.integers(1, 40),
        slot_size=st.integers(1, 4),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    )
    def begin(self, examples, batch_size, slot_size, optimizer):
        plan = toy_plan(examples, min(batch_size, examples), slot_size, epochs=2)
        self.toy = Toy(plan, optimizer)
        self.fleet = Fleet(self.toy, self.toy.server())

    @rule(worker=st.sampled_from(NAMES))
    def join(self, worker):
        """Also under the name of one that was lost before."""
        if worker not in self.fleet.living:
            self.fleet.join(worker)

    @precondition(lambda self: self.fleet.living)
    @rule(number=some)
    def pull(self, number):
        """Also while waiting, and while holding a lease."""
        self.fleet.pull(pick(self.fleet.living, number))

    @rule()
    def all_pull(self):
        for worker in list(self.fleet.living):
            self.fleet.pull(worker)

    @precondition(lambda self: self.fleet.busy())
    @rule(number=some)
    def answer(self, number):
        self.fleet.answer(pick(self.fleet.busy(), number))

    @precondition(lambda self: self.fleet.busy())
    @rule(number=some)
    def answer_and_pull(self, number):
        worker = pick(self.fleet.busy(), number)
        self.fleet.answer(worker)
        self.fleet.pull(worker)

    @precondition(lambda self: self.fleet.sent)
    @rule(number=some)
    def push_comes_again(self, number):
        self.fleet.send_again(-1 - number % min(4, len(self.fleet.sent)))

    @precondition(lambda self: self.fleet.living)
    @rule(number=some)
    def worker_is_lost(self, number):
        self.fleet.lose(pick(self.fleet.living, number))

    @precondition(lambda self: self.fleet.late)
    @rule(number=some)
    def late_push_of_a_lost_worker(self, number):
        self.fleet.send_late(number % len(self.fleet.late))

    @invariant()
    def nobody_waits_in_vain(self):
        """Who waits, waits for a living worker's answer."""
        assert not self.fleet.waiting or self.fleet.busy()

    def teardown(self):
        """All but one worker are lost; the last one finishes within a bounded number of leases."""
        fleet = self.fleet
        if not fleet.living:
            fleet.join(0)
        for worker in fleet.living[1:]:
            fleet.lose(worker)
        answered = fleet.finish(fleet.living[0])
        assert answered <= self.toy.all_slots().total()
        self.check_against_a_run_alone()
        for _ in range(len(fleet.late)):
            fleet.send_late(0)
        self.check_against_a_run_alone()

    def check_against_a_run_alone(self):
        expected = run_alone(self.toy)
        assert self.fleet.server.finished
        assert self.fleet.server.weights.tobytes() == expected.server.weights.tobytes()
        assert what_was_applied(self.fleet) == what_was_applied(expected)
        assert self.fleet.used == expected.used == self.toy.all_slots()


AnySchedule.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=120)


class TestAnySchedule(AnySchedule.TestCase):
    pass


def test_in_every_step_one_worker_more_is_lost_at_work():
    toy = Toy(toy_plan(examples=46, batch_size=23, slot_size=2, epochs=4))
    fleet = Fleet(toy, toy.server())
    for worker in range(8):
        fleet.join(worker)
    while not fleet.server.finished:
        for worker in fleet.living:
            fleet.pull(worker)
        for worker in fleet.living[1:2]:
            assert fleet.held[worker]
            fleet.lose(worker)
        finish_step(fleet)
    expected = run_alone(toy)
    assert len(fleet.living) == 1
    assert fleet.server.weights.tobytes() == expected.server.weights.tobytes()
    assert what_was_applied(fleet) == what_was_applied(expected)


def finish_step(fleet):
    step = fleet.server.version
    while fleet.server.version == step:
        worker = fleet.busy()[0]
        fleet.answer(worker)
        if fleet.server.version == step:
            fleet.pull(worker)
