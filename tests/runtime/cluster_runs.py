"""Trainings on a cluster of several real nodes on this machine; run in a process of its own.

python cluster_runs.py SCENARIO FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from steered import SLOW, Steered, check_bits, crew_of, said, stop, train_until_stopped, updates

from distsgd.api import train
from distsgd.api.training import resume
from distsgd.errors import RuntimeFailure

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

    def end(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def follow(run: Path) -> None:
    """Workers appear with a node, and go with it."""
    nodes = Nodes(2)
    steered = Steered(
        run,
        (updates(10), lambda: nodes.join(2)),
        (crew_of(3), nodes.leave),
        (said("1 workers from here on"), stop),
    )
    train_until_stopped(steered, workers="auto")
    nodes.end()
    assert [text for text in steered.notices if "from here on" in text] == [
        "3 workers from here on", "1 workers from here on",
    ], steered.notices  # fmt: skip
    check_bits(run)


def too_few(run: Path) -> None:
    """Who finds room begins; the others join later."""
    nodes = Nodes(2)
    steered = Steered(
        run,
        (said("1 of 4 workers are there"), lambda: nodes.join(2)),
        (crew_of(3), stop),
    )
    train_until_stopped(steered, workers=4)
    nodes.end()
    check_bits(run)


def come_and_go(run: Path) -> None:
    """Nobody is there; one comes; it goes with its node; another comes."""
    nodes = Nodes(1)
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


def give_up(run: Path) -> None:
    """Nobody comes; the run says how to go on with it, and that works."""
    nodes = Nodes(1)
    try:
        train(**SLOW, workers=1, epochs=3, run_dir=run, wait_seconds=2)
    except RuntimeFailure as error:
        assert "no worker has come for 2 s" in str(error)
        assert f"`distsgd resume {run}`" in str(error)
    else:
        raise AssertionError("it trained without a worker")
    nodes.join(1)
    assert resume(run).status == "finished"
    nodes.end()
    check_bits(run)


def no_server(run: Path) -> None:
    """Not even a server finds room."""
    nodes = Nodes(0)
    try:
        train(**SLOW, workers=1, epochs=3, run_dir=run, wait_seconds=2)
    except RuntimeFailure as error:
        assert "no server could be placed for 2 s" in str(error)
    else:
        raise AssertionError("it trained without a server")
    nodes.end()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
