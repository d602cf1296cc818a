"""Compare the start of `distsgd train` on a private Ray with that of a bare Ray.

    python scripts/startup.py [ROUNDS]

Ours is the command, from the start of its process until its workers have connected and steps begin.
Beside it, in the same settings but as Ray is: a process that imports Ray, calls `ray.init`, makes
one actor and waits for one call of it; and one with three actors, as many processes as ours has
(a server and two workers). All take turns, so that other work on the machine disturbs all alike.
The processor time is that of all processes together until then. Half a minute a round.
"""

from __future__ import annotations

import statistics
import sys

from harness.tables import print_environment

from distsgd.bench.startup import Started, bare_start, our_start


def main(rounds: int) -> None:
    """Print the comparison."""
    print_environment()
    names = ["distsgd train", "bare Ray, 1 actor", "bare Ray, 3 actors"]
    found: dict[str, list[Started]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, one in zip(names, (our_start(), bare_start(1), bare_start(3)), strict=True):
            found[name].append(one)
            print(f"{name:20} {one.wall:6.2f} s, {one.processor:6.2f} s of processor time",
                  file=sys.stderr)  # fmt: skip
    print(f"\nmedians of {rounds} rounds, seconds\n")
    print("| start | wall | ours over it | processor | ours over it |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        wall = statistics.median(one.wall for one in found[name])
        spent = statistics.median(one.processor for one in found[name])
        shares = [
            statistics.median(
                mine[which] / other[which]
                for mine, other in zip(found[names[0]], found[name], strict=True)
            )
            for which in (0, 1)
        ]
        print(f"| {name} | {wall:.2f} | {shares[0]:.2f} | {spent:.2f} | {shares[1]:.2f} |")
    print("\n| stage of ours | wall |\n| --- | --- |")
    for stage in found[names[0]][0].stages:
        seconds = statistics.median(one.stages[stage] for one in found[names[0]])
        print(f"| {stage} | {seconds:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
