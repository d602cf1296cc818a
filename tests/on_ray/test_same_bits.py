"""The same seed gives the same W, bit for bit, for any fleet."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import on_sample

from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.model import LOSSES, initial_weights, make_architecture
from distsgd.core.model.gradient_check import analytic_gradient
from distsgd.data.dataset import Dataset
from distsgd.engine.core_type import runs_here
from distsgd.engine.events import Ended, EpochEnded
from distsgd.engine.job import Snapshot
from distsgd.engine.server_host import ServerHost
from distsgd.engine.worker import Worker, work
from distsgd.lecture.experiments import gradcheck
from distsgd.runs.checkpoint import latest_checkpoint, read_checkpoint, weights_sha256
from distsgd.simulation.fleet import Fleet, Jitter
from distsgd.simulation.simulate import simulate
from distsgd.training import Reporter, train
from distsgd.transport.base import InProcessChannel

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Notices(Reporter):
    """Keeps what a training tells."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def sha_of(workers: int, **settings: object) -> str:
    return train("sample", workers=workers, epochs=2, **settings).weights_sha256  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "servers"), [(2, 3), (4, 1)])
def test_ray_gives_the_bits_of_one_process(workers: int, servers: int, shared_ray: None) -> None:
    """A few fleets; the simulation has them all, with the same server and workers."""
    result = train("sample", workers=workers, epochs=2, servers=servers, optimizer="adam")
    assert result.weights_sha256 == sha_of(0, optimizer="adam")
    assert (result.servers, result.status) == (servers, "finished")


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_and_so_does_a_simulation(workers: int, servers: int) -> None:
    fleet = Fleet(workers=workers, slow=((1, 3.0),), jitter=Jitter("pareto", (1.5,)))
    found = simulate(TrainConfig(dataset="sample", epochs=2, servers=servers), fleet)
    assert found.weights_sha256 == sha_of(0)


@pytest.mark.parametrize("model", ["linear", "mlp:8"])
@pytest.mark.parametrize("workers", [1, 3, 5])
def test_and_so_does_one_with_exact_arithmetic(workers: int, model: str) -> None:
    settings = {"arithmetic": "exact", "model": model, "optimizer": "nesterov"}
    fleet = Fleet(workers=workers, slow=((0, 3.0),), jitter=Jitter("pareto", (1.5,)))
    config = on_sample(epochs=2, servers=2, batch_size=333, slot_size=17, **settings)
    found = simulate(config, fleet)
    assert found.weights_sha256 == sha_of(0, batch_size=333, slot_size=17, **settings)


@pytest.mark.parametrize("servers", [2, 3])
def test_and_several_servers_in_one_process(servers: int) -> None:
    assert sha_of(0, servers=servers) == sha_of(0)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("channel", "settings"),
    [
        ("shm", {"loss": "svm", "batch_size": 333, "slot_size": 17}),
        ("tcp", {"batch_size": 100, "sampling": "random", "optimizer": "nesterov"}),
        ("ray", {"batch_size": 1500, "sampling": "sequential", "optimizer": "momentum"}),
        ("team", {"arithmetic": "exact", "model": "mlp:8", "loss": "svm"}),
    ],
)
def test_and_so_on_every_channel_with_odd_slots_and_other_settings(
    channel: str, settings: dict[str, Any], shared_ray: None
) -> None:
    result = train("sample", workers=3, epochs=2, channel=channel, **settings)
    assert result.channel == channel
    assert result.weights_sha256 == sha_of(0, **settings)


