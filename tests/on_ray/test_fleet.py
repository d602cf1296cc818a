"""The driver's account of workers, with actors that are fakes: no Ray is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from distsgd.errors import ChannelClosed, RuntimeFailure, ServerLost, WorkerLost
from distsgd.on_ray import fleet as ray_fleet
from distsgd.on_ray.fleet import Fleet
from distsgd.on_ray.health import answer_of
from distsgd.on_ray.node_teams import Connection, NodeTeams
from distsgd.transport.port import Address


class Method:
    """A remote method: keeps what it was called with, and returns a new reference."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, list[tuple[Any, ...]]()

    def remote(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return f"{self.name} {id(self)} {len(self.calls)}"


class Actor:
    """A worker's actor."""

    def __init__(self) -> None:
        self.connect, self.run = Method("connect"), Method("run")
        self.__ray_call__ = Method("process_identity")


class World:
    """Actors in the order in which they were made, and what calls have come to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actors: list[tuple[int, Actor]] = []
        self.results: dict[str, Any] = {}
        self.lost, self.give_up = Method("lost"), Method("give_up")
        self.node_teams = Method("node_teams")
        self.now = 100.0
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "wait", lambda found, timeout: ([], found))
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        monkeypatch.setattr(ray_fleet, "monotonic", lambda: self.now)

    def _get(self, reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, list):
            return [None for _ in reference]
        if isinstance(result := self.results[reference], Exception):
            raise result
        return result

    def make(self, worker: int) -> Actor:
        self.actors.append((worker, Actor()))
        return self.actors[-1][1]

    def fleet(self, workers: int, capacity: int | None = None, *, together: bool = False) -> Fleet:
        fleet = Fleet(self.make, "auto", self, workers, 60.0, capacity, together)
        fleet.connect_all([])
        return fleet

    def connected(
        self, fleet: Fleet, number: int, node: str = "here", door: Address | None = None
    ) -> None:
        reference = fleet.pending[number]
        kind, blas = "shm" if node == "here" else "tcp", next(iter(fleet._blas))
        self.results[reference] = Connection(kind, "127.0.0.1", blas, node, door)
        fleet.ended(reference)

    def dies(self, fleet: Fleet, number: int) -> None:
        reference = fleet.pending[number]
        self.results[reference] = ray.exceptions.RayActorError()
        fleet.ended(reference)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_replacement_is_another_incarnation(world: World) -> None:
    """So that a report of the death before it, however late, is not taken for its own."""
    fleet = world.fleet(2)
    assert [actor.connect.calls for _, actor in world.actors] == [[([], "auto", 1, None)]] * 2
    world.dies(fleet, 1)
    again, replacement = world.actors[2]
    assert again == 1 and world.lost.calls == [(1, 1)]
    assert replacement.connect.calls == [([], "auto", 2, None)]


def test_so_is_a_worker_that_takes_the_number_of_one_sent_away(world: World) -> None:
    fleet = world.fleet(2)
    fleet.resize(1)
    fleet.resize(2)
    number, actor = world.actors[2]
    assert number == 1 and world.lost.calls == [(1, 1)]
    assert actor.connect.calls == [([], "auto", 2, None)]


def test_a_worker_with_a_residual_can_be_replaced_only_before_it_works(world: World) -> None:
    fleet = world.fleet(2, together=True)
    world.dies(fleet, 1)
    assert world.lost.calls == [(1, 1)]
    world.connected(fleet, 0)
    world.now += 11
    assert fleet.enough()
    fleet.start_work()
    assert world.give_up.calls == [(1,)]
    with pytest.raises(WorkerLost, match="worker 0 is lost"):
        world.dies(fleet, -1)


@pytest.mark.parametrize("exact", [False, True])
def test_another_kernel_is_reported_where_it_may_change_bits(world: World, exact: bool) -> None:
    fleet = Fleet(world.make, "auto", world, 1, 60.0, exact=exact)
    fleet.connect_all([])
    reference = fleet.pending[0]
    world.results[reference] = Connection("tcp", "127.0.0.1", "another (Kernel)", "there", None)
    fleet.ended(reference)
    reported = ["multiplies by another" in notice.text for notice in fleet._notices]
    assert any(reported) != exact


OUT_OF_MEMORY = ray.exceptions.OutOfMemoryError(
    "3 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "127.0.0.1, ID: 8244) was 22.23GB used / 23.59GB limit (0.942596)\nOOM kill reason: ...\n"
    "setting the environment variable `RAY_idle_worker` to a lower value."
)


def test_what_ray_ends_to_free_memory_has_died(world: World) -> None:
    """Another takes its place, as of one that was killed; what is said is one clause."""
    fleet = world.fleet(1)

    def dies() -> None:
        died = fleet.pending[0]
        world.results[died] = OUT_OF_MEMORY
        fleet.ended(died)

    dies()
    assert len(world.actors) == 2
    says = r"memory: 22\.23GB used / 23\.59GB limit\. Look"
    with pytest.raises(RuntimeFailure, match=f"die repeatedly: Ray ended it, .*{says}"):
        for _ in range(10):
            dies()
    world.results["server"] = OUT_OF_MEMORY
    with pytest.raises(ServerLost, match=f"^a parameter server died: Ray ended it, .*{says}"):
        answer_of("server")


def test_workers_without_room_are_not_waited_for(world: World) -> None:
    """As with the `ray.init(num_cpus=2)` of a caller, for 2 workers and a server."""
    fleet = world.fleet(2, capacity=1)
    assert not fleet.enough()
    world.connected(fleet, 0)
    assert fleet.enough()
    assert fleet.start_work() == (
        "1 of 2 workers are connected; the others join as soon as CPUs are free"
    )


def test_a_wait_for_the_others_is_said(world: World) -> None:
    fleet = world.fleet(2)
    world.connected(fleet, 0)
    assert not fleet.enough() and fleet.check() is None
    world.now += 6
    notice = fleet.check()
    assert notice is not None and "1 of 2 workers are connected; waiting up to 10 s" in notice.text
    assert fleet.check() is None and not fleet.enough()
    world.now += 5
    assert fleet.enough()


def door(name: str) -> Address:
    return Address(name, ("127.0.0.1", 1), b"")


def far(door: Address | None, node: str = "there") -> Connection:
    return Connection("tcp", "10.0.0.2", "", node, door)


def test_who_leads_whom() -> None:
    """The first that connects of each node that allows it; the next when it has gone."""
    teams = NodeTeams()
    assert teams.connected(0, far(None, "here")) is None
    assert teams.connected(2, far(door("2"))) is None and not teams.sizes()
    assert teams.connected(1, far(door("1"))) == door("2")
    assert teams.connected(1, far(None)) is None, "it has done so now"
    assert teams.connected(3, far(door("3"))) == door("2")
    assert teams.connected(4, far(door("4"), "elsewhere")) is None
    assert teams.sizes() == {2: 3}
    channels = {0: "team", 1: "shm", 2: "tcp", 3: "shm", 4: "tcp"}
    team = "team+tcp"
    assert teams.named(channels) == {0: "shm", 1: team, 2: team, 3: team, 4: "tcp"}
    assert teams.named({0: "team", 5: "team"}) == {0: "team", 5: "team"}
    teams.gone(2)
    assert not teams.sizes() and teams.lost_leader(3) and not teams.lost_leader(3)
    assert teams.connected(3, far(door("3"))) is None
    assert teams.connected(2, far(door("2"))) == door("3"), "its replacement"
    assert teams.lost_leader(1), "late, and none of its leader's successors"
    assert teams.connected(1, far(door("1"))) == door("3")
    assert teams.sizes() == {3: 3} and not teams.lost_leader(0)


def test_a_member_is_replaced_if_it_does_not_notice_that_its_leader_has_gone(world: World) -> None:
    """As on a node that is cut off."""
    fleet = world.fleet(2)
    for worker in range(2):
        world.connected(fleet, 0, "there", door(str(worker)))
    world.connected(fleet, 0)
    fleet.start_work()
    fleet.hung(0)
    assert fleet.check() is None and len(world.actors) == 3
    world.now += 6
    notice = fleet.check()
    assert notice is not None and notice.text == "worker 1 does not answer; it is replaced"
    assert [worker for worker, _ in world.actors] == [0, 1, 0, 1] and fleet.check() is None


def closed(world: World, fleet: Fleet, worker: int) -> None:
    """The channel of a worker at work closes."""
    (reference,) = [one for one in fleet.pending if fleet._running.get(one) == worker]
    gone = ChannelClosed("the peer of a channel has gone")
    world.results[reference] = ray.exceptions.RayTaskError("run", "", gone)
    fleet.ended(reference)


def test_a_member_connects_to_its_leader_and_anew_when_that_has_gone(world: World) -> None:
    fleet = world.fleet(3)
    for worker in range(2):
        world.connected(fleet, 0, "there", door(str(worker)))
    world.connected(fleet, 0)
    assert world.lost.calls == [(1, 1)], "the server waits for its leader alone"
    member = world.actors[1][1]
    assert member.connect.calls[1:] == [([], "auto", 2, door("0"))] and not fleet.enough()
    world.connected(fleet, 0)
    assert world.node_teams.calls == [({0: 2},)] and fleet.enough()
    fleet.start_work()
    assert fleet.names == {0: "team+tcp", 1: "team+tcp", 2: "shm"}
    closed(world, fleet, 1)
    assert world.lost.calls[1:] == [(1, 2)] and len(world.actors) == 3
    assert member.connect.calls[2:] == [([], "auto", 3, None)]
    world.connected(fleet, 0, "there", door("1 again"))
    assert world.node_teams.calls[1:] == [({},)] and len(member.run.calls) == 2
    closed(world, fleet, 0)  # it was to the servers, which are there: it is replaced
    number, replacement = world.actors[3]
    world.connected(fleet, 0, "there", door("0 again"))
    assert number == 0 and replacement.connect.calls[1:] == [([], "auto", 3, door("1 again"))]
    world.connected(fleet, 0)
    assert world.node_teams.calls[2:] == [({1: 2},)]
    fleet.resize(1)
    assert world.node_teams.calls[3:] == [({},)]
