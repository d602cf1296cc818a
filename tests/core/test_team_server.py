"""Teams around a parameter server, under random schedules: who works, leaves, dies and comes.

`TeamCrew` does what workers and the host of a server may do. What its team makes is taken from a
training by one worker, so W has to have the bits of that at every version, whoever has made it.
"""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_fleet import Toy, granted, toy_plan

from distsgd.core.messages import Applied, Dismiss, Grant, Stand
from distsgd.core.server import Ledger, UpdateCheck, UpdateSampler
from distsgd.core.server.consistency import make_policy
from distsgd.core.server.standing import TeamRecords

WORKERS = 4


class Alone:
    """A training by one worker: W, the state of the optimiser and the update of each version."""

    def __init__(self, toy):
        server = toy.server()
        self.weights, self.states, self.updates = [], [], []
        decisions = server.pull(0)
        self._keep(server)
        while (leases := granted(decisions)) and 0 in leases:
            decisions = server.push(0, toy.answer(leases[0], server.weights))
            made = [decision for decision in decisions if isinstance(decision, Applied)]
            if made:
                self.updates += made
                self._keep(server)
            decisions += server.pull(0)

    def _keep(self, server):
        self.weights.append(server.weights.copy())
        self.states.append({name: a.copy() for name, a in server.optimizer.state.items()})


class TeamCrew:
    """Workers around a server, of which some share memory with it.

    Attributes:
        made: updates that the team has made.
    """

    def __init__(self, chance, toy, sampler=None):
        self.chance, self.toy, self.server, self.alone = chance, toy, toy.server(), Alone(toy)
        self.server.sampler = sampler
        self.alive, self.near, self.leases = set(), set(), {}
        self.lease = None  # the last that stands
        self.inside, self.left, self.home = set(), set(), True
        self.made, self.sampled, self.helped = [], [], 0
        self._check = UpdateCheck(toy.plan, toy.policy, Ledger(), WORKERS)
        self._serials = set()

    def take(self, decisions):
        for decision in decisions:
            match decision:
                case Grant(worker, lease):
                    assert self.lease is None, "a lease is granted while a team stands"
                    self.leases[worker] = lease
                case Stand(lease):
                    assert self.lease is None and not self.leases
                    assert set(lease.members) == self.alive <= self.near
                    assert lease.version == self.server.version
                    self.lease, self.inside, self.left = lease, set(lease.members), set()
                    self.home = False
                case Applied():
                    self.applied(decision)
                    if self.server.sampler is not None:
                        self.sampled.append(self.server.sampler.take(decision.version))
                        self.server.sampler.delivered(1)
                case Dismiss(worker):
                    assert self.server.stopped
                    self.leases.pop(worker, None)

    def applied(self, update):
        """Any update, by whomever: it is that of the one worker, but for who made it."""
        self._check.add(update)
        same = self.alone.updates[update.version - 1]
        for name in ("step", "epoch", "version", "loss", "correct", "examples", "learning_rate"):
            assert getattr(update, name) == getattr(same, name), name
        assert update.ends_epoch == same.ends_epoch
        for worker, lease in update.contributions:
            assert (worker, lease.serial) not in self._serials, "a serial comes twice"
            self._serials.add((worker, lease.serial))

    def check_weights(self):
        if self.home:
            version = self.server.version
            assert self.server.weights.tobytes() == self.alone.weights[version].tobytes()
            for name, array in self.server.optimizer.state.items():
                assert array.tobytes() == self.alone.states[version][name].tobytes()

    # What may happen: each returns whether it can.

    def work(self):
        """A worker answers its lease and asks for more."""
        if not self.leases:
            return False
        worker = self.chance.choice(sorted(self.leases))
        push = self.toy.answer(self.leases.pop(worker), self.server.weights)
        self.take(self.server.exchange(worker, push))
        return True

    def ask(self):
        """A worker without work asks for it; one that is new comes so."""
        idle = set(range(WORKERS)) - self.leases.keys() - self.inside - self.left
        if not idle:
            return False
        worker = self.chance.choice(sorted(idle))
        self.alive.add(worker)
        self.take(self.server.pull(worker))
        return True

    def near_ones(self):
        """Some workers share memory with the server."""
        self.near = {worker for worker in range(WORKERS) if self.chance.random() < 0.9}
        self.take(self.server.team(sorted(self.near), self.chance.randint(1, 5)))
        return True

    def make(self):
        """The server reads what the team has made."""
        if self.lease is None or not self.granted_left:
            return False
        count = self.chance.randint(1, min(5, self.granted_left))
        first = self.server.version
        updates = self.alone.updates[first : first + count]
        ends = [update.ends_epoch for update in updates]
        if any(ends):
            updates = updates[: ends.index(True) + 1]
        count = len(updates)
        losses = np.array([[update.loss * update.examples, 0] for update in updates])
        stretch = self.server.stood(
            TeamRecords(
                losses, np.array([update.correct for update in updates]), self.makers(count)
            )
        )
        self.home = False
        for update, same in zip(stretch.updates(), updates, strict=True):
            assert update.loss == pytest.approx(same.loss, rel=1e-12)
            assert {worker for worker, _ in update.contributions} <= set(self.lease.members)
            self.applied(update._replace(loss=same.loss))
        self.made += updates
        if not self.granted_left:
            self.bring_home()
        return True

    def makers(self, count):
        """Who has made each piece: its owner, or now and then any member that has helped."""
        members = len(self.lease.members)
        if self.chance.random() < 0.3:
            return None
        found = np.tile(np.arange(members), (count, 1))
        for row in found:
            if self.chance.random() < 0.3:
                row[:] = [self.chance.randrange(members) for _ in row]
                self.helped += 1
        return found

    @property
    def granted_left(self):
        """Updates that the team has been granted and the server does not know of."""
        return self.lease.version + self.lease.updates - self.server.version

    def bring_home(self):
        version = self.server.version
        self.server.home(self.alone.weights[version], self.alone.states[version])
        self.home = True

    def extend(self):
        """The server grants more, in the middle or at the end."""
        if self.lease is None or self.inside != set(self.lease.members):
            return False
        paused = not self.granted_left
        lease = self.server.extend(self.chance.randint(1, 5), home=self.home)
        if lease is None:
            return paused and self.disband()
        assert (lease.step, lease.version) == (
            self.lease.end, self.lease.version + self.lease.updates,
        )  # fmt: skip
        assert set(lease.members) == self.alive, "not all who work are in it"
        epoch = self.toy.plan.epoch_of
        assert epoch(lease.end - 1) == epoch(lease.step)
        self.lease, self.home = lease, False
        return True

    def lose(self):
        """A worker dies, in a team or not."""
        if not self.alive:
            return False
        worker = self.chance.choice(sorted(self.alive))
        self.alive.discard(worker)
        self.leases.pop(worker, None)
        was_inside = worker in self.inside
        self.inside.discard(worker)
        self.left.discard(worker)
        self.take(self.server.lost(worker))
        if was_inside:
            self.disband()
        return True

    def disband(self):
        """The team is revoked, at whatever version it is."""
        if self.lease is None:
            return False
        if self.granted_left and self.chance.random() < 0.5:
            self.make()
        self.bring_home()
        left, self.inside, self.lease = sorted(self.inside), set(), None
        self.left = set(left)
        self.take(self.server.disbanded())
        self.chance.shuffle(left)
        for worker in left:
            self.left.discard(worker)
            if self.lease is None or worker in self.alive:
                self.take(self.server.pull(worker))
        return True

    def finish(self):
        """All come, nobody dies any more: it comes to its end."""
        self.near = set(range(WORKERS))
        self.take(self.server.team(sorted(self.near), 3))
        for _ in range(10_000):
            if self.server.finished and self.lease is None:
                break
            self.check_weights()
            assert any(move() for move in (self.make, self.extend, self.work, self.ask))
        assert self.server.finished and self.home
        self.check_weights()
        assert len(self.alone.updates) == self.server.version
        assert self._check.ledger.whole == self.toy.plan.total_steps


