"""The protocol of a team as a small state machine, and a search through all that it can do.

Members and server take turns in every possible order, one load or store of a shared word at a time.
Besides, at any moment, a member is killed, is stopped and goes on at any later moment or never, the
server dies, or revokes the team, or looks at it without having been woken. The contents of W, sums
and records are the versions they belong to. Members that wait sleep whenever they may, and are
woken by the eventfd alone: that they also look by themselves every few milliseconds is left out, as
is the server's, so that a lost wake-up is found as a deadlock.

`distsgd.transport.team_memory` describes the protocol; `Rules` are what can be got wrong in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Cells = list[int]
State = tuple[int, ...]

TORN = -1
"""What is being written."""

RUNNING, STOPPED, DEAD, LEFT = range(4)
_ARRIVED_KIND, _APPLIED_KIND, _LIMIT_KIND = 1, 2, 3
AWAKE, LIES_DOWN, SLEEPS = range(3)

LIMIT, REVOKED, BELL, RING, STAGE, AT, SEEN, MADE, HOME, GRANTED, INSIDE, FAULTS, HEADS = range(13)
"""Of the server: words of control; what it does, and with which member; what it has found."""

STATUS, PLACE, VERSION, SLUMBER, RUNG, ARRIVED, APPLIED, ASLEEP, WAKER, SUMS, COPY, RECORDS = range(
    12
)
"""Of each member, from its first cell on; two copies of its range of W, and a ring of records."""

(
    IDLE, READ, TAKE, TAKEN, TELL, LET, ROUSE, AFTERTHOUGHT, REVOKE, SHOUT, CLOSE, FETCH, FETCHED,
    CLOSED, GONE,
) = range(15)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """How the protocol is; each field is a rule that a test breaks."""

    meets_when_arrived: bool = True
    meets_when_applied: bool = True
    copies: int = 2
    stores_then_wakes: bool = True
    lies_down_then_looks: bool = True
    last_wakes: bool = True
    sums_then_arrives: bool = True
    range_then_applied: bool = True
    smallest: bool = True
    home_when_paused: bool = True
    bell_then_limit: bool = True
    limit_wakes: bool = True
    revoking_wakes: bool = True
    moves_bell: bool = True
    looks_after_bell: bool = True
    sees_deaths: bool = True
    members_see_death: bool = True
    ring: int = 2


class Wrong(AssertionError):
    """The protocol has done what it must not."""


Step = Callable[[Cells, int], bool]
"""Does a step of a member if it can; False if it must wait."""


class TeamModel:
    """A team of members, and its server.

    Args:
        members: how many.
        leases: updates of each lease, one after another.
        faults: kills and stops of members, and ends of the server, at most.
        rules: how the protocol is.
        polls: whether the server looks at the team at any moment, too.
        coarse: whether loads and stores are taken together where one member computes, wakes the
            others, or is looked at; there are far fewer states then.
    """

    def __init__(
        self, members: int, leases: tuple[int, ...], faults: int, rules: Rules | None = None,
        *, polls: bool = True, coarse: bool = False,
    ) -> None:  # fmt: skip
        self.rules = rules or Rules()
        self.members, self.polls = range(members), polls
        self._faults, self._coarse = faults, coarse
        self._ends = [sum(leases[: n + 1]) for n in range(len(leases))]
        self._size = RECORDS + 2
        self._base = [HEADS + self._size * member for member in self.members]
        self.program = list(_together(self._program()) if coarse else self._program())
        self._next = [number + 1 for number in range(len(self.program))]
        self._next[-1] = 0

    # --- the members -----------------------------------------------------------------------------

    def _program(self) -> Iterator[tuple[str | None, Step]]:
        """Steps of an update, and the word of `distsgd.engine.team.WORDS` that is behind each."""
        rules = self.rules
        yield "begin", self._begin
        sums = [(None, self._start_sums), ("sums", self._end_sums), ("record", self._record)]
        arrive = list(self._mark("arrived", ARRIVED, _ARRIVED_KIND))
        yield from [*sums, *arrive] if rules.sums_then_arrives else [*arrive, *sums]
        if rules.meets_when_arrived:
            yield "waited-arrived", self._meeting(ARRIVED, _ARRIVED_KIND)
        update = [("half-applied", self._start_range), ("range", self._end_range)]
        apply = list(self._mark("applied", APPLIED, _APPLIED_KIND))
        yield from [*update, *apply] if rules.range_then_applied else [*apply, *update]
        if rules.meets_when_applied:
            yield "waited-applied", self._meeting(APPLIED, _APPLIED_KIND)
        yield "bell", self._look_at_bell

    def _mark(self, word: str, cell: int, kind: int) -> Iterator[tuple[str | None, Step]]:
        others = range(1, len(self.members))

        def store(cells: Cells, me: int) -> bool:
            base = self._base[me]
            cells[base + cell] = cells[base + VERSION] + 1
            return True

        def waking(distance: int) -> Step:
            def wake(cells: Cells, me: int) -> bool:
                target = cells[self._base[me] + VERSION] + 1
                other = self._base[(me + distance) % len(self.members)]
                if cells[other + ASLEEP] == 4 * target + kind and (
                    not self.rules.last_wakes or self._all(cells, me, cell, target)
                ):
                    cells[other + WAKER] = 1
                return True

            return wake

        wakes: list[Step] = [waking(distance) for distance in others]
        if not self.rules.last_wakes:  # but the first does
            wakes = wakes[:-1]
        steps = [store, *wakes] if self.rules.stores_then_wakes else [*wakes, store]
        for step in steps[:-1]:
            yield None, step
        yield word, steps[-1]

    def _all(self, cells: Cells, me: int, cell: int, target: int) -> bool:
        return all(cells[base + cell] >= target for base in self._base if base != self._base[me])

    def _leave(self, cells: Cells, base: int) -> bool:
        cells[base + STATUS] = LEFT
        return True

    def _wait(self, cells: Cells, base: int, code: int, reached: bool) -> bool:
        """Go to sleep, sleep, or wake up; what is waited for has not come, unless just now."""
        slumber = cells[base + SLUMBER]
        looks_first = not self.rules.lies_down_then_looks
        if slumber == AWAKE:
            if cells[REVOKED]:
                return self._leave(cells, base)
            if not looks_first:
                cells[base + ASLEEP] = code
            cells[base + SLUMBER] = LIES_DOWN
        elif slumber == LIES_DOWN:
            if not looks_first and (reached or cells[REVOKED]):
                cells[base + ASLEEP], cells[base + SLUMBER] = 0, AWAKE
            else:
                cells[base + ASLEEP], cells[base + SLUMBER] = code, SLEEPS
        elif cells[base + WAKER]:
            cells[base + WAKER] = cells[base + ASLEEP] = 0
            cells[base + SLUMBER] = AWAKE
        elif cells[STAGE] == GONE and self.rules.members_see_death:
            return self._leave(cells, base)
        else:
            return False
        return True

    def _begin(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        version = cells[base + VERSION]
        reached = cells[LIMIT] > version
        if cells[base + SLUMBER] == AWAKE:
            if cells[REVOKED]:
                return self._leave(cells, base)
            if reached:
                self._go_on(cells, base)
                return True
        return self._wait(cells, base, 4 * (version + 1) + _LIMIT_KIND, reached)

    def _meeting(self, cell: int, kind: int) -> Step:
        def meet(cells: Cells, me: int) -> bool:
            base = self._base[me]
            target = cells[base + VERSION] + 1
            reached = self._all(cells, me, cell, target)
            if cells[base + SLUMBER] == AWAKE and reached:
                self._go_on(cells, base)
                return True
            return self._wait(cells, base, 4 * target + kind, reached)

        return meet

    def _go_on(self, cells: Cells, base: int) -> None:
        cells[base + PLACE] = self._next[cells[base + PLACE]]

    def _copy(self, version: int) -> int:
        return COPY + version % 2 if self.rules.copies == 2 else COPY

    def _see_whole(self, cells: Cells, version: int, who: str) -> None:
        copy = self._copy(version)
        found = [cells[base + copy] for base in self._base]
        if any(one != version for one in found):
            raise Wrong(f"{who} reads version {version} of W where {found} is")

    def _start_sums(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        self._see_whole(cells, cells[base + VERSION], f"member {me}")
        cells[base + SUMS] = TORN
        return True

    def _end_sums(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        self._see_whole(cells, cells[base + VERSION], f"member {me}")
        cells[base + SUMS] = cells[base + VERSION] + 1
        return True

    def _record(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        version = cells[base + VERSION]
        row = base + RECORDS + version % self.rules.ring
        if cells[row] > cells[MADE] and cells[STAGE] < CLOSED:
            raise Wrong(f"member {me} writes over the record of version {cells[row]}")
        cells[row] = version + 1
        return True

    def _see_sums(self, cells: Cells, me: int) -> None:
        target = cells[self._base[me] + VERSION] + 1
        found = [cells[base + SUMS] for base in self._base]
        if any(one != target for one in found):
            raise Wrong(f"member {me} adds sums of {found} for version {target}")

    def _start_range(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        version = cells[base + VERSION]
        self._see_sums(cells, me)
        if cells[base + self._copy(version)] != version:
            raise Wrong(f"member {me} does not find its range of version {version}")
        cells[base + self._copy(version + 1)] = TORN
        return True

    def _end_range(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        version = cells[base + VERSION]
        self._see_sums(cells, me)
        cells[base + self._copy(version + 1)] = version + 1
        return True

    def _look_at_bell(self, cells: Cells, me: int) -> bool:
        base = self._base[me]
        cells[base + VERSION] += 1
        at = cells[BELL]
        if me == 0 and cells[base + VERSION] >= at != cells[base + RUNG]:
            cells[base + RUNG] = at
            cells[RING] = 1
        return True

    # --- the server ------------------------------------------------------------------------------

    def first(self) -> State:
        """A team has been made, and granted its first lease."""
        cells = [0] * (HEADS + self._size * len(self.members))
        cells[INSIDE] = (1 << len(self.members)) - 1
        cells[FAULTS] = self._faults
        for base in self._base:
            cells[base + RUNG] = TORN
            cells[base + COPY + 1] = TORN
        self._grant(cells)
        cells[BELL], cells[LIMIT] = self._bell(cells, 0), cells[GRANTED]
        return tuple(cells)

    def _grant(self, cells: Cells) -> bool:
        following = [end for end in self._ends if end > cells[GRANTED]]
        if following:
            cells[GRANTED] = following[0]
        return bool(following)

    def _bell(self, cells: Cells, before: int) -> int:
        granted = cells[GRANTED]
        return before + (granted - before + 1) // 2 if granted < self._ends[-1] else granted

    def _serve(self, cells: Cells) -> Iterator[Cells]:
        """What the server can do next by itself: usually one thing."""
        stage = cells[STAGE]
        if stage == IDLE:
            yield from self._hear(cells)
        elif stage < CLOSED:
            after = cells.copy()
            if stage in (READ, CLOSE):
                self._read(after)
                while self._coarse and after[STAGE] == stage:
                    self._read(after)
            elif stage in (ROUSE, SHOUT):
                self._wake(after)
                while self._coarse and after[STAGE] == stage:
                    self._wake(after)
            elif stage == TELL:  # here it may also find that the team must stop at the end
                if cells[MADE] < cells[GRANTED]:
                    refused = cells.copy()
                    if self.rules.moves_bell:
                        refused[BELL] = refused[GRANTED]
                    refused[STAGE] = AFTERTHOUGHT
                    yield refused
                self._extend(after)
            else:
                self._finish(after)
            yield after

    def _hear(self, cells: Cells) -> Iterator[Cells]:
        if cells[RING]:
            after = cells.copy()
            after[RING] = 0
            yield self._begin_reading(after)
        for member, base in enumerate(self._base):
            gone = cells[base + STATUS] == LEFT or (
                cells[base + STATUS] == DEAD and self.rules.sees_deaths
            )
            if gone and cells[INSIDE] & (1 << member):
                after = cells.copy()
                after[INSIDE] &= ~(1 << member)
                if not after[REVOKED]:
                    after[STAGE] = REVOKE
                elif not after[INSIDE]:
                    self._begin_reading(after, CLOSE)
                yield after

    def _begin_reading(self, cells: Cells, stage: int = READ) -> Cells:
        cells[STAGE], cells[AT], cells[SEEN] = stage, 0, TORN
        return cells

    def _read(self, cells: Cells) -> None:
        """Find the smallest `applied`, a word at a time; then read the records up to there."""
        word, seen = cells[self._base[cells[AT]] + APPLIED], cells[SEEN]
        choose = min if self.rules.smallest else max
        cells[SEEN] = word if seen == TORN else choose(word, seen)
        cells[AT] += 1
        if cells[AT] < len(self.members):
            return
        cells[AT] = 0
        done = cells[SEEN]
        for version in range(cells[MADE] + 1, done + 1):
            row = RECORDS + (version - 1) % self.rules.ring
            if any(cells[base + row] != version for base in self._base):
                raise Wrong(f"the records of version {version} are not there")
        closing, before = cells[STAGE] == CLOSE, cells[MADE]
        if done < before:
            raise Wrong(f"version {done} comes after {before}")
        cells[MADE] = done
        if closing:
            cells[STAGE] = FETCH
        elif done == cells[GRANTED] or not self.rules.home_when_paused:
            cells[STAGE] = TAKE
        else:
            self._go_on_if_hungry(cells)

    def _go_on_if_hungry(self, cells: Cells) -> None:
        hungry = cells[MADE] >= cells[BELL] != cells[GRANTED]
        cells[STAGE] = TELL if hungry and not cells[REVOKED] else IDLE

    def _extend(self, cells: Cells) -> None:
        before = cells[GRANTED]
        if not self._grant(cells):
            cells[STAGE] = IDLE
            return
        if self.rules.bell_then_limit:
            cells[BELL] = self._bell(cells, before)
        else:
            cells[LIMIT] = cells[GRANTED]
        cells[SEEN], cells[STAGE] = before, LET

    def _wake(self, cells: Cells) -> None:
        """Wake the next member: who sleeps, or after a revocation each."""
        base, shouts = self._base[cells[AT]], cells[STAGE] == SHOUT
        if self.rules.revoking_wakes if shouts else self.rules.limit_wakes and cells[base + ASLEEP]:
            cells[base + WAKER] = 1
        cells[AT] += 1
        if cells[AT] == len(self.members):
            cells[AT], cells[STAGE] = 0, IDLE
            if shouts and not cells[INSIDE]:
                self._begin_reading(cells, CLOSE)

    def _finish(self, cells: Cells) -> None:
        """The steps that have one way to go."""
        stage, made = cells[STAGE], cells[MADE]
        if stage in (TAKE, FETCH):
            self._see_whole(cells, made, "the server")
            cells[STAGE] = stage + 1
        elif stage == FETCHED:
            self._see_whole(cells, made, "the server")
            cells[HOME], cells[STAGE] = made, CLOSED
        elif stage == TAKEN:
            self._see_whole(cells, made, "the server")
            cells[HOME] = made
            if made < cells[GRANTED]:  # a rule is broken
                self._go_on_if_hungry(cells)
            elif cells[REVOKED]:
                cells[STAGE] = IDLE
            else:
                cells[STAGE] = TELL if made < self._ends[-1] else REVOKE
        elif stage == LET:
            if self.rules.bell_then_limit:
                cells[LIMIT] = cells[GRANTED]
            else:
                cells[BELL] = self._bell(cells, cells[SEEN])
            cells[STAGE] = ROUSE
        elif stage == AFTERTHOUGHT:
            whole = min(cells[base + APPLIED] for base in self._base)
            if whole == cells[GRANTED] and self.rules.looks_after_bell:
                cells[RING] = 1
            cells[STAGE] = IDLE
        elif stage == REVOKE:
            cells[REVOKED], cells[STAGE] = 1, SHOUT

    # --- all of it -------------------------------------------------------------------------------

    def following(self, state: State) -> Iterator[tuple[str, bool, State]]:
        """Each next state: what happens, whether it does happen by itself, and the state."""
        for me, base in enumerate(self._base):
            if state[base + STATUS] == RUNNING:
                cells = list(state)
                place = cells[base + PLACE]
                word, step = self.program[place]
                if step(cells, me):
                    waits = place == 0 or (word or "").startswith("waited")
                    if not waits and cells[base + STATUS] == RUNNING:
                        self._go_on(cells, base)
                    yield f"member {me}: {word or 'on'}", True, tuple(cells)
        for cells in self._serve(list(state)):
            yield "server", True, tuple(cells)
        yield from self._chance(state)

    def _chance(self, state: State) -> Iterator[tuple[str, bool, State]]:
        """What may happen at any time, or never."""
        stopped = any(state[base + STATUS] == STOPPED for base in self._base)
        if state[STAGE] == IDLE:
            cells = list(state)
            if not state[REVOKED]:
                cells[STAGE] = REVOKE
                yield "revoke", stopped, tuple(cells)
                if self.polls:
                    yield "poll", False, tuple(self._begin_reading(list(state)))
            elif state[INSIDE]:
                yield "close", stopped, tuple(self._begin_reading(cells, CLOSE))
        for me, base in enumerate(self._base):
            if state[base + STATUS] == STOPPED:
                yield f"resume {me}", False, _with(state, base + STATUS, RUNNING)
        if state[FAULTS]:
            fewer = _with(state, FAULTS, state[FAULTS] - 1)
            for me, base in enumerate(self._base):
                if state[base + STATUS] == RUNNING:
                    yield f"kill {me}", False, _with(fewer, base + STATUS, DEAD)
                    yield f"stop {me}", False, _with(fewer, base + STATUS, STOPPED)
            if state[STAGE] < CLOSED:
                yield "server dies", False, _with(fewer, STAGE, GONE)

    def tidy(self, state: State) -> State:
        """The same state without what nobody looks at any more, so that fewer are different."""
        cells = list(state)
        for base in self._base:
            if cells[base + STATUS] in (DEAD, LEFT):
                for cell in (PLACE, VERSION, SLUMBER, RUNG, ASLEEP, WAKER):
                    cells[base + cell] = 0
        if cells[STAGE] in (IDLE, CLOSED, GONE):
            cells[SEEN] = cells[AT] = 0
        if cells[STAGE] >= CLOSED:
            cells[RING] = cells[INSIDE] = cells[GRANTED] = cells[BELL] = 0
        return tuple(cells)

    def check_rest(self, state: State) -> None:
        """Nothing happens by itself any more: everybody must be where they belong."""
        inside = [me for me, base in enumerate(self._base) if state[base + STATUS] == RUNNING]
        if inside:
            raise Wrong(f"members {inside} wait for ever")
        if state[STAGE] not in (CLOSED, GONE):
            raise Wrong("the server waits for ever")
        if state[STAGE] == CLOSED and state[HOME] != state[MADE]:
            raise Wrong(f"version {state[MADE]} was made, and {state[HOME]} taken")


def _together(program: Iterator[tuple[str | None, Step]]) -> Iterator[tuple[str | None, Step]]:
    """The same program, in which a store and what waits are steps of their own, and no others."""
    some: list[Step] = []
    last: str | None = None
    for word, step in program:
        alone = step.__name__ in ("store", "meet", "_begin", "_look_at_bell")
        if some and (alone or (last in ("record", "range"))):
            yield last, _all_of(some)
            some = []
        if alone:
            yield word, step
        else:
            some, last = [*some, step], word
            if word in ("arrived", "applied"):
                yield word, _all_of(some)
                some = []


def _all_of(steps: list[Step]) -> Step:
    def do(cells: Cells, me: int) -> bool:
        return all(step(cells, me) for step in steps)

    return do


def _with(state: State, place: int, value: int) -> State:
    return (*state[:place], value, *state[place + 1 :])


def explore(model: TeamModel) -> tuple[int, set[int]]:
    """Go through all that can happen.

    Returns:
        how many states there are, and the versions with which the team can end.

    Raises:
        Wrong: something must not happen; with all that has led to it.
    """
    first = model.first()
    came: dict[State, tuple[State, str] | None] = {first: None}
    todo, ends = [first], set[int]()
    state = first
    try:
        while todo:
            state = todo.pop()
            rests = True
            for what, by_itself, after in model.following(state):
                rests &= not by_itself
                after = model.tidy(after)
                if after not in came:
                    came[after] = state, what
                    todo.append(after)
            if rests:
                model.check_rest(state)
                if state[STAGE] == CLOSED:
                    ends.add(state[MADE])
    except Wrong as wrong:
        wrong.add_note(" < ".join(_history(came, state)))
        raise
    return len(came), ends


def _history(came: dict[State, tuple[State, str] | None], state: State) -> Iterator[str]:
    while (before := came[state]) is not None:
        state, what = before
        yield what