@pytest.mark.ray
@pytest.mark.parametrize(("arithmetic", "channel"), [("exact", "team"), ("float", "tcp")])
def test_workers_whose_kernels_differ(
    arithmetic: str, channel: str, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exact arithmetic they give the bits of one process, and nobody is warned."""
    kernels = ("Haswell", "SkylakeX", "Prescott")
    if not all(map(runs_here, kernels)):
        pytest.skip(f"this processor cannot execute all of {', '.join(kernels)}")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    mixed_kernels = importlib.import_module("harness.mixed_kernels").mixed_kernels
    told = Notices()
    with mixed_kernels(kernels):
        result = train(
            "sample", workers=3, epochs=2, channel=channel, arithmetic=arithmetic, reporter=told
        )
    assert result.channel == channel
    warned = [text for text in told.texts if "the bits depend on who computes what" in text]
    if arithmetic == "exact":
        assert result.weights_sha256 == sha_of(0, arithmetic=arithmetic)
        assert not warned
    else:
        assert len(warned) == 2  # each kernel that is not the driver's


def test_runs_repeat_and_seeds_matter() -> None:
    assert sha_of(0) == sha_of(0)
    assert sha_of(0, seed=1) != sha_of(0)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_cache_gives_the_same_bits(loss: str) -> None:
    found = {
        sha_of(0, loss=loss, batch_size=200, slot_size=30, **settings)
        for settings in ({"cache": "uint8"}, {"cache": "float32"}, {"cache_budget": 0}, {})
    }
    assert len(found) == 1


def train_with_threads(workers: int, config: TrainConfig, dataset: Dataset) -> Ended:
    """Training over in-process channels, a thread for each worker."""
    job = make_job(config, dataset)
    first = initial_weights(config.seed, job.classes, job.features, config.init_scale, job.dtype)
    host = ServerHost(job, Snapshot(0, first, {}), workers)
    threads = [
        threading.Thread(target=work, args=(Worker(job), InProcessChannel(host, number)))
        for number in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while not isinstance(last := host.events(0)[-1], Ended):  # a few epochs at a time
        assert isinstance(last, EpochEnded)
    return last


def test_threads_give_the_same_bits(sample: Dataset) -> None:
    config = TrainConfig(dataset="sample", epochs=2, batch_size=200, slot_size=30)
    one, five = (train_with_threads(n, config, sample).snapshot.weights for n in (1, 5))
    assert np.array_equal(one, five)


@pytest.mark.ray
def test_distributed_gradient_is_the_serial_one(shared_ray: None, sample: Dataset) -> None:
    """One full-batch step of rate 1 moves W by minus the gradient."""
    loss = "softmax"
    result = train(
        "sample", loss, workers=3, batch_size=1500, epochs=1, slot_size=77, dtype="float64",
        learning_rate=1.0, schedule="constant", regularization=0.3, init_scale=1e-2,
    )  # fmt: skip
    checkpoints = Path(result.run_dir) / "checkpoints"
    before = read_checkpoint(checkpoints / "step-000000000.npz")
    after = read_checkpoint(checkpoints / "step-000000001.npz")
    pixels = np.concatenate([part for part, _ in sample.train.batches()])
    serial = serial_gradient(before.weights, loss, pixels, sample.train.labels, 0.3, sample)
    error = np.abs((before.weights - after.weights) - serial).max() / np.abs(serial).max()
    assert error <= 1e-12


def serial_gradient(
    weights: np.ndarray, loss: str, pixels: np.ndarray, labels: np.ndarray, lam: float, at: Dataset
) -> np.ndarray:
    """The full-batch gradient in plain numpy, with nothing of ours but the pixel means."""
    features = np.column_stack([(pixels - at.pixel_mean) / 64.0, np.ones(len(pixels))])
    scores = features @ weights.T
    truth = np.eye(10)[labels]
    if loss == "softmax":
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        by_score = exponentials / exponentials.sum(axis=1, keepdims=True) - truth
    else:
        over = (scores - (scores * truth).sum(axis=1, keepdims=True) + 1 > 0) & (truth == 0)
        by_score = over - truth * over.sum(axis=1, keepdims=True)
    penalty = 2 * lam * weights
    penalty[:, -1] = 0
    gradient: np.ndarray = by_score.T @ features / len(pixels) + penalty
    return gradient


def test_serial_gradient_is_the_analytic_one(sample: Dataset) -> None:
    rng = np.random.default_rng(0)
    pixels = np.concatenate([part for part, _ in sample.train.batches()])
    weights = rng.standard_normal((10, 3073)) * 1e-2
    for loss in LOSSES:
        ours = analytic_gradient(
            make_architecture("linear", 3072, 10),
            weights,
            loss,
            sample.preprocessing(64.0),
            pixels,
            sample.train.labels,
            0.1,
        )
        serial = serial_gradient(weights, loss, pixels, sample.train.labels, 0.1, sample)
        assert np.abs(ours - serial).max() <= 1e-12 * np.abs(serial).max()


def test_gradcheck_passes_in_all_cases() -> None:
    rows = list(gradcheck(parameters=60, examples=40))
    assert len(rows) == 12
    assert all(row.passed for row in rows)


def test_weights_sha256_is_that_of_the_plain_array() -> None:
    result = train("sample", workers=0, epochs=1)
    model = read_checkpoint(latest_checkpoint(Path(result.run_dir) / "checkpoints"))
    assert model.weights.shape == (10, 3073)
    assert weights_sha256(model.weights) == result.weights_sha256
