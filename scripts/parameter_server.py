"""Distributed minibatch SGD on one page: a plan, workers, a reduction tree, a parameter server.

    python scripts/parameter_server.py 3 distsgd/data/sample

trains with three workers on the shards in a folder (`distsgd data info` shows that of CIFAR-10) and
prints the SHA-256 of W: that of `distsgd train --dataset sample` by the same OPENBLAS_CORETYPE.
"""

import asyncio
import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa  # to read the shards
import ray

SEED, EPOCHS, BATCH, SLOT, RATE, PENALTY, SCALE = 0, 10, 256, 64, 0.015, 0.005, 64
CLASSES, PIXELS, COLUMNS = 10, 3072, 3088  # columns of W: the pixels, the bias, and padding


def plan(examples):
    """The slots of each minibatch, which are the same for any number of workers."""
    for epoch in range(EPOCHS):
        bits = np.random.PCG64([SEED, 1, epoch]).random_raw(examples)
        for minibatch in np.split(np.argsort(bits, kind="stable"), range(BATCH, examples, BATCH)):
            yield np.split(minibatch, range(SLOT, len(minibatch), SLOT))


class Worker:
    """Pulls slots with the W of their minibatch, and pushes the gradients of these slots."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels
        self.mean = np.pad(pixels.mean(axis=0), (0, COLUMNS - PIXELS)).astype(np.float32)

    def run(self, server):
        while lease := ray.get(server.pull.remote()):
            number, slot, weights = lease
            server.push.remote(number, self.gradient(weights, slot))

    def gradient(self, weights, slot):
        """The sum of dL/dW over a slot, for features (rows - mean) / SCALE, by products with the
        raw rows. Their shapes, and the one thread that Ray gives a worker's BLAS, fix the bits."""
        rows = np.zeros((len(slot) + 1, COLUMNS), np.float32)
        rows[0], rows[1:, :PIXELS], rows[1:, PIXELS] = self.mean, self.pixels[slot], SCALE
        scores = [weights @ rows[i : i + 32].T for i in range(1, len(rows), 32)]
        scores = (np.concatenate(scores, axis=1) - (weights @ self.mean)[:, None]) / SCALE
        errors = np.exp(scores - scores.max(axis=0))
        errors /= errors.sum(axis=0)  # the softmax
        errors[self.labels[slot], np.arange(len(slot))] -= 1
        errors = np.insert(errors, 0, -errors.sum(axis=1), axis=1) / SCALE
        return np.concatenate([errors @ rows[:, i : i + 1040] for i in (0, 1040, 2080)], axis=1)


def tree_sum(leaves):
    """Add neighbours, then their sums, and so on: in the same order whichever came first."""
    while len(leaves) > 1:
        leaves = [sum(leaves[i + 1 : i + 2], leaves[i]) for i in range(0, len(leaves), 2)]
    return leaves[0]


class Server:
    """Leases the slots of one minibatch at a time, and updates W by their mean gradient."""

    def __init__(self):
        self.leases, self.gradients = asyncio.Queue(), asyncio.Queue()

    async def pull(self):
        return await self.leases.get()

    async def push(self, number, gradient):
        await self.gradients.put((number, gradient))

    async def train(self, minibatches, workers):
        weights = 1e-4 * np.random.default_rng([SEED, 0]).standard_normal((CLASSES, PIXELS + 1))
        weights = np.pad(weights[:, :PIXELS], ((0, 0), (0, COLUMNS - PIXELS))).astype(np.float32)
        for step, slots in enumerate(minibatches):
            for number, slot in enumerate(slots):
                await self.leases.put((number, slot, weights))
            sums = dict([await self.gradients.get() for _ in slots])
            mean = tree_sum([sums[n] for n in sorted(sums)]) * (1 / sum(map(len, slots)))
            mean[:, :PIXELS] += 2 * PENALTY * weights[:, :PIXELS]
            weights = weights - RATE * (1 + math.cos(math.pi * step / len(minibatches))) / 2 * mean
        for _ in range(workers):
            await self.leases.put(None)
        return hashlib.sha256(weights[:, : PIXELS + 1].tobytes()).hexdigest()


if __name__ == "__main__":
    shards = sorted(Path(sys.argv[2]).glob("train-*.arrow"))
    rows = pa.concat_tables(pa.ipc.open_file(shard).read_all() for shard in shards)
    pixels = ray.put(rows["image"].combine_chunks().to_numpy_ndarray().reshape(-1, PIXELS))
    labels = rows["label"].to_numpy()
    workers = [ray.remote(Worker).remote(pixels, labels) for _ in range(int(sys.argv[1]))]
    server = ray.remote(Server).remote()
    digest = server.train.remote(list(plan(len(labels))), len(workers))
    ray.get([worker.run.remote(server) for worker in workers])
    print(ray.get(digest))
