"""Compare the test accuracy of exact arithmetic with that of float32, and the speed.

    python scripts/exact_accuracy.py [--epochs 10] [--seeds 3] [--workers 0] [--dataset cifar10]

Trains each kind of model with both, seed by seed in turn, and prints the mean accuracies in
percent, their difference in points, and the median of the ratios of images a second. Takes two
minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from harness.tables import Table, print_environment

from distsgd.training import TrainResult, train

KINDS = (("softmax", "linear"), ("svm", "linear"), ("softmax", "mlp:20"))


def trained(
    arguments: argparse.Namespace, loss: str, model: str, kind: str, seed: int
) -> TrainResult:
    with tempfile.TemporaryDirectory() as folder:
        return train(
            arguments.dataset, loss, model=model, arithmetic=kind, seed=seed,
            epochs=arguments.epochs, workers=arguments.workers, run_dir=Path(folder) / "run",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--dataset", default="cifar10")
    arguments = parser.parse_args()
    print_environment()
    table = Table("loss", "model", "float32 %", "exact %", "points", "each seed", "speed")
    for loss, model in KINDS:
        pairs = [
            [trained(arguments, loss, model, kind, seed) for kind in ("float", "exact")]
            for seed in range(arguments.seeds)
        ]
        floats, exact = ([100 * pair[n].test_accuracy for pair in pairs] for n in (0, 1))
        each = [b - a for a, b in zip(floats, exact, strict=True)]
        ratios = [b.examples_per_second / a.examples_per_second for a, b in pairs]
        table.row(
            loss, model, f"{statistics.mean(floats):.2f}", f"{statistics.mean(exact):.2f}",
            f"{statistics.mean(each):+.2f}", " ".join(f"{points:+.2f}" for points in each),
            f"{statistics.median(ratios):.2f}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
