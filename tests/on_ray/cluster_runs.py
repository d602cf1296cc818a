"""Trainings on a cluster of several real nodes on this machine; run in a process of its own.

python cluster_runs.py FOLDER

A cluster takes ten seconds to start, so that all trainings share one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from steered import SLOW, Steered, check_bits, crew_of, said, stop, train_until_stopped, updates
from support import wait_for

from distsgd.errors import RuntimeFailure
from distsgd.training import train
from distsgd.training.training import resume

HERE = {"node_ip_address": "127.0.0.1"}


class Nodes:
    """A cluster whose head has no CPU, one node that stays, and one that comes and goes."""

    def __init__(self) -> None:
        # Ray would put a handler of its own there, and that from a thread.
        ray._private.utils.set_sigterm_handler = lambda handler: None
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**HERE, "num_cpus": 0, "include_dashboard": False},
        )
        self._stays: Any = None
        self._comes: Any = None
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def stay(self, cpus: int) -> None:
        """Have a node with so many CPUs, and no other."""
        for node in (self._stays, self._comes):
            if node is not None:
                self._cluster.remove_node(node, allow_graceful=False)
        self._comes = None
        self._stays = self._cluster.add_node(**HERE, num_cpus=cpus)
        self.wait_for(cpus)

    def join(self, cpus: int) -> None:
        self._comes = self._cluster.add_node(**HERE, num_cpus=cpus)

    def leave(self) -> None:
        self._cluster.remove_node(self._comes, allow_graceful=False)
        self._comes = None

    def wait_for(self, cpus: int) -> None:
        """Until Ray knows of so many CPUs."""
        wait_for(lambda: ray.cluster_resources().get("CPU", 0) == cpus)

    def end(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def too_few(nodes: Nodes, run: Path) -> None:
    """Who finds room begins; the others join later."""
    steered = Steered(
        run,
        (said("1 of 4 workers are connected"), lambda: nodes.join(2)),
        (crew_of(3), stop),
    )
    train_until_stopped(steered, workers=4)
    check_bits(run)


def follow(nodes: Nodes, run: Path) -> None:
    """Workers appear with a node, and go with it."""
    steered = Steered(
        run,
        (updates(10), lambda: nodes.join(2)),
        (crew_of(3), nodes.leave),
        (said("1 workers from here on"), stop),
    )
    train_until_stopped(steered, workers="auto")
    assert [text for text in steered.notices if "from here on" in text] == [
        "3 workers from here on", "1 workers from here on",
    ], steered.notices  # fmt: skip
    check_bits(run)


def comes_and_goes(nodes: Nodes, run: Path) -> None:
    """Nobody is there; one comes; it goes with its node; another comes."""
    steered = Steered(
        run,
        (said("no worker is connected"), lambda: nodes.join(1)),
        (updates(20), nodes.leave),
        (said("no worker is connected", 2), lambda: nodes.join(1)),
        (updates(20), stop),
    )
    train_until_stopped(steered, workers=1)
    check_bits(run)


def is_empty(nodes: Nodes, run: Path) -> None:
    """There is no room for a server, then none for a worker; then there is."""
    with pytest.raises(RuntimeFailure, match="no server could be placed for 2 s"):
        train(**SLOW, workers=1, epochs=3, run_dir=run.with_name("none"), wait_seconds=2)
    nodes.stay(1)
    with pytest.raises(RuntimeFailure, match="no worker has connected for 10 s") as caught:
        train(**SLOW, workers=1, epochs=3, run_dir=run, wait_seconds=10)  # a server takes some
    assert f"`distsgd resume {run}`" in str(caught.value)
    nodes.join(1)
    assert resume(run).status == "finished"
    nodes.leave()
    nodes.wait_for(1)
    check_bits(run)


def main(folder: Path) -> None:
    nodes = Nodes()
    is_empty(nodes, folder / "empty" / "run")
    comes_and_goes(nodes, folder / "comes" / "run")
    nodes.stay(2)
    too_few(nodes, folder / "few" / "run")
    nodes.leave()
    nodes.wait_for(2)
    follow(nodes, folder / "follow" / "run")
    nodes.join(3)
    nodes.wait_for(5)
    nodes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
