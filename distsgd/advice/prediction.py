"""How fast a training will be, from the measurements of a machine: a pure function.

Workers that share memory make updates as a team: what a team takes follows from trials of teams of
other sizes and minibatches. Where gradients go through the server, the real server decides on a
virtual clock whose times come from trials; see `distsgd.advice.virtual_fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from distsgd.advice.machine import Machine
from distsgd.advice.measuring import LOCAL_STEPS
from distsgd.advice.virtual_fleet import Costs, Member, seconds_of_update
from distsgd.core.plan import Plan
from distsgd.core.reduction_tree import shares
from distsgd.core.server.consistency import POLICIES, Policy, make_policy

__all__ = ["Predictor", "Rate", "Setting"]

_LEAST_DOUBT, _ONE_ROUND, _FAR_DOUBT = 0.06, 0.2, 0.15
_HELPED = 2.25
"""A member that is slow makes a team this many times slower at most: after a quarter of the time
of a piece, another begins to compute its piece too."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What may be chosen.

    Attributes:
        workers: processes, over all machines; 0 for none beside the command.
        batch_size: examples of a minibatch.
        consistency: name of the policy.
        parameter: its number, such as S of ssp; None for the default.
        compress: of gradients.
        channel: "auto", "team", "shm" or "tcp".
        machines: that the workers are spread over.
        slow: for the first workers, how many times slower than the others each is.
    """

    workers: int
    batch_size: int = 256
    consistency: str = "bsp"
    parameter: int | None = None
    compress: str = "none"
    channel: str = "auto"
    machines: int = 1
    slow: tuple[float, ...] = ()

    @property
    def policy(self) -> Policy:
        """The consistency policy."""
        names = tuple(POLICIES[self.consistency].parameters())
        own = {} if self.parameter is None else {names[0]: self.parameter}
        return make_policy(self.consistency, replicas=max(1, self.workers), **own)

    @property
    def in_team(self) -> bool:
        """Whether the workers make updates among themselves."""
        return (
            self.policy.in_team
            and self.compress == "none"
            and self.channel in ("auto", "team")
            and self.machines == 1
        )


@dataclass(frozen=True)
class Rate:
    """A prediction.

    Attributes:
        images_per_second: of the steps, without start-up.
        update_seconds: between two updates of W.
        doubt: how far off it may be, as a share.
    """

    images_per_second: float
    update_seconds: float
    doubt: float


@dataclass(frozen=True)
class _Path:
    """What the way through the server takes, fitted to trials.

    Attributes:
        push: see `Costs`.
        update: likewise.
        away: seconds of a message, one way.
        stretch: how many times longer leases take than alone: W comes from another core's cache.
        ahead: measured over predicted time, where workers do not wait for each other.
    """

    push: float
    update: float
    away: float
    stretch: float = 1.0
    ahead: float = 1.0


@dataclass(frozen=True)
class Predictor:
    """Predicts for one machine; pure: the same measurements give the same predictions.

    Args:
        machine: the measurements.
    """

    machine: Machine
    _paths: dict[str, _Path] = field(default_factory=dict, repr=False, compare=False)

    def rate(self, setting: Setting) -> Rate:
        """Images a second of a training with this setting, without its start."""
        machine = self.machine
        if setting.workers == 0:
            seconds = _at(machine.points("inline "), setting.batch_size)
            images = setting.batch_size
        elif setting.in_team:
            seconds, images = self._team(setting)
        else:
            seconds = self._through_server(setting)
            images = setting.batch_size * self._steps(setting)
        known = 2 * machine.spread if machine.rounds > 1 else _ONE_ROUND
        doubt = max(_LEAST_DOUBT, known)
        if setting.machines > 1 or setting.workers > machine.cores + 1:
            doubt += _FAR_DOUBT
        return Rate(images / seconds, seconds, doubt)

    def _steps(self, setting: Setting) -> int:
        """Minibatches of an update."""
        left = max(1, self.machine.examples // setting.batch_size)
        return setting.policy.steps(left)

    @cached_property
    def _pair(self) -> int:
        return min(2, self.machine.cores)

    @cached_property
    def crowd(self) -> float:
        """How many times longer a lease takes while another process computes."""
        alone, both = self._kernel(1), self._kernel(self._pair)
        return max(1.0, both[-1][1] / alone[-1][1])

    def _kernel(self, processes: int) -> list[tuple[float, float]]:
        return self.machine.points(f"kernel {processes} ")

    # --- teams -----------------------------------------------------------------------------------

    def _team(self, setting: Setting) -> tuple[float, int]:
        """Seconds of an update by a team, and the images in it."""
        workers, batch = setting.workers, setting.batch_size
        slow = max(setting.slow[:workers], default=1.0)
        if setting.consistency == "asp":
            return self._turns(setting), batch
        piece = self._largest_piece(batch, workers)
        if not setting.policy.local:
            return self._meeting(workers, piece, batch) * min(slow, _HELPED), batch
        steps = self._steps(setting)
        slots = -(-batch // self.machine.slot_size)
        busy = min(workers, slots, self.machine.cores)
        points = self.machine.points(f"local {self._pair} ")
        step = _at(points, piece * self._pair) / LOCAL_STEPS
        step *= self._crowding(busy) * max(1.0, min(workers, slots) / self.machine.cores)
        meeting = self._meeting(busy, 0, 0)
        return steps * step * slow + max(0.0, 1 - steps / LOCAL_STEPS) * meeting, steps * batch

    def _largest_piece(self, batch: int, workers: int) -> float:
        """Examples of the largest piece of a minibatch, by whole slots."""
        size = self.machine.slot_size
        slots = -(-batch // size)
        most = max(last - first for first, last in shares(slots, workers))
        return float(min(batch, most * size))

    def _crowding(self, busy: int) -> float:
        """How much slower a core is while ``busy`` are busy, relative to two busy ones."""
        widest = self._kernel(min(busy, max(self._pair, self._widest)))
        if busy <= self._pair or not widest:
            return 1.0 if busy == self._pair else 1 / self.crowd
        return widest[-1][1] / self._kernel(self._pair)[-1][1]

    @cached_property
    def _sizes(self) -> list[int]:
        """Sizes of the teams that were measured, which have a core each."""
        names = [name.split() for name in self.machine.trials]
        found = {int(words[1]) for words in names if words[0] == "team"}
        return sorted(size for size in found if size <= self.machine.cores)

    @cached_property
    def _widest(self) -> int:
        return self._sizes[-1]

    def _of_size(self, workers: int, piece: float) -> float:
        """Seconds of a team of a size that was measured, with such pieces."""
        return _at(self.machine.points(f"team {workers} "), piece * workers)

    def _meeting(self, workers: int, piece: float, batch: int) -> float:
        """Seconds of an update by a team whose members wait for each other."""
        machine = self.machine
        if workers <= machine.cores:
            below = max((size for size in self._sizes if size <= workers), default=self._sizes[0])
            above = min((size for size in self._sizes if size >= workers), default=self._widest)
            low, high = self._of_size(below, piece), self._of_size(above, piece)
            if above == below:
                return low
            return low + (high - low) * (workers - below) / (above - below)
        # More than cores: the others help, so all cores are busy all the time.
        ideal = self._of_size(machine.cores, piece * workers / machine.cores)
        points = machine.points(f"team {machine.cores + 1} ")
        if not points:
            return ideal * 1.2
        of, seconds = points[0]
        return ideal * max(1.0, seconds / self._of_size(machine.cores, of / machine.cores))

    def _turns(self, setting: Setting) -> float:
        """Seconds between two updates by members that take turns."""
        workers, batch = setting.workers, setting.batch_size
        if workers == 1:
            return self._of_size(1, batch) * max(setting.slow[:1], default=1.0)
        points = self.machine.points(f"turns {self._pair} ")
        together = _at(points, batch)
        speeds = [1 / factor for factor in setting.slow[:workers]]
        speed = sum(speeds) + workers - len(speeds)
        return together * self._pair / min(speed, self.machine.cores)

    # --- through the server ----------------------------------------------------------------------

    def _through_server(self, setting: Setting) -> float:
        channel = "tcp" if setting.channel == "tcp" or setting.machines > 1 else "shm"
        path = self._path(channel)
        seconds = self._virtual(setting, path)
        return seconds if setting.policy.divides else seconds * path.ahead

    def _virtual(self, setting: Setting, path: _Path) -> float:
        """Seconds of an update on the virtual clock."""
        batch, policy = setting.batch_size, setting.policy
        plan = Plan(
            seed=0, sampling="sequential", examples=max(batch * 400, 1), batch_size=batch,
            slot_size=self.machine.slot_size, epochs=1,
        )  # fmt: skip
        costs = Costs(
            cores=[self.machine.cores_of(node) for node in range(setting.machines)],
            push=path.push,
            update=path.update,
            crowd=self.crowd,
        )
        members = self._members(setting, path)
        return seconds_of_update(
            plan, policy, members, costs, own_places=setting.compress != "none"
        )

    def _coding(self, compress: str, examples: float) -> float:
        """Seconds that compression adds to a lease, with what it saves the server."""
        if compress == "none":
            return 0.0
        points = [(at, more) for kind, at, more in self._codings if kind == _kind(compress)]
        return _between(points, examples) if points else 0.0

    @cached_property
    def _codings(self) -> list[tuple[str, float, float]]:
        """Of trials: the compression, the examples of a lease, and the seconds it adds."""
        found = []
        for name, trial in self.machine.trials.items():
            if name.startswith("shm-") and not name.startswith("shm-ahead"):
                codec, workers, batch = name.removeprefix("shm-").split()
                plain = Setting(workers=int(workers), batch_size=int(batch), channel="shm")
                more = trial.value - self._alone._virtual(plain, self._path("shm"))
                found.append((_kind(codec), int(batch) / int(workers), more))
        return sorted(found)

    @cached_property
    def _alone(self) -> Predictor:
        """For this machine without others."""
        return Predictor(replace(self.machine, latency=0.0))

    def _members(self, setting: Setting, path: _Path) -> list[Member]:
        machine, count = self.machine, setting.machines
        points = self._kernel(1)

        def alone(examples: int) -> float:
            seconds = path.stretch * _at(points, examples)
            return max(seconds / 4, seconds + self._coding(setting.compress, examples))

        slow = (*setting.slow, *[1.0] * setting.workers)
        if count == 1:
            away = path.away + machine.latency
            return [Member(alone, 0, slow[n], away) for n in range(setting.workers)]
        each = self._spread(setting)
        remote = setting.workers - each[0]
        if setting.policy.divides and setting.compress == "none":
            remote = len(each) - 1
            return [
                Member(self._team_of_node(n, size), n, slow[n], self._far(setting, path, n, remote))
                for n, size in enumerate(each)
            ]
        found: list[Member] = []
        for n, size in enumerate(each):
            away = self._far(setting, path, n, remote)
            found += [Member(alone, n, slow[len(found) + i], away) for i in range(size)]
        return found

    def _spread(self, setting: Setting) -> list[int]:
        """Workers of each node, as Ray spreads them: in turns, while a node has processors free."""
        each, cores = [0] * setting.machines, self.machine.cores_of
        for _ in range(setting.workers):
            each[min(range(len(each)), key=lambda n: (each[n] >= cores(n), each[n]))] += 1
        return [count for count in each if count]

    def _team_of_node(self, node: int, size: int) -> Callable[[int], float]:
        """Seconds of a lease that the workers of a node share."""
        there = Predictor(replace(self.machine, cores=self.machine.cores_of(node)))
        return lambda examples: there._meeting(size, examples / size, examples)

    def _far(self, setting: Setting, path: _Path, machine: int, remote: int) -> float:
        """Seconds of a message, one way, to another machine: all share the server's link."""
        if machine == 0:
            return path.away
        size = self.machine.vector_bytes
        up = self._bytes(setting.compress)
        mean = (size + up) / 2 * max(1, remote)
        return path.away + self.machine.latency + mean / self.machine.bandwidth

    def _bytes(self, compress: str) -> float:
        for name, trial in self.machine.trials.items():
            if name.startswith(f"codec {_kind(compress)}"):
                return trial.details["bytes"] * _fraction(compress) / _fraction(name)
        return self.machine.vector_bytes

    def _path(self, channel: str) -> _Path:
        if channel not in self._paths:
            self._paths[channel] = self._fitted(channel)
        return self._paths[channel]

    def _fitted(self, channel: str) -> _Path:
        """What the server takes, so that the virtual clock gives what the trials took."""
        trials, size, pair = self.machine.trials, self.machine.slot_size, self._pair
        one = trials[f"{channel} 1 {size}"]
        small = trials.get(f"{channel} {pair} {pair * size}", one)
        busy, more = one.details["busy"], small.details["busy"]
        push = min(busy, max(more - busy, busy / 4))
        path = _Path(push, busy - push, 0.0)
        if pair == 1:
            return replace(path, away=max(0.0, one.value - busy - self._kernel(1)[0][1]) / 2)
        points = self.machine.points(f"{channel} {pair} ")
        here = [Setting(workers=pair, batch_size=int(at), channel=channel) for at, _ in points]
        for _ in range(4):
            found = [self._alone._virtual(setting, path) for setting in here]
            if len(points) > 1 and found[-1] > found[0]:
                slope = (points[-1][1] - points[0][1]) / (found[-1] - found[0])
                path = replace(path, stretch=min(3.0, max(0.7, path.stretch * slope)))
                found = [self._alone._virtual(setting, path) for setting in here]
            path = replace(path, away=max(0.0, path.away + (points[0][1] - found[0]) / 2))
        return replace(
            path,
            ahead=self._over(f"{channel}-ahead {pair} ", path, "ssp"),
        )

    def _over(self, begin: str, path: _Path, consistency: str) -> float:
        """Measured over predicted time of a trial."""
        points = self.machine.points(begin)
        if not points:
            return 1.0
        batch = int(points[0][0])
        setting = Setting(workers=self._pair, batch_size=batch, consistency=consistency)
        return points[0][1] / self._alone._virtual(setting, path)


def _kind(compress: str) -> str:
    return compress.split(":")[0]


def _fraction(compress: str) -> float:
    """What is sent of topk:FRACTION; 1 for others."""
    return float(compress.partition(":")[2] or 1)


def _at(points: Sequence[tuple[float, float]], at: float) -> float:
    """Seconds between measured points, on straight lines through their neighbours."""
    if len(points) == 1:
        return points[0][1] * max(at, 1.0) / points[0][0]
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    found = y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return max(found, points[0][1] / 4)


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value between measured points; outside, that of the nearest."""
    low = max((point for point in points if point[0] <= at), default=points[0])
    high = min((point for point in points if point[0] >= at), default=points[-1])
    if low[0] == high[0]:
        return low[1]
    return low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])