def any_toy(chance):
    batch, slot = chance.randint(1, 10), chance.randint(1, 3)
    plan = toy_plan(chance.randint(batch, 5 * batch), batch, slot, epochs=chance.randint(1, 3))
    if chance.random() < 0.3:
        steps, replicas = chance.randint(2, 4), chance.randint(1, WORKERS)
        return Toy(plan, "sgd", make_policy("local", local_steps=steps, replicas=replicas))
    return Toy(plan, chance.choice(("sgd", "momentum", "adam")), make_policy("bsp"))


def drive(chance):
    toy = any_toy(chance)
    sampler = UpdateSampler(chance.randint(0, 99), 0.3) if chance.random() < 0.3 else None
    crew, log = TeamCrew(chance, toy, sampler), []
    unruly = chance.choice((0.0, 0.05, 0.3))
    try:
        for _ in range(chance.randint(0, 60)):
            odd = chance.random() < unruly
            moves = (crew.lose, crew.disband, crew.near_ones)
            move = chance.choice(moves if odd else (crew.work, crew.ask, crew.make, crew.extend))
            log.append(move.__name__)
            move()
            crew.check_weights()
        log.append("finish")
        crew.finish()
    except Exception as error:
        error.add_note(f"{toy}\n{' '.join(log)}")
        raise
    return crew


def test_whoever_makes_the_updates_they_are_those_of_one_worker(pytestconfig):
    seen = Counter()
    for seed in range(pytestconfig.getoption("schedules")):
        try:
            crew = drive(random.Random(seed))
        except Exception as error:
            error.add_note(f"drive(random.Random({seed}))")
            raise
        seen["team"] += len(crew.made)
        seen["helped"] += crew.helped
        seen["others"] += crew.server.version - len(crew.made)
        steps = {one.update.step for one in crew.sampled if one is not None}
        assert not steps & {update.step for update in crew.made}, "a team made a sampled update"
        seen["sampled"] += len(steps)
    assert min(seen[kind] for kind in ("team", "helped", "others", "sampled")) > 20, seen


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_and_under_the_shortest_schedule_that_breaks_it(chance):
    drive(chance)


def test_a_team_stops_at_the_version_it_has_made():
    toy = Toy(toy_plan(60, 10, 3, epochs=1), "momentum", make_policy("bsp"))
    crew = TeamCrew(random.Random(0), toy)
    crew.near = {0, 1}
    crew.take(crew.server.team([0, 1], 4))
    for worker in (0, 1):
        crew.alive.add(worker)
        crew.take(crew.server.pull(worker))
    while crew.lease is None:
        crew.work()
    crew.make()
    version = crew.server.version
    crew.take(crew.server.stop())
    assert crew.server.extend(4) is None
    crew.bring_home()
    assert crew.server.disbanded() == []
    assert crew.server.pull(0) == [Dismiss(0)] and crew.server.pull(1) == [Dismiss(1)]
    assert crew.server.version == version and not crew.server.finished
    crew.check_weights()


@pytest.mark.parametrize("name", ["ssp", "backup"])
def test_other_policies_have_no_team(name):
    numbers = {"ssp": {"staleness": 2}, "backup": {"backup": 1}}[name]
    toy = Toy(toy_plan(60, 10, 3), "sgd", make_policy(name, **numbers))
    server = toy.server()
    server.team([0, 1], 4)
    found = [*server.pull(0), *server.pull(1)]
    assert [type(decision) for decision in found] == [Grant, Grant]
