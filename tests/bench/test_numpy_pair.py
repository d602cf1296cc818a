"""The pair of numpy processes trains as the plain loop does."""

from __future__ import annotations

import json
import platform
import sys
import threading

import numpy as np
import pytest

from distsgd.bench.peers import numpy_loop
from distsgd.bench.peers.numpy_pair import HalfMinibatch, Meeting, padded_weights, train
from distsgd.bench.processes import parse_results, run_process

BATCH = 200


@pytest.fixture(scope="module")
def images() -> numpy_loop.Images:
    return numpy_loop.load_images("sample")


def test_its_gradient_is_that_of_the_plain_loop(images: numpy_loop.Images) -> None:
    weights = padded_weights(images)
    weights[:, :3073] = np.random.default_rng(1).normal(0, 0.01, (10, 3073))
    rows = next(numpy_loop.minibatches(len(images.labels), BATCH, 0))
    by_weights, by_bias, _ = numpy_loop.softmax_gradient(
        weights[:, :3072], weights[:, 3072], images, rows
    )
    total, loss = np.zeros_like(weights), []
    half, out = HalfMinibatch(images, BATCH // 2, weights.shape), np.empty_like(weights)
    for part in np.split(rows, 2):
        half.gather(part)
        loss.append(half.gradient(weights, out))
        total += out
    penalty = np.float32(2 * numpy_loop.REGULARIZATION)
    expected = np.column_stack([by_weights - penalty * weights[:, :3072], by_bias])
    np.testing.assert_allclose(total[:, :3073], expected, atol=1e-4 * np.abs(expected).max())
    assert not total[:, 3073:].any() and np.mean(loss) == pytest.approx(2.3, abs=0.3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="relies on the order of stores")
def test_both_have_the_same_weights_and_stop_together(images: numpy_loop.Images) -> None:
    meeting = Meeting(padded_weights(images).shape)
    found: dict[int, tuple[float, np.ndarray]] = {}

    def run(rank: int) -> None:
        found[rank] = train(rank, images, BATCH, meeting, 0.1)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0][0] > 0 == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert not np.array_equal(found[0][1], padded_weights(images))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="relies on the order of stores")
def test_it_is_measured_in_processes() -> None:
    run = {"name": "numpy-2-256", "kernel": "", "batch_size": 256}
    task = json.dumps({"dataset": "sample", "seconds": 0.1, "runs": [run]})
    module = "distsgd.bench.peers.numpy_pair"
    (said,) = parse_results(run_process([sys.executable, "-m", module, task], 60).output)
    assert said["value"] > 0
