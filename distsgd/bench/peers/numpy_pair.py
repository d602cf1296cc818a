"""Two processes of numpy that add their gradients in shared memory: no server, no Ray, no safety.

It is as fast as we can write it. All buffers are made once; rows stay raw pixels, and what centres
and scales them is applied to scores and gradients; products are cut into blocks that OpenBLAS
computes by its kernels for small matrices; W has columns to spare, so that its rows are aligned.
Each process computes half of every minibatch, writes the gradient into shared memory, says so,
gathers its next rows, waits for the other by yielding the processor, adds both gradients in the
same order, and applies the update to a W of its own. So there is one meeting a step. Gradients are
kept twice: those of a step are overwritten two steps later, when the other has read them.

If a process dies, the other waits without end; nothing is checked, recorded or saved.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import platform
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsgd.bench.peers.numpy_loop import (
    LEARNING_RATE,
    REGULARIZATION,
    SCALE,
    Array,
    Images,
    first_weights,
    load_images,
    minibatches,
)
from distsgd.bench.processes import Measured, Task, rate, serve, task_from_arguments
from distsgd.errors import RuntimeFailure

__all__ = ["HalfMinibatch", "Meeting", "padded_weights", "train"]

_PROCESSES = 2
_ALIGNED = 16
"""Floats of a cache line: the length of a row of W is a multiple of it."""

_ROWS, _COLUMNS = 32, 1040
"""Of a block of the scores, and of the gradient, that is a small product for OpenBLAS."""

_LINE = 64
"""Bytes of a cache line."""

_ENDLESS = 2**62
_PATIENCE = 60.0


def padded_weights(images: Images) -> Array:
    """W with b as its next column, shape (classes, columns); what is beyond is zero and unused."""
    weights, bias = first_weights(images)
    features = weights.shape[1]
    columns = -(-(features + 1) // _ALIGNED) * _ALIGNED
    found = np.zeros((len(weights), columns), np.float32)
    found[:, :features], found[:, features] = weights, bias
    return found


class HalfMinibatch:
    """The gradient of a process's examples, divided by the size of the whole minibatch.

    Args:
        images: the split.
        size: examples of this process.
        shape: of W.
    """

    def __init__(self, images: Images, size: int, shape: tuple[int, int]) -> None:
        classes, columns = shape
        features = images.pixels.shape[1]
        self._images, self._size = images, size
        self._pixels = np.empty((size, features), np.uint8)
        self._labels = np.empty(size, np.int64)
        # The centre is one more row, whose score has as gradient minus the sum of all others.
        self._rows = np.zeros((size + 1, columns), np.float32)
        self._rows[size, :features], self._rows[:size, features] = images.mean, SCALE
        self._scores = np.empty((classes, size + 1), np.float32)
        self._of_examples = np.empty(size, np.float32)
        self._numbers = np.arange(size)

    def gather(self, rows: NDArray[np.int64]) -> None:
        """Get the examples with these numbers ready."""
        np.take(self._images.pixels, rows, axis=0, out=self._pixels, mode="clip")
        np.copyto(self._rows[:-1, : self._pixels.shape[1]], self._pixels)
        np.take(self._images.labels, rows, out=self._labels, mode="clip")

    def gradient(self, weights: Array, out: Array) -> float:
        """Write the gradient of the examples at hand into ``out``; returns their mean loss."""
        rows, scores, one = self._rows, self._scores[:, :-1], self._of_examples
        for low in range(0, self._size, _ROWS):
            block = slice(low, min(low + _ROWS, self._size))
            np.matmul(weights, rows[block].T, out=scores[:, block])
        np.subtract(scores, (weights @ rows[-1])[:, None], out=scores)
        np.multiply(scores, np.float32(1 / SCALE), out=scores)
        np.subtract(scores, scores.max(axis=0, out=one), out=scores)
        np.exp(scores, out=scores)
        np.divide(scores, scores.sum(axis=0, out=one), out=scores)
        loss = -np.log(scores[self._labels, self._numbers]).mean()
        scores[self._labels, self._numbers] -= 1
        np.multiply(scores, np.float32(1 / (SCALE * self._size * _PROCESSES)), out=scores)
        np.negative(scores.sum(axis=1), out=self._scores[:, -1])
        for low in range(0, rows.shape[1], _COLUMNS):
            part = slice(low, low + _COLUMNS)
            np.matmul(self._scores, rows[:, part], out=out[:, part])
        return float(loss)


class Meeting:
    """Memory that both processes share: their gradients, twice, and the step each has come to.

    Args:
        shape: of W.

    Attributes:
        gradients: shape (2, processes, *shape); those of a step are at its number modulo 2.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        size = 2 * _PROCESSES * shape[0] * shape[1]
        head = _LINE * (_PROCESSES + 1)
        self._memory = mmap.mmap(-1, head + 4 * size)  # shared with what is forked
        self._words = memoryview(self._memory)[:head].cast("q")
        self._last = len(self._words) - _LINE // 8
        self._words[self._last] = _ENDLESS
        self.gradients = np.frombuffer(self._memory, np.float32, size, head).reshape(
            2, _PROCESSES, *shape
        )

    @property
    def last(self) -> int:
        """The step after which both stop."""
        return self._words[self._last]

    @last.setter
    def last(self, step: int) -> None:
        self._words[self._last] = step

    def arrive(self, rank: int, step: int) -> None:
        """Say that a process's gradient of a step is in the memory.

        Stores become visible in their order on x86, so whoever sees this sees the gradient.
        """
        self._words[rank * _LINE // 8] = step

    def wait(self, step: int) -> None:
        """Wait until all have arrived at a step."""
        for rank in range(_PROCESSES):
            place = rank * _LINE // 8
            while self._words[place] < step:
                os.sched_yield()


def _halves(images: Images, batch: int, rank: int) -> Iterator[NDArray[np.int64]]:
    """A process's part of each minibatch."""
    size = batch // _PROCESSES
    for rows in minibatches(len(images.labels), batch, 0):
        yield rows[rank * size : (rank + 1) * size]


def train(
    rank: int, images: Images, batch: int, meeting: Meeting, seconds: float
) -> tuple[float, Array]:
    """One of the processes; the first ends both, once it has measured for so many seconds.

    Returns:
        images a second of both, 0 if it is not the first; and W.
    """
    weights = padded_weights(images)
    half = HalfMinibatch(images, batch // _PROCESSES, weights.shape)
    # The L2 penalty leaves out the bias.
    decay = np.full(weights.shape[1], 2 * REGULARIZATION, np.float32)
    decay[images.pixels.shape[1] :] = 0
    update, halves, done = np.empty_like(weights), _halves(images, batch, rank), 0
    half.gather(next(halves))

    def step() -> int:
        nonlocal done
        done += 1
        gradients = meeting.gradients[done % 2]
        half.gradient(weights, gradients[rank])
        meeting.arrive(rank, done)
        half.gather(next(halves))
        np.multiply(weights, decay, out=update)
        meeting.wait(done)
        for gradient in gradients:
            np.add(update, gradient, out=update)
        np.multiply(update, np.float32(LEARNING_RATE), out=update)
        np.subtract(weights, update, out=weights)
        return batch

    if rank == 0:
        found = rate(step, seconds)
        meeting.last = done + 1
        step()
        return found, weights
    while done < meeting.last:
        step()
    return 0.0, weights


def _run(
    rank: int, images: Images, batch: int, meeting: Meeting, seconds: float,
    rates: SimpleQueue[float],
) -> None:  # fmt: skip
    rates.put(train(rank, images, batch, meeting, seconds)[0])


def _measure(task: Task, run: dict[str, Any]) -> Measured:
    if platform.machine() != "x86_64":
        raise RuntimeFailure("its stores have to become visible in order, as on x86")
    images, batch = load_images(task.dataset), run["batch_size"]
    fork = multiprocessing.get_context("fork")
    meeting, rates = Meeting(padded_weights(images).shape), fork.SimpleQueue()
    processes = [
        fork.Process(
            target=_run, args=(rank, images, batch, meeting, task.seconds, rates), daemon=True
        )
        for rank in range(_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_PATIENCE + task.seconds)
        if process.exitcode != 0:
            raise RuntimeFailure(f"a process has failed (exit code {process.exitcode})")
    return Measured(sum(rates.get() for _ in processes), {})


if __name__ == "__main__":
    serve(task_from_arguments(), _measure)
