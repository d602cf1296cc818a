"""The protocol of a team as a small state machine, and a search through all that it can do.

Members and server take turns in every possible order, one load or store of a shared word at a time.
Besides, at any moment, a member is killed, is stopped and goes on at any later moment or never, the
server dies, or revokes the team, or looks at it without having been woken; a member that waits
helps, or stops waiting for a range, whenever it may. The contents of W, sums and records are the
versions they belong to, or torn. To read what is torn, or of another version, is no error; to use
it is: to apply it, or to give it out as W.

Members that wait sleep whenever they may, and are woken by the eventfd alone: that they also look
by themselves every few milliseconds counts only beside a member that is stopped, as is the server's
look, so that a lost wake-up is found. Beside one that is stopped, the others must come to the end
of what they are granted by help, without being revoked.

`distsgd.transport.team_memory` describes the protocol; `Rules` are what can be got wrong in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

Cells = bytearray
State = bytes

TORN = 255
"""What is being written, or a mixture."""

RUNNING, STOPPED, DEAD, LEFT = range(4)
AWAKE, LIES_DOWN, SLEEPS = range(3)

(
    LIMIT, REVOKED, BELL, RING, STAGE, AT, SEEN, OWNER, MADE, HOME, GRANTED, INSIDE, FAULTS, HEADS,
) = range(14)  # fmt: skip
"""Of the server: words of control; what it does, and with which member; what it has found."""

(
    STATUS, PLACE, VERSION, SLUMBER, RUNG, ARRIVED, APPLIED, WRITING, SHARED, ASLEEP, WAKER, TOTAL,
    PIECE, HELPS, FROM, GOAL, REST,
) = range(17)  # fmt: skip
"""Of each member, from its first cell on. The last are its own: what it has added up or copied, the
piece or range it is at, which member it copies from, and what version that is to be."""

IDLE, READ, TAKE, TELL, LET, ROUSE, AFTERTHOUGHT, REVOKE, SHOUT, CLOSE, FETCH, CLOSED, GONE = range(
    13
)


@dataclass(frozen=True)
class Rules:
    """How the protocol is; each field is a rule that a test breaks."""

    meets: bool = True
    equal: bool = True
    checks_applied: bool = True
    sums_then_arrives: bool = True
    record_then_arrives: bool = True
    sums_then_helped: bool = True
    record_then_helped: bool = True
    copies: int = 2
    sums: int = 2
    stores_writing: bool = True
    writing_then_copies: bool = True
    writing_then_catches_up: bool = True
    checks_writing: bool = True
    checks_writing_of_range: bool = True
    range_then_shared: bool = True
    range_then_applied: bool = True
    copies_then_caught_up: bool = True
    copies_from_furthest: bool = True
    takes_from_furthest: bool = True
    looks_at_limit: bool = True
    looks_at_revoked: bool = True
    home_when_paused: bool = True
    helps: bool = True
    notices_that_it_is_behind: bool = True
    stores_then_wakes: bool = True
    lies_down_then_looks: bool = True
    arrived_wakes: bool = True
    helped_wakes: bool = True
    applied_wakes: bool = True
    limit_wakes: bool = True
    revoking_wakes: bool = True
    all_ring: bool = True
    bell_then_limit: bool = True
    moves_bell: bool = True
    looks_after_bell: bool = True
    sees_deaths: bool = True
    members_see_death: bool = True
    ring: int = 0  # as large as it is to be


class Wrong(AssertionError):
    """The protocol has done what it must not."""


Step = Callable[[Cells, int], str | bool | None]
"""Does a step of a member if it can, and says which is next; True for the one that follows, "" for
the same again, None if it must wait."""

Line = tuple[str, str | None, Step]
"""Of a program: label, the word of `distsgd.engine.team` that is behind the step, and the step."""


class TeamModel:
    """A team of members, and its server.

    Args:
        members: how many.
        leases: updates of each lease, one after another.
        faults: kills and stops of members, and ends of the server, at most.
        rules: how the protocol is.
        shared: whether each begins with a range of its own, and takes those of others.
        revokes: whether the server revokes the team at any moment, too.
        polls: whether the server looks at the team at any moment, too.
        coarse: whether what one member does to its own sums, record and W, and what the server
            does at one go, are single steps; there are far fewer states then.
        kinds: the faults there are.
    """

    def __init__(
        self, members: int, leases: tuple[int, ...], faults: int, rules: Rules | None = None,
        *, shared: bool = False, revokes: bool = True, polls: bool = True, coarse: bool = False,
        kinds: tuple[str, ...] = ("kill", "stop", "server dies"),
    ) -> None:  # fmt: skip
        self.rules = rules = rules or Rules()
        self.members, self._revokes, self._polls = range(members), revokes, polls
        self._faults, self._coarse, self._kinds = faults, coarse, kinds
        self._ring = rules.ring or min(2 * max(leases), sum(leases))
        self._ends = [sum(leases[: n + 1]) for n in range(len(leases))]
        self.shared = shared and members > 1
        self.parts = members if self.shared else 1
        places = count(REST)

        # Words, and what is the member's own.
        def cells(number: int) -> int:
            first, *_ = [next(places) for _ in range(number)]
            return first

        self.helped, self.source = cells(members), cells(members)
        self.sums = cells(rules.sums * members)
        self.copy = cells(rules.copies * self.parts)
        self.records = cells(self._ring * members)
        self._size = next(places)
        self.base = [HEADS + self._size * member for member in self.members]
        self._waits = {"begin", "meet"}
        program = list(self._program())
        self.words = {label: word for label, word, _ in program}
        self.labels = [label for label, *_ in program]
        self._place = {label: number for number, label in enumerate(self.labels)}
        self._steps = [step for *_, step in program]
        self._waking = {
            number for number, label in enumerate(self.labels) if "wake" in label
        }  # fmt: skip

    # --- the members -----------------------------------------------------------------------------

    def _program(self) -> Iterator[Line]:
        """An update, help, and catching up."""
        rules = self.rules
        yield from self._chain(
            "begin",
            [("begin", "begin", self._begin)],
            self._computing(
                ("sums", "record", "arrived"), ARRIVED,
                rules.sums_then_arrives, rules.record_then_arrives, rules.arrived_wakes,
            ),
            [
                ("meet", "complete", self._meet),
                ("add", None, self._add),
                ("checked", "total", self._check_total),
            ],
            self._updating(),
            [("bell", "bell", self._look_at_bell)],
        )  # fmt: skip
        yield from self._chain(
            "meet",
            [("help", "helping", self._may_help)],
            self._computing(
                ("help sums", "help record", "helped"), -1,
                rules.sums_then_helped, rules.record_then_helped, rules.helped_wakes,
            ),
        )  # fmt: skip
        yield from self._chain("bell", self._catching_up())

    def _chain(self, end: str, *parts: list[Line]) -> Iterator[Line]:
        lines = [line for part in parts for line in part]
        following = [label for label, *_ in lines[1:]] + [end]
        for (label, word, step), after in zip(lines, following, strict=True):
            yield label, word, _going_on(step, after)

    def _at_once(self, *lines: Line) -> list[Line]:
        """If the model is coarse, what others may see the first of, as little as the last."""
        if not self._coarse:
            return list(lines)
        label, _, first = lines[0]
        return [(label, lines[-1][1], _all_of([first, *(step for *_, step in lines[1:])]))]

    def _computing(
        self, words: tuple[str, str, str], cell: int, sums_first: bool, record_first: bool,
        wakes: bool,
    ) -> list[Line]:  # fmt: skip
        """Sums and record of a piece, and the word that says so."""
        sums, record, word = words
        mine = cell == ARRIVED
        begin: Line = (f"{sums} begun", None, self._start_sums(mine))
        end: Line = (sums, "sums" if mine else None, self._end_sums(mine))
        write: Line = (record, "record" if mine else None, self._record(mine))
        mark, *waking = self._mark(word, cell, wakes)
        if not sums_first:
            return [write, mark, *waking, begin, end]
        if not record_first:
            return [begin, end, mark, *waking, write]
        return [begin, *self._at_once(end, write, mark), *waking]

    def _updating(self) -> list[Line]:
        """Its own range of the next W, those of others, and the word that says so."""
        rules = self.rules
        begin: Line = ("half-applied", "half-applied", self._start_range)
        end: Line = ("updated", None if self.shared else "range", self._end_range)
        writing: Line = ("writing", None, self._store_writing)
        mark, *waking = self._mark("applied", APPLIED, rules.applied_wakes)
        if not rules.range_then_applied:
            return [writing, mark, *waking, begin, end]
        if rules.writing_then_copies:
            first = self._at_once(writing, begin) if rules.stores_writing else [begin]
        else:
            first, end = [begin], (end[0], end[1], _all_of([end[2], writing[2]]))
        if not self.shared:
            return [*first, *self._at_once(end, mark), *waking]
        share: Line = ("share", "shared", self._share)
        own = self._at_once(end, share) if rules.range_then_shared else [share, end]
        self._after_ranges = mark[0]
        return [
            *first, *own,
            ("take", "range", self._next_range),
            ("taken", None, self._copy_range),
            ("range checked", None, self._check_range),
            ("add range", None, self._add),
            ("range total", None, self._check_total),
            ("range updated", None, self._update_range),
            mark, *waking,
        ]  # fmt: skip

    def _catching_up(self) -> list[Line]:
        rules = self.rules
        choose: list[Line] = [("behind", "behind", self._choose), ("goal", None, self._set_goal)]
        begin: Line = ("half caught up", "half-caught-up", self._start_copy)
        end: Line = ("copied", None, self._end_copy)
        writing: Line = ("goal writing", None, self._store_goal)
        check: Line = ("copy checked", None, self._check_copy)
        mark, *waking = self._mark("caught up", APPLIED, rules.applied_wakes)
        copying = [begin, end]
        if rules.stores_writing:
            first = rules.writing_then_catches_up
            copying = [*self._at_once(writing, begin), end] if first else [begin, end, writing]
        if not rules.copies_then_caught_up:
            return [*choose, mark, *waking, *copying, check]
        return [*self._at_once(*choose), *copying, *self._at_once(check, mark), *waking]

    def _mark(self, word: str, cell: int, wakes: bool) -> list[Line]:
        """Store how far a member is, and wake others that wait for it."""
        catches_up = word == "caught up"

        def store(cells: Cells, me: int) -> bool:
            base = self.base[me]
            where = self.helped + cells[base + HELPS] if cell < 0 else cell
            cells[base + where] = cells[base + GOAL] if catches_up else cells[base + VERSION] + 1
            return True

        def waking(distance: int) -> Step:
            def wake(cells: Cells, me: int) -> bool:
                base = self.base[me]
                target = cells[base + GOAL] if catches_up else cells[base + VERSION] + 1
                other = self.base[(me + distance) % len(self.members)]
                if cells[other + ASLEEP] == 2 * target + 1 and (
                    cell == APPLIED or self._complete(cells, target)
                ):
                    cells[other + WAKER] = 1
                return True

            return wake

        lines: list[Line] = [(word, None, store)]
        if wakes:
            found: list[Line] = [
                (f"{word} wake {distance}", None, waking(distance))
                for distance in range(1, len(self.members))
            ]
            wakers = self._at_once(*found) if found else []
            lines = [*lines, *wakers] if self.rules.stores_then_wakes else [*wakers, *lines]
        label, _, last = lines[-1]
        return [*lines[:-1], (label, word.replace("caught up", "caught-up"), last)]

    # Who has what.

    def _has(self, found: int, target: int) -> bool:
        return found == target if self.rules.equal else found >= target

    def _source(self, cells: Cells | State, piece: int, target: int) -> int | None:
        """The member that has the sums of a piece."""
        if self._has(cells[self.base[piece] + ARRIVED], target):
            return piece
        for member, base in enumerate(self.base):
            if self._has(cells[base + self.helped + piece], target):
                return member
        return None

    def _complete(self, cells: Cells | State, target: int) -> bool:
        return all(self._source(cells, piece, target) is not None for piece in self.members)

    def _is_behind(self, cells: Cells | State, me: int) -> bool:
        base, version = self.base[me], cells[self.base[me] + VERSION]
        return any(cells[other + APPLIED] > version for other in self.base if other != base)

    def _need_not_wait(self, cells: Cells | State, me: int) -> bool:
        return self._complete(cells, cells[self.base[me] + VERSION] + 1) or (
            self.rules.notices_that_it_is_behind and self._is_behind(cells, me)
        )

    def _sum(self, version: int, piece: int) -> int:
        return self.sums + (version % 2 * len(self.members) if self.rules.sums == 2 else 0) + piece

    def _copy(self, version: int) -> range:
        first = self.copy + (version % 2 * self.parts if self.rules.copies == 2 else 0)
        return range(first, first + self.parts)

    def _weights(self, cells: Cells, me: int, version: int) -> int:
        """The version of what a member has in the copy that a version belongs in."""
        base = self.base[me]
        found = {cells[base + place] for place in self._copy(version)}
        return found.pop() if len(found) == 1 else TORN

    # The steps.

    def _leave(self, cells: Cells, base: int) -> str:
        cells[base + STATUS] = LEFT
        return ""

    def _wait(self, cells: Cells, base: int, code: int, reached: bool) -> str | None:
        """Go to sleep, sleep, or wake up; what is waited for has not come, unless just now."""
        slumber = cells[base + SLUMBER]
        looks_first = not self.rules.lies_down_then_looks
        if slumber == AWAKE:
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
            self._leave(cells, base)
        else:
            return None
        return ""

    def _begin(self, cells: Cells, me: int) -> str | bool | None:
        base = self.base[me]
        version = cells[base + VERSION]
        reached = cells[LIMIT] > version
        if cells[base + SLUMBER] == AWAKE:
            if cells[REVOKED] and (self.rules.looks_at_revoked or not reached):
                return self._leave(cells, base)
            if reached or (not self.rules.looks_at_limit and version < self._ends[-1]):
                return True
        return self._wait(cells, base, 2 * version + 4, reached)

    def _start_sums(self, mine: bool) -> Step:
        def start(cells: Cells, me: int) -> bool | str:
            base = self.base[me]
            version, piece = cells[base + VERSION], me if mine else cells[base + HELPS]
            self._check_own(cells, me, version)
            self._check_record(cells, me, version)
            if not mine and self._is_needless(cells, me):
                return "meet"
            cells[base + self._sum(version + 1, piece)] = TORN
            return True

        return start

    def _end_sums(self, mine: bool) -> Step:
        def end(cells: Cells, me: int) -> bool | str:
            base = self.base[me]
            version, piece = cells[base + VERSION], me if mine else cells[base + HELPS]
            self._check_own(cells, me, version)
            cells[base + self._sum(version + 1, piece)] = version + 1
            return True

        return end

    def _check_own(self, cells: Cells, me: int, version: int) -> None:
        if (found := self._weights(cells, me, version)) != version:
            raise Wrong(f"member {me} computes with W of {found} for version {version}")

    def _is_needless(self, cells: Cells | State, me: int) -> bool:
        base = self.base[me]
        source = self._source(cells, cells[base + HELPS], cells[base + VERSION] + 1)
        return source is not None or self._is_behind(cells, me)

    def _record(self, mine: bool) -> Step:
        def record(cells: Cells, me: int) -> bool:
            base = self.base[me]
            version, piece = cells[base + VERSION], me if mine else cells[base + HELPS]
            self._check_record(cells, me, version)
            row = version % self._ring * len(self.members)
            cells[base + self.records + row + piece] = version + 1
            return True

        return record

    def _check_record(self, cells: Cells, me: int, version: int) -> None:
        """The server has read what is overwritten."""
        row = self.base[me] + self.records + version % self._ring * len(self.members)
        for found in cells[row : row + len(self.members)]:
            if cells[MADE] < found != version + 1 and cells[STAGE] < CLOSED:
                raise Wrong(f"member {me} writes over the record of version {found}")

    def _meet(self, cells: Cells, me: int) -> str | bool | None:
        """Look for the source of each piece, one after another; else wait, or be behind."""
        base, rules = self.base[me], self.rules
        target = cells[base + VERSION] + 1
        if cells[base + SLUMBER] == AWAKE:
            cells[base + HELPS] = 0
            piece = cells[base + PIECE]
            source = self._source(cells, piece, target) if rules.meets else piece
            if source is not None:
                cells[base + self.source + piece] = source
                cells[base + PIECE] = piece + 1
                if piece + 1 < len(self.members):
                    return ""
                cells[base + PIECE] = 0
                return True
            cells[base + PIECE] = 0
            for place in self.members:
                cells[base + self.source + place] = 0
            if cells[REVOKED]:
                return self._leave(cells, base)
            if rules.notices_that_it_is_behind and self._is_behind(cells, me):
                return "behind"
        return self._wait(cells, base, 2 * target + 1, self._need_not_wait(cells, me))

    def _may_help(self, cells: Cells, me: int) -> bool | str:
        return "meet" if self._is_needless(cells, me) else True

    def _add(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        target = cells[base + VERSION] + 1
        found = {
            cells[self.base[cells[base + self.source + piece]] + self._sum(target, piece)]
            for piece in self.members
        }
        cells[base + TOTAL] = target if found == {target} else TORN
        return True

    def _check_total(self, cells: Cells, me: int) -> bool | str:
        base = self.base[me]
        target = cells[base + VERSION] + 1
        sources = [self.base[cells[base + self.source + piece]] for piece in self.members]
        if self.rules.checks_applied and any(cells[s + APPLIED] > target for s in sources):
            return "behind"
        if cells[base + TOTAL] != target:
            raise Wrong(f"member {me} uses other sums for version {target}")
        if not self.shared:
            for piece in self.members:
                cells[base + self.source + piece] = 0
        cells[base + TOTAL] = 0
        return True

    def _store_writing(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        cells[base + WRITING] = cells[base + VERSION] + 1
        return True

    def _start_range(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        version = cells[base + VERSION]
        self._check_own(cells, me, version)
        for number, place in enumerate(self._copy(version + 1)):
            if not self.shared or number == me:
                cells[base + place] = TORN
        return True

    def _end_range(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        version = cells[base + VERSION]
        for number, place in enumerate(self._copy(version + 1)):
            if not self.shared or number == me:
                cells[base + place] = version + 1
        return True

    # Ranges.

    def _share(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        cells[base + SHARED], cells[base + PIECE] = cells[base + VERSION] + 1, 0
        return True

    def _next_range(self, cells: Cells, me: int) -> str | bool | None:
        """The next range, if its owner has shared it; that it is not waited for is another step."""
        base = self.base[me]
        part = cells[base + PIECE]
        if part == me:
            cells[base + PIECE] = part = part + 1
        if part >= self.parts:
            cells[base + PIECE] = 0
            for piece in self.members:
                cells[base + self.source + piece] = 0
            return self._after_ranges
        if cells[self.base[part] + SHARED] != cells[base + VERSION] + 1:
            return None
        cells[base + self._copy(cells[base + VERSION] + 1)[part]] = TORN
        return True

    def _copy_range(self, cells: Cells, me: int) -> bool:
        base, part = self.base[me], cells[self.base[me] + PIECE]
        place = self._copy(cells[base + VERSION] + 1)[part]
        cells[base + place] = cells[self.base[part] + place]
        return True

    def _check_range(self, cells: Cells, me: int) -> str:
        base, part = self.base[me], cells[self.base[me] + PIECE]
        target = cells[base + VERSION] + 1
        if self.rules.checks_writing_of_range and cells[self.base[part] + WRITING] > target + 1:
            return "behind"
        if cells[base + self._copy(target)[part]] != target:
            raise Wrong(f"member {me} uses another range of W for version {target}")
        cells[base + PIECE] = part + 1
        return "take"

    def _update_range(self, cells: Cells, me: int) -> str:
        base, part = self.base[me], cells[self.base[me] + PIECE]
        target = cells[base + VERSION] + 1
        self._check_own(cells, me, target - 1)
        cells[base + self._copy(target)[part]] = target
        cells[base + PIECE] = part + 1
        return "take"

    # Catching up.

    def _choose(self, cells: Cells, me: int) -> bool | str:
        """Look for the member that is furthest."""
        base = self.base[me]
        cells[base + PIECE] = cells[base + TOTAL] = 0
        for piece in self.members:
            cells[base + self.source + piece] = 0
        if cells[REVOKED]:
            return self._leave(cells, base)
        choose = max if self.rules.copies_from_furthest else min
        others = [other for other in self.members if other != me]
        cells[base + FROM] = choose(others, key=lambda other: cells[self.base[other] + APPLIED])
        return True

    def _set_goal(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        goal = cells[self.base[cells[base + FROM]] + APPLIED]
        if goal <= cells[base + VERSION]:
            raise Wrong(f"member {me} catches up with one that is not further")
        cells[base + GOAL] = goal
        return True

    def _store_goal(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        cells[base + WRITING] = cells[base + GOAL]
        return True

    def _start_copy(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        for place in self._copy(cells[base + GOAL]):
            cells[base + place] = TORN
        return True

    def _end_copy(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        other = self.base[cells[base + FROM]]
        for place in self._copy(cells[base + GOAL]):
            cells[base + place] = cells[other + place]
        return True

    def _check_copy(self, cells: Cells, me: int) -> bool | str:
        base = self.base[me]
        goal, other = cells[base + GOAL], self.base[cells[base + FROM]]
        if self.rules.checks_writing and cells[other + WRITING] > goal + 1:
            return "behind"
        if (found := self._weights(cells, me, goal)) != goal:
            raise Wrong(f"member {me} uses W of {found} as version {goal}")
        cells[base + FROM] = 0
        return True

    def _look_at_bell(self, cells: Cells, me: int) -> bool:
        base = self.base[me]
        cells[base + VERSION] = cells[base + GOAL] or cells[base + VERSION] + 1
        cells[base + GOAL] = 0
        at = cells[BELL]
        may = me == 0 or self.rules.all_ring
        if may and cells[base + VERSION] >= at != cells[base + RUNG]:
            cells[base + RUNG] = at
            cells[RING] = 1
        return True

    # --- the server ------------------------------------------------------------------------------

    def first(self) -> State:
        """A team has been made, and granted its first lease."""
        cells = bytearray(HEADS + self._size * len(self.members))
        cells[INSIDE] = (1 << len(self.members)) - 1
        cells[FAULTS] = self._faults
        for base in self.base:
            cells[base + RUNG] = TORN
            if self.rules.copies == 2:
                for place in self._copy(1):
                    cells[base + place] = TORN
        self._grant(cells)
        cells[BELL], cells[LIMIT] = self._bell(cells, 0), cells[GRANTED]
        return self.tidy(cells)

    def _grant(self, cells: Cells) -> bool:
        following = [end for end in self._ends if end > cells[GRANTED]]
        if following:
            cells[GRANTED] = following[0]
        return bool(following)

    def _bell(self, cells: Cells, before: int) -> int:
        granted = cells[GRANTED]
        return before + (granted - before + 1) // 2 if granted < self._ends[-1] else granted

    def _serve(self, state: State) -> Iterator[Cells]:
        """What the server can do next by itself: usually one thing."""
        stage = state[STAGE]
        if stage == IDLE:
            yield from self._hear(state)
        elif stage < CLOSED:
            after = bytearray(state)
            if stage in (READ, CLOSE):
                self._read(after)
                while self._coarse and after[STAGE] == stage:
                    self._read(after)
            elif stage in (ROUSE, SHOUT):
                self._wake(after)
                while self._coarse and after[STAGE] == stage:
                    self._wake(after)
            elif stage == TELL:  # here it may also find that the team must stop at the end
                if state[MADE] < state[GRANTED]:
                    refused = bytearray(state)
                    if self.rules.moves_bell:
                        refused[BELL] = refused[GRANTED]
                    refused[STAGE] = AFTERTHOUGHT
                    yield refused
                self._extend(after)
            else:
                self._finish(after)
            yield after

    def _hear(self, state: State) -> Iterator[Cells]:
        if state[RING]:
            after = bytearray(state)
            after[RING] = 0
            yield self._begin_reading(after)
        for member, base in enumerate(self.base):
            gone = state[base + STATUS] == LEFT or (
                state[base + STATUS] == DEAD and self.rules.sees_deaths
            )
            if gone and state[INSIDE] & (1 << member):
                after = bytearray(state)
                after[INSIDE] &= ~(1 << member)
                if not after[REVOKED]:
                    after[STAGE] = REVOKE
                elif not after[INSIDE]:
                    self._begin_reading(after, CLOSE)
                yield after

    def _begin_reading(self, cells: Cells, stage: int = READ) -> Cells:
        cells[STAGE], cells[AT], cells[SEEN], cells[OWNER] = stage, 0, 0, 0
        return cells

    def _read(self, cells: Cells) -> None:
        """Find the largest `applied`, a word at a time; then read the records up to there."""
        word = cells[self.base[cells[AT]] + APPLIED]
        if word >= cells[SEEN]:
            cells[SEEN] = word
            if self.rules.takes_from_furthest:
                cells[OWNER] = cells[AT]
        cells[AT] += 1
        if cells[AT] < len(self.members):
            return
        cells[AT] = 0
        done, before, every = cells[SEEN], cells[MADE], len(self.members)
        for version in range(before + 1, done + 1):
            row = self.records + (version - 1) % self._ring * every
            for piece in self.members:
                if all(cells[base + row + piece] != version for base in self.base):
                    raise Wrong(f"no record of piece {piece} of version {version} is there")
        if done < before:
            raise Wrong(f"version {done} comes after {before}")
        cells[MADE] = done
        if cells[STAGE] == CLOSE:
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
        base, shouts = self.base[cells[AT]], cells[STAGE] == SHOUT
        if self.rules.revoking_wakes if shouts else self.rules.limit_wakes and cells[base + ASLEEP]:
            cells[base + WAKER] = 1
        cells[AT] += 1
        if cells[AT] == len(self.members):
            cells[AT], cells[STAGE] = 0, IDLE
            if shouts and not cells[INSIDE]:
                self._begin_reading(cells, CLOSE)

    def _take(self, cells: Cells) -> None:
        made, owner = cells[MADE], cells[OWNER]
        if (found := self._weights(cells, owner, made)) != made:
            raise Wrong(f"the server takes W of {found} as version {made} from member {owner}")
        cells[HOME] = made

    def _finish(self, cells: Cells) -> None:
        """The steps that have one way to go."""
        stage, made = cells[STAGE], cells[MADE]
        if stage == FETCH:
            self._take(cells)
            cells[STAGE] = CLOSED
        elif stage == TAKE:
            self._take(cells)
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
            furthest = max(cells[base + APPLIED] for base in self.base)
            if furthest == cells[GRANTED] and self.rules.looks_after_bell:
                cells[RING] = 1
            cells[STAGE] = IDLE
        elif stage == REVOKE:
            cells[REVOKED], cells[STAGE] = 1, SHOUT

    # --- all of it -------------------------------------------------------------------------------

    def following(self, state: State) -> Iterator[tuple[str, bool, Cells]]:
        """Each next state: what happens, whether it does happen by itself, and the state."""
        stopped = any(state[base + STATUS] == STOPPED for base in self.base)
        for me, base in enumerate(self.base):
            if state[base + STATUS] != RUNNING:
                continue
            cells = bytearray(state)
            place = state[base + PLACE]
            after = self._steps[place](cells, me)
            if after is not None:
                if after:
                    cells[base + PLACE] = self._place[after]
                yield f"{me} {self.labels[place]}", True, cells
            yield from self._choice(state, me, stopped, after is None)
        for cells in self._serve(state):
            yield "server", True, cells
        yield from self._chance(state, stopped)

    def _choice(
        self, state: State, me: int, stopped: bool, waits: bool
    ) -> Iterator[tuple[str, bool, Cells]]:
        """What a member may do instead of waiting, or of going on."""
        base = self.base[me]
        label = self.labels[state[base + PLACE]]
        target = state[base + VERSION] + 1
        if label == "meet" and state[base + SLUMBER] != LIES_DOWN and not state[base + PIECE]:
            sleeps = state[base + SLUMBER] == SLEEPS
            if sleeps and stopped and self._need_not_wait(state, me):
                cells = bytearray(state)
                cells[base + ASLEEP], cells[base + SLUMBER] = 0, AWAKE
                yield f"{me} looks by itself", True, cells
            if not self.rules.helps or state[REVOKED] or self._is_behind(state, me):
                return
            for piece in self.members:
                if self._source(state, piece, target) is None:
                    cells = bytearray(state)
                    cells[base + ASLEEP], cells[base + SLUMBER] = 0, AWAKE
                    cells[base + PLACE], cells[base + HELPS] = self._place["help"], piece
                    must = stopped and waits
                    yield f"{me} helps {piece}", must, cells
        elif label == "help sums" and self._is_needless(state, me):
            cells = bytearray(state)
            cells[base + PLACE], cells[base + HELPS] = self._place["meet"], 0
            yield f"{me} need not help", False, cells
        elif label == "take" and waits:
            cells = bytearray(state)
            cells[base + PLACE] = self._place["add range"]
            yield f"{me} does not wait for a range", True, cells

    def _chance(self, state: State, stopped: bool) -> Iterator[tuple[str, bool, Cells]]:
        """What may happen at any time, or never."""
        if state[STAGE] == IDLE:
            cells = bytearray(state)
            if not state[REVOKED]:
                if self._revokes:
                    cells[STAGE] = REVOKE
                    yield "revoke", False, cells
                if self._polls:
                    yield "poll", False, self._begin_reading(bytearray(state))
            elif state[INSIDE]:
                yield "close", stopped, self._begin_reading(cells, CLOSE)
        for me, base in enumerate(self.base):
            if state[base + STATUS] == STOPPED:
                yield f"resume {me}", False, _with(state, base + STATUS, RUNNING)
        if state[FAULTS]:
            fewer = bytes(_with(state, FAULTS, state[FAULTS] - 1))
            for me, base in enumerate(self.base):
                if state[base + STATUS] == RUNNING:
                    if "kill" in self._kinds:
                        yield f"kill {me}", False, _with(fewer, base + STATUS, DEAD)
                    if "stop" in self._kinds:
                        yield f"stop {me}", False, _with(fewer, base + STATUS, STOPPED)
            if state[STAGE] < CLOSED and "server dies" in self._kinds:
                yield "server dies", False, _with(fewer, STAGE, GONE)

    def tidy(self, cells: Cells) -> State:
        """The same state without what nobody looks at any more, so that fewer are different."""
        made, stage, every = cells[MADE], cells[STAGE], len(self.members)
        inside = [base for base in self.base if cells[base + STATUS] in (RUNNING, STOPPED)]
        least = min((cells[base + VERSION] + 1 for base in inside), default=TORN)
        goals = {cells[base + GOAL] for base in inside}
        for base in self.base:
            if cells[base + STATUS] in (DEAD, LEFT):
                for cell in (
                    PLACE, VERSION, SLUMBER, RUNG, ASLEEP, WAKER, TOTAL, PIECE, HELPS, FROM, GOAL,
                ):  # fmt: skip
                    cells[base + cell] = 0
                for cell in self.members:
                    cells[base + self.source + cell] = 0
            elif cells[base + RUNG] != cells[BELL]:
                cells[base + RUNG] = TORN
            for cell in (ARRIVED, SHARED, *range(self.helped, self.helped + every)):
                if cells[base + cell] < least:
                    cells[base + cell] = 0
            for cell in range(base + self.sums, base + self.sums + self.rules.sums * every):
                if cells[cell] < least or cells[cell] == TORN:
                    cells[cell] = 0
            for cell in range(base + self.records, base + self.records + self._ring * every):
                if cells[cell] <= made or stage >= CLOSED:
                    cells[cell] = 0
            oldest = min(made, cells[base + APPLIED], least if self.shared else TORN)
            for cell in range(base + self.copy, base + self.copy + self.rules.copies * self.parts):
                if cells[cell] < oldest and cells[cell] not in goals:
                    cells[cell] = TORN
        if stage in (IDLE, CLOSED, GONE):
            cells[SEEN] = cells[AT] = cells[OWNER] = 0
        if stage >= CLOSED:
            cells[RING] = cells[INSIDE] = cells[GRANTED] = cells[BELL] = 0
        return bytes(cells)

    def check_rest(self, state: State) -> None:
        """Nothing happens by itself any more: everybody must be where they belong."""
        inside = [me for me, base in enumerate(self.base) if state[base + STATUS] == RUNNING]
        if inside:
            raise Wrong(f"members {inside} wait for ever")
        if state[STAGE] not in (CLOSED, GONE):
            raise Wrong("the server waits for ever")
        if state[STAGE] == CLOSED and state[HOME] != state[MADE]:
            raise Wrong(f"version {state[MADE]} was made, and {state[HOME]} taken")

    def check_sleepers(self, state: State) -> None:
        """Who sleeps though there is something to do must be about to be woken."""
        for me, base in enumerate(self.base):
            if (
                state[base + STATUS] != RUNNING
                or state[base + SLUMBER] != SLEEPS
                or state[base + WAKER]
                or self.labels[state[base + PLACE]] != "meet"
                or not self._need_not_wait(state, me)
            ):
                continue
            others = [other for other in self.base if other != base]
            if all(
                state[other + STATUS] in (RUNNING, LEFT)
                and state[other + PLACE] not in self._waking
                for other in others
            ):
                raise Wrong(f"member {me} sleeps on")


def _going_on(step: Step, after: str) -> Step:
    def do(cells: Cells, me: int) -> str | bool | None:
        found = step(cells, me)
        return after if found is True else found

    return do


def _all_of(steps: list[Step]) -> Step:
    def do(cells: Cells, me: int) -> str | bool | None:
        for step in steps:
            if (found := step(cells, me)) is not True:
                return found
        return True

    return do


def _with(state: State, place: int, value: int) -> Cells:
    cells = bytearray(state)
    cells[place] = value
    return cells


def explore(model: TeamModel, most: int = 1 << 60) -> tuple[int, set[int]]:
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
        while todo and len(came) < most:
            state = todo.pop()
            rests = True
            model.check_sleepers(state)
            for what, by_itself, after in model.following(state):
                rests &= not by_itself
                following = model.tidy(after)
                if following not in came:
                    came[following] = state, what
                    todo.append(following)
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
