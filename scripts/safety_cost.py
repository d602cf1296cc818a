"""What it costs that nothing is lost: journal and checkpoints against the same run without them.

    python scripts/safety_cost.py [--rounds N] [--epochs N]

Images a second of the steps, as the server's clock counts them, in one session of Ray, interleaved;
medians, and ratios within a round. Two workers, batch size 512, CIFAR-10; nothing is evaluated.
Leases are always there, and so are the reports of updates from server to driver: they cannot be
switched off. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distsgd.engine.events import Ended, EpochEnded
from distsgd.on_ray.session import ray_session
from distsgd.training import train
from distsgd.training.keeper import Keeper
from distsgd.training.session import Session

SETTINGS: dict[str, Any] = {"workers": 2, "batch_size": 512}


def nothing(*_: Any, **__: Any) -> None:
    """Instead of what is not measured."""


def save_epoch(session: Session, event: EpochEnded) -> None:
    session._keeper.try_to_save(event.snapshot)


def ended(_: Session, event: Ended) -> Ended:
    return event


Patches = list[tuple[type, str, Callable[..., Any]]]
OFF: Patches = [
    (Session, "_epoch_ended", nothing), (Session, "_ended", ended),
    (Keeper, "updated", nothing), (Keeper, "progress", nothing),
]  # fmt: skip
VARIANTS: dict[str, tuple[Patches, float]] = {
    "without": (OFF, 0.0),
    "journal, a checkpoint every 5 s": ([(Session, "_epoch_ended", nothing)], 5.0),
    "journal, a checkpoint every epoch": ([(Session, "_epoch_ended", save_epoch)], 30.0),
}


def measure(name: str, epochs: int) -> float:
    patches, seconds = VARIANTS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for owner, attribute, instead in patches:
            stack.enter_context(patch.object(owner, attribute, instead))
        result = train(
            run_dir=folder / "run", epochs=epochs, checkpoint_seconds=seconds, **SETTINGS
        )
        return result.examples_per_second


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ray_session(cpus=3):
        measure("without", 5)  # to warm up
        for _ in range(options.rounds):
            for name, rates in found.items():
                rates.append(measure(name, options.epochs))
    print("| | images/s | of the run without |\n| --- | ---: | ---: |")
    for name, rates in found.items():
        ratios = [one / base for one, base in zip(rates, found["without"], strict=True)]
        share = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {name} | {statistics.median(rates):,.0f} | {share} |")


if __name__ == "__main__":
    main()
