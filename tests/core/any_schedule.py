"""Schedules of a crew of workers that does anything at any time.

`drive` plays one against a parameter server. `crew_account` checks every decision against what
the policy has promised (`promises`); `reference_weights` computes every W anew.
"""

from crew import Crew
from crew_account import MOST_WORKERS
from promises import PROMISES
from toy_fleet import Toy, toy_plan

from distsgd.core.server.consistency import make_policy

NAMES = MOST_WORKERS
QUICK = {
    "the first": lambda random, choices: 0,
    "the last": lambda random, choices: choices - 1,
    "anyone": lambda random, choices: random.randrange(choices),
}


def any_crew(name, random):
    """A crew for a small plan of any shape, with the policy called ``name``."""
    slots, slot_size = random.randint(2 if name == "backup" else 1, 5), random.randint(1, 3)
    batch_size = slots * slot_size - random.randrange(slot_size)
    examples = batch_size * random.randint(1, 2) + random.randint(1, batch_size)
    numbers, promise = PROMISES[name](random, slots)
    optimizer = "sgd" if promise.is_local else random.choice(("sgd", "momentum", "adam"))
    plan = toy_plan(examples, batch_size, slot_size, epochs=2)
    return Crew(Toy(plan, optimizer, make_policy(name, **numbers)), promise)


def drive(name, random):
    """Play one schedule to its end; returns the crew.

    Args:
        name: the policy.
        random: all that is left to chance: `random.Random(seed)` plays a seed again.
    """
    crew = any_crew(name, random)
    try:
        play(crew, random)
        finish_alone(crew, random)
        crew.check_end()
    except Exception as error:
        error.add_note(f"{crew.toy}\n" + "\n".join(map(str, crew.log)))
        raise
    return crew


def play(crew, random):
    """Workers join, and then it goes on in turn, or not."""
    quick = QUICK[random.choice(tuple(QUICK))]
    unruly = random.choice((0.02, 0.1, 0.3, 0.6))
    for worker in range(random.randint(0, NAMES - 1)):
        crew.join(worker)
    for _ in range(random.randrange(60)):
        if crew.finished:
            return
        if random.random() < unruly:
            random.choice(UNRULY)(crew, random)
        else:
            go_on(crew, random, quick)


def go_on(crew, random, quick):
    """An idle worker pulls, or one answers and pulls."""
    busy = {*crew.waiting, *(holder for holder, _ in crew.standing.values())}
    idle = [worker for worker in crew.workers if worker not in busy]
    if idle and random.random() < 0.8:
        crew.pull(random.choice(idle))
    elif crew.standing:
        worker = crew.answer(quick(random, len(crew.standing)))
        if random.random() < 0.8:
            crew.pull(worker)


def someone_joins(crew, random):
    crew.join(random.randrange(NAMES))


def someone_is_lost(crew, random):
    """Also one that was never here."""
    crew.lose(random.randrange(NAMES))


def someone_is_too_slow(crew, random):
    """Whether or not it has a lease."""
    crew.overdue(random.randrange(NAMES))


def someone_pulls(crew, random):
    crew.pull(random.randrange(NAMES))


def a_late_answer_comes(crew, random):
    if crew.given_up:
        crew.push(*crew.given_up.pop(random.randrange(len(crew.given_up))))


def an_answer_comes_again(crew, random):
    if crew.sent:
        crew.push(*random.choice(crew.sent[-6:]))


UNRULY = (
    someone_joins,
    someone_is_lost,
    someone_is_too_slow,
    someone_pulls,
    a_late_answer_comes,
    an_answer_comes_again,
)


def finish_alone(crew, random):
    """All but one are lost; the last finishes, and what comes after the end is not used."""
    if not crew.workers:
        crew.join(random.randrange(NAMES))
    survivor, *others = crew.workers
    for worker in others:
        crew.lose(worker)
    for _ in range(crew.toy.all_slots().total() + 1):
        if crew.standing:
            crew.push(survivor, next(iter(crew.standing.values()))[1])
        crew.pull(survivor)
        if crew.finished:
            break
    for worker, lease in [*crew.given_up, *crew.sent[-3:]]:
        crew.push(worker, lease)
