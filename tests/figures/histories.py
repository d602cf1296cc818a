"""Histories of runs that never were, for tests of figures."""

from __future__ import annotations

from typing import Any

from distsgd.runs.history import History

CLASSES = ["cat", "dog"]


def history(name: str = "run", accuracy: float = 0.4, **given: Any) -> History:
    """Two epochs of ten updates; keywords are settings, or fields of `History`."""
    fields = {key: given.pop(key) for key in list(given) if key in History.__dataclass_fields__}
    settings = {"consistency": "bsp", "seed": 0, "learning_rate": 0.1, "model": "linear", **given}
    steps = list(range(1, 21))
    return History(**{
        "name": name, "folder": f"/runs/{name}", "state": "finished", "settings": settings,
        "dataset": {"name": "pets", "digest": "d", "train": 1000, "test": 200,
                    "classes": CLASSES, "shape": [3, 2, 2]},
        "progress": {
            "step": steps, "epoch": [step / 10 for step in steps],
            "seconds": [step / 100 for step in steps], "loss": [1 / step for step in steps],
            "accuracy": [0.5] * 20, "learning_rate": [0.1] * 20,
            "images_per_second": [10_000.0] * 20,
        },
        "epochs": {
            "epoch": [1, 2], "step": [10, 20], "seconds": [0.1, 0.2], "train_loss": [1.0, 0.9],
            "train_accuracy": [0.5, 0.6], "test_loss": [1.1, 1.0],
            "test_accuracy": [accuracy, accuracy + 0.1],
        },
        "fleet": {
            "0": {"seconds": [0.1, 0.2], "images": [500, 500], "computing": [0.05, 0.04],
                  "pushing": [0.01, 0.01], "waiting": [0.04, 0.05], "state": "computing"},
        },
        "staleness": {"0": 15, "2": 5},
        "bytes": {"seconds": [0.1, 0.2], "pushed": [1e6, 2e6]},
        "events": [{"seconds": 0.15, "step": 15, "kind": "death", "text": "worker 0 died"}],
        "classes": {"names": CLASSES, "epochs": [1, 2], "accuracy": [[0.3, 0.5], [0.4, 0.6]],
                    "confusion": [[40, 60], [40, 60]], "surest_wrong": []},
        **fields,
    })  # fmt: skip
