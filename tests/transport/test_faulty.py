"""Pushes that are lost, doubled or late: what the server sees, and what is counted."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.chaos import Chaos, Fault
from distsgd.core.messages import Lease, Message, Push, ResidualReport
from distsgd.core.model import SlotLoss, initial_weights
from distsgd.data.dataset import Dataset
from distsgd.engine.events import Ended, EpochEnded
from distsgd.engine.job import Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.worker import Worker, work
from distsgd.transport.base import InProcessChannel, Work
from distsgd.transport.faulty import FaultyChannel, PushFaults, Tally, read_tally

WORK = (Lease(0, 0, 2, 0), np.ones(3, np.float32))


class Noted:
    """A channel that notes what is sent, and overwrites it as a server may."""

    name, buffer = "noted", np.zeros((2, 3), np.float32)
    descriptor: int | None = None

    def __init__(self, answers: int) -> None:
        self.sent: list[object] = []
        self._answers = answers

    def send(self, message: Message | None) -> None:
        if not isinstance(message, Push):
            self.sent.append(message)
            return
        self.sent.append(message.gradients.reshape(-1).tolist())
        message.gradients[...] = -1

    def receive(self) -> Work | None:
        self._answers -= 1
        return WORK if self._answers >= 0 else None


def a_push(step: int = 0) -> Push:
    gradients: Floats = np.array([[1, 2, 3]], np.float32)
    return Push(Lease(step, 0, 2, 0), (SlotLoss(0.5, 1, 2),) * 2, gradients)


def channel(inner: Noted, tally: Path, *faults: Fault) -> tuple[FaultyChannel, list[float]]:
    slept: list[float] = []
    found = PushFaults(Chaos(faults), 1, Tally(tally, 1), slept.append)
    return FaultyChannel(inner, found), slept


def test_a_dropped_push_is_never_sent_and_work_is_asked_for_anew(tmp_path: Path) -> None:
    inner = Noted(9)
    faulty, slept = channel(
        inner, tmp_path / "t", Fault("drop-push", share=1, seconds=7), Fault("dup-push", share=1)
    )
    faulty.send(a_push())
    assert faulty.receive() == WORK
    assert (inner.sent, slept) == ([None], [7])
    assert read_tally(tmp_path / "t") == {
        "answers": 1, "slots": 2, "drop-push": 1, "dup-push": 0, "delay": 0,
    }  # fmt: skip


def test_a_doubled_push_comes_twice_as_it_was_each_with_its_answer(tmp_path: Path) -> None:
    inner = Noted(2)
    faulty, _ = channel(inner, tmp_path / "t", Fault("dup-push", share=1))
    faulty.send(a_push())
    assert inner.sent == [[1, 2, 3]]  # the two ends take turns
    assert faulty.receive() == WORK
    assert inner.sent == [[1, 2, 3], [1, 2, 3]]
    assert faulty.receive() is None


def test_who_is_dismissed_sends_no_more(tmp_path: Path) -> None:
    inner = Noted(0)
    faulty, _ = channel(inner, tmp_path / "t", Fault("dup-push", share=1))
    faulty.send(a_push())
    assert faulty.receive() is None
    assert len(inner.sent) == 1


def test_a_delayed_push_waits(tmp_path: Path) -> None:
    inner = Noted(9)
    faulty, slept = channel(inner, tmp_path / "t", Fault("delay", share=1, seconds=0.25))
    faulty.send(a_push())
    assert (inner.sent, slept) == ([[1, 2, 3]], [0.25])


def test_wishes_and_reports_are_left_alone(tmp_path: Path) -> None:
    inner = Noted(9)
    faulty, _ = channel(inner, tmp_path / "t", Fault("drop-push", share=1, seconds=1))
    faulty.send(None)
    report = ResidualReport(3, np.zeros(3, np.float32))
    faulty.send(report)
    assert inner.sent == [None, report]
    assert read_tally(tmp_path / "t")["answers"] == 0
    assert (faulty.name, faulty.buffer is inner.buffer) == ("noted", True)


def test_counts_outlive_a_killed_process_and_go_on(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from distsgd.transport.faulty import Tally\n"
        "tally = Tally(Path(sys.argv[1]), 2); tally.answered(4); tally.count_fault('delay')\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")])
    assert done.returncode == -9
    assert Tally(tmp_path / "t", 2).answered(1) == 1
    Tally(tmp_path / "t", 0).answered(2)  # of a smaller number, later: nothing is cut off
    assert read_tally(tmp_path / "t") == {
        "answers": 3, "slots": 7, "drop-push": 0, "dup-push": 0, "delay": 1,
    }  # fmt: skip


def test_without_the_folder_a_worker_counts_for_itself(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "missing" / "t", 0)
    assert [tally.answered(1), tally.answered(1)] == [0, 1]
    assert read_tally(tmp_path / "missing" / "t")["answers"] == 0


def weights_after(sample: Dataset, tally: Path, chaos: Chaos, **settings: object) -> Floats:
    """W after a training by three threads."""
    config = TrainConfig(dataset="sample", epochs=3, batch_size=200, slot_size=30, **settings)  # type: ignore[arg-type]
    job = make_job(config, sample)
    first = initial_weights(0, job.classes, job.features, config.init_scale, job.dtype)
    host = ServerHost(job, Snapshot(0, first, {}), 3)

    def run(number: int) -> None:
        faults = PushFaults(chaos, number, Tally(tally, number))
        worker = Worker(job, job.feedback(Snapshot(0, first, {}), number, 3))
        work(worker, FaultyChannel(InProcessChannel(host, number), faults))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    while not isinstance(ended := host.events(0)[-1], Ended):  # a few epochs at a time
        assert isinstance(ended, EpochEnded)
    assert ended.finished
    return ended.snapshot.weights


@pytest.mark.parametrize("seed", range(4))
def test_pushes_that_go_astray_change_no_bit(sample: Dataset, tmp_path: Path, seed: int) -> None:
    faults = (
        Fault("drop-push", share=0.1, seconds=0.001),
        Fault("dup-push", share=0.2),
        Fault("delay", share=0.1, seconds=0.001),
    )
    disturbed = weights_after(sample, tmp_path / "t", Chaos(faults, seed))
    peace = weights_after(sample, tmp_path / "peace", Chaos(()))
    assert np.array_equal(disturbed, peace)
    found = read_tally(tmp_path / "t")
    assert min(found[fault.name] for fault in faults) > 0
    assert found["answers"] > read_tally(tmp_path / "peace")["answers"]
