"""Check the known weights of exact arithmetic with all kernels of OpenBLAS and kinds of fleets.

    python scripts/known_weights.py [--dataset cifar10] [--only PATTERN]

Each training of `distsgd verify-install` in one process, by each kernel that this processor can
execute, with 1 and 2 BLAS threads; then with 1 to 4 workers over every channel, with one server and
two, where each worker multiplies by another kernel. A line for each, and the exit code is 1 unless
all weights are the known ones. `--only` takes the lines that match a regular expression. CIFAR-10
takes ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from harness.mixed_kernels import mixed_kernels
from harness.tables import Table, print_environment

from distsgd.config.sources import config_from
from distsgd.core.model import EXACT
from distsgd.engine.blas import core_type_of
from distsgd.engine.core_type import VARIABLE, runs_here
from distsgd.on_ray.fleet import Fleet
from distsgd.on_ray.session import ray_session
from distsgd.proof import install
from distsgd.training import train

KERNELS = (
    "Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX", "Cooperlake",
    "SapphireRapids",
)  # fmt: skip
MOST_WORKERS = 4
CHANNELS = ("team", "shm", "tcp")

Wanted = Callable[[str], object]


def kernels() -> list[str]:
    return [name for name in KERNELS if runs_here(name)]


def fleets() -> list[dict[str, Any]]:
    """One server and two, over every channel; a team has one server."""
    kinds = product(range(1, MOST_WORKERS + 1), (1, 2), CHANNELS)
    return [
        {"workers": workers, "servers": servers, "channel": channel}
        for workers, servers, channel in kinds
        if channel != "team" or servers == 1
    ]


@contextmanager
def loaded_kernels() -> Iterator[set[str]]:
    """Gives the kernels that workers have loaded."""
    loaded = set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Fleet, "_compare", lambda fleet, worker, blas: loaded.add(core_type_of(blas) or blas)
        )
        yield loaded


def by_kernel(dataset: str, wanted: Wanted) -> Iterator[tuple[str, str, str, str]]:
    """Trainings in processes of their own: name, what multiplies, and both SHA-256."""
    for kernel, threads in product(kernels(), (1, 2)):
        what = f"one process, {kernel}, {threads} BLAS threads"
        if not wanted(what):
            continue
        environment = {**os.environ, VARIABLE: kernel, "OPENBLAS_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, __file__, "--dataset", dataset, "--here"], env=environment,
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        for one in json.loads(done.stdout):
            yield one["name"], what, one["expected"], one["found"]


def by_fleet(dataset: str, wanted: Wanted) -> Iterator[tuple[str, str, str, str]]:
    """Trainings on Ray, the workers of each multiplying by other kernels."""
    chosen = [
        (known, fleet, f"{known.name}: {', '.join(f'{k} {v}' for k, v in fleet.items())}")
        for known, fleet in product(install.KNOWN[dataset], fleets())
    ]
    chosen = [one for one in chosen if wanted(one[2])]
    if not chosen:
        return
    mixed = [name for name in ("Haswell", "SkylakeX", "Prescott", "Sandybridge") if runs_here(name)]
    with ray_session(cpus=MOST_WORKERS + 2):
        for known, fleet, what in chosen:
            settings = {"dataset": dataset, "arithmetic": EXACT, "epochs": 2, **known.settings}
            with (
                tempfile.TemporaryDirectory() as folder,
                mixed_kernels(mixed),
                loaded_kernels() as loaded,
            ):
                config = config_from({**settings, **fleet})
                found = train(config=config, run_dir=Path(folder) / "run")
            what = f"{what.partition(': ')[2]}; {' '.join(sorted(loaded))}"
            yield known.name, what, known.weights_sha256, found.weights_sha256


def here(dataset: str) -> None:
    """The trainings in this process, with the BLAS threads that it has been given, as JSON."""
    install.one_blas_thread = nullcontext  # type: ignore[assignment]
    print(json.dumps([vars(one) for one in install.verify_install(dataset)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="cifar10", choices=sorted(install.KNOWN))
    parser.add_argument("--only", default="", metavar="PATTERN", help="lines that match this regex")
    parser.add_argument("--here", action="store_true", help="in this process alone, as JSON")
    given = parser.parse_args()
    if given.here:
        here(given.dataset)
        return 0
    print_environment()
    wanted = re.compile(given.only).search
    table, same = Table("training", "multiplied by", "SHA-256 of W", "as known"), []
    for rows in (by_kernel(given.dataset, wanted), by_fleet(given.dataset, wanted)):
        for name, what, expected, found in rows:
            same.append(found == expected)
            table.row(name, what, found[:16], "yes" if same[-1] else "NO")
    print(f"\n{len(same)} trainings, {sum(same)} with the known weights")
    return int(not all(same) or not same)


if __name__ == "__main__":
    sys.exit(main())
