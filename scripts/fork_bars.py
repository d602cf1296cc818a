"""Forks at random updates end with the bits of their parents.

For each policy a parent is trained, by workers on Ray or in this process, and forked at random
updates without a change, each fork to its end. Its final W must have the SHA-256 of its parent's.

    python scripts/fork_bars.py --workers 2 --forks 20
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from distsgd.training import train
from distsgd.training.forking import fork_with
from distsgd.training.results import Reporter

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {},
    "ssp": {"consistency": "ssp", "staleness": 3},
    "asp": {"consistency": "asp"},
    "local": {"consistency": "local", "local_steps": 4},
    "backup": {"consistency": "backup", "backup": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--workers", type=int, default=2, help="of the parents")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--order", help="recorded or live; recorded for bsp and local on Ray")
    parser.add_argument("--policy", action="append", choices=tuple(POLICIES))
    given = parser.parse_args()
    settings = {
        "workers": given.workers, "epochs": given.epochs, "batch_size": given.batch_size,
        "slot_size": 25, "optimizer": "sgd",
    }  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="fork-bars-"))
    try:
        for policy in given.policy or POLICIES:
            _bar(policy, given, settings, folder)
    finally:
        shutil.rmtree(folder)


def _bar(policy: str, given: argparse.Namespace, settings: dict[str, Any], folder: Path) -> None:
    parent_dir = folder / policy
    parent = train(given.dataset, run_dir=parent_dir, **settings, **POLICIES[policy])
    chosen = random.Random(policy).sample(range(parent.steps + 1), given.forks)
    order = given.order or ("recorded" if given.workers else None)
    same, began = 0, time.perf_counter()
    for at in sorted(chosen):
        into = folder / f"{policy}-{at}"
        fork = fork_with(parent_dir, at, {}, Reporter(), run_dir=into, order=order)
        same += fork.weights_sha256 == parent.weights_sha256
    spent = time.perf_counter() - began
    ages = ", ".join(f"{age}: {n}" for age, n in parent.staleness.items())
    print(
        f"{policy:7} {given.workers} workers, {parent.steps} updates (gradients by age {ages}), "
        f"order {order or 'as usual'}: {same} of {given.forks} forks have the parent's SHA-256 "
        f"{parent.weights_sha256[:12]}, {spent:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
