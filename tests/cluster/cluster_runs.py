"""Trainings on a cluster of several real nodes on this machine; run in a process of its own.

python cluster_runs.py SCENARIO FOLDER

A cluster takes ten seconds to start, so that several trainings share one.
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
    """A cluster whose head has so many CPUs, and at most one node more."""

    def __init__(self, cpus: int) -> None:
        # Ray would put a handler of its own there, and that from a thread.
        ray._private.utils.set_sigterm_handler = lambda handler: None
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**HERE, "num_cpus": cpus, "include_dashboard": False},
        )
        self._node: Any = None
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def join(self, cpus: int) -> None:
        self._node = self._cluster.add_node(**HERE, num_cpus=cpus)

    def leave(self) -> None:
        self._cluster.remove_node(self._node, allow_graceful=False)

    def wait_for(self, cpus: int) -> None:
        """Until Ray knows of so many CPUs."""
        wait_for(lambda: ray.cluster_resources().get("CPU", 0) == cpus)

    def end(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def grows_and_shrinks(folder: Path) -> None:
    nodes = Nodes(2)
    too_few(nodes, folder / "few" / "run")
    nodes.leave()
    nodes.wait_for(2)
    follow(nodes, folder / "follow" / "run")
    nodes.end()


def too_few(nodes: Nodes, run: Path) -> None:
    """Who finds room begins; the others join later."""
    steered = Steered(
        run,
        (said("1 of 4 workers are there"), lambda: nodes.join(2)),
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


def comes_and_goes(folder: Path) -> None:
    """Nobody is there; one comes; it goes with its node; another comes."""
    nodes, run = Nodes(1), folder / "run"
    steered = Steered(
        run,
        (said("no worker is there"), lambda: nodes.join(1)),
        (updates(20), nodes.leave),
        (said("no worker is there", 2), lambda: nodes.join(1)),
        (updates(20), stop),
    )
    train_until_stopped(steered, workers=1)
    nodes.end()
    check_bits(run)


def is_empty(folder: Path) -> None:
    """There is no room for a server, then none for a worker; then there is."""
    nodes, run = Nodes(0), folder / "run"
    with pytest.raises(RuntimeFailure, match="no server could be placed for 2 s"):
        train(**SLOW, workers=1, epochs=3, run_dir=folder / "none" / "run", wait_seconds=2)
    nodes.join(1)
    nodes.wait_for(1)
    with pytest.raises(RuntimeFailure, match="no worker has come for 10 s") as caught:
        train(**SLOW, workers=1, epochs=3, run_dir=run, wait_seconds=10)  # a server takes some
    assert f"`distsgd resume {run}`" in str(caught.value)
    nodes.join(1)
    assert resume(run).status == "finished"
    nodes.end()
    check_bits(run)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
