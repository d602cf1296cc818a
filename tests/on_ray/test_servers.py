"""W split over several servers: the same bits as on one."""

from __future__ import annotations

from typing import Any

import pytest

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Dropped, Grant
from distsgd.core.model import initial_weights
from distsgd.data.dataset import Dataset
from distsgd.engine.job import Snapshot
from distsgd.engine.worker import Worker
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.training import train


def run(workers: int, servers: int, **settings: Any) -> Any:
    return train("sample", workers=workers, servers=servers, epochs=2, **settings)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("servers", [2, 3, 7])
def test_inline(optimizer: str, servers: int) -> None:
    split, whole = (run(0, n, optimizer=optimizer, batch_size=200) for n in (servers, 1))
    assert split.weights_sha256 == whole.weights_sha256
    assert split.test_accuracy == whole.test_accuracy


@pytest.mark.parametrize("compress", ["fp16", "topk:0.001", "onebit"])
def test_encoded_gradients_are_cut_too(compress: str) -> None:
    assert len({run(0, n, compress=compress).weights_sha256 for n in (1, 2, 5)}) == 1


@pytest.mark.ray
@pytest.mark.parametrize(("channel", "compress"), [("shm", "onebit"), ("tcp", "fp16")])
def test_encoded_gradients_on_ray(channel: str, compress: str, shared_ray: None) -> None:
    one, two = run(0, 1, compress=compress), run(2, 2, compress=compress, channel=channel)
    assert audit(two.run_dir).complete
    assert replay(two.run_dir).weights_sha256 == two.weights_sha256
    assert two.bytes_per_update < 4 * one.bytes_per_update  # two workers, two servers


@pytest.mark.parametrize("servers", [1, 3])
def test_a_push_that_comes_twice_before_its_update_is_used_once(
    servers: int, sample: Dataset
) -> None:
    """The followers have been given it, and are told that a copy of it is of no use."""
    job = make_job(TrainConfig(epochs=1, consistency="ssp", servers=servers), sample)
    first = initial_weights(0, job.classes, job.features, 1e-4, job.dtype)
    server, worker = job.server(Snapshot(0, first, {})), Worker(job)
    for number in (0, 1):
        server.joined(number)
    (one,), (two,) = (server.pull(number) for number in (0, 1))
    assert isinstance(one, Grant) and isinstance(two, Grant)
    push = worker.answer(one.lease, server.weights)
    push = push._replace(gradients=push.gradients.copy())
    assert server.push(0, push) == []
    assert server.push(0, push) == [Dropped(0, one.lease)]
    server.push(1, worker.answer(two.lease, server.weights))
    assert server.version == 1
