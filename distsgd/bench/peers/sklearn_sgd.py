"""The SGDClassifier of scikit-learn, given minibatches with partial_fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import SGDClassifier

from distsgd.bench.peers.numpy_loop import BATCH, SCALE, load_images, minibatches
from distsgd.bench.processes import Measured, Task, rate, serve, task_from_arguments

__all__: list[str] = []


def _measure(task: Task, run: dict[str, Any]) -> Measured:
    images = load_images(task.dataset)
    classes = np.unique(images.labels)
    model = SGDClassifier(
        loss=run["loss"], alpha=0.01, learning_rate="constant", eta0=1e-4, shuffle=False
    )
    batches = minibatches(len(images.labels), BATCH, 0)

    def step() -> int:
        rows = next(batches)
        x = (images.pixels[rows].astype(np.float32) - images.mean) / np.float32(SCALE)
        model.partial_fit(x, images.labels[rows], classes=classes)
        return len(rows)

    return Measured(rate(step, task.seconds), {})


if __name__ == "__main__":
    serve(task_from_arguments(), _measure)
