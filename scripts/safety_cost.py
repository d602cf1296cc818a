"""Compare training with journal and checkpoints with the same training without them.

    python scripts/safety_cost.py [--rounds N] [--epochs N]

Images a second of the steps, by the server's clock, in one session of Ray, interleaved; ratios are
taken within a round. Two workers, batch size 512, CIFAR-10; nothing is evaluated. Leases and the
reports of updates from server to driver cannot be switched off, and are always included. Takes
about two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.tables import Comparison, print_environment

from distsgd.engine.events import Ended, EpochEnded
from distsgd.on_ray.session import ray_session
from distsgd.training import train
from distsgd.training.keeper import Keeper
from distsgd.training.session import Session

SETTINGS: dict[str, Any] = {"workers": 2, "batch_size": 512}


def nothing(*_: Any, **__: Any) -> None:
    """Replaces what is not measured."""


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ray_session(cpus=3):
        measure("without", 5)  # to warm up
        for _ in range(options.rounds):
            for name, rates in found.items():
                rates.append(measure(name, options.epochs))
    print_environment()
    table = Comparison("training", "images/s", ours="steps", peer="without")
    for name, rates in found.items():
        table.row(name, rates, found["without"])


if __name__ == "__main__":
    main()
