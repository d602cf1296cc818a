"""Compare the replay of a training with the training itself, both in one process.

    python scripts/replay_speed.py [--policies bsp,asp,...] [--rounds N] [--epochs N] [--model M]

Images a second of the steps, of `distsgd replay` and of `distsgd train --workers 0`, alternately:
each round trains anew and replays what it trained. Medians and their range; ratios are taken within
a round. Neither figure has the start, the reading of the data or of the journal, evaluations or
checkpoints in it. CIFAR-10, minibatches of 256 and other defaults. Exits with 1 if a replay has
other bits. About a minute for each policy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness.tables import Comparison, print_environment

from distsgd.proof.replay import replay
from distsgd.training import train

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {},
    "ssp": {"consistency": "ssp", "staleness": 3},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup", "backup": 2},
    "local": {"consistency": "local", "local_steps": 4},
}


def measure(epochs: int, settings: dict[str, Any]) -> tuple[float, float]:
    """Images a second of a replay, and of the training that it recomputes."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(run_dir=Path(folder) / "run", workers=0, epochs=epochs, **settings)
        found = replay(result.run_dir)
    if found.weights_sha256 != result.weights_sha256:
        raise SystemExit(f"the replay has other bits: {settings}")
    return found.images_per_second, result.examples_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policies", default="bsp", help="separated by commas, or all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default="linear", help="linear, or mlp:HIDDEN")
    options = parser.parse_args()
    names = list(POLICIES) if options.policies == "all" else options.policies.split(",")
    if unknown := set(names) - set(POLICIES):
        parser.error(f"no policy {', '.join(sorted(unknown))}; there are {', '.join(POLICIES)}")
    print_environment()
    table = Comparison("policy", "images/s", ours="replay", peer="train --workers 0")
    for name in names:
        settings = {"dataset": "cifar10", "model": options.model, **POLICIES[name]}
        measure(2, settings)  # to warm up
        rounds = [measure(options.epochs, settings) for _ in range(options.rounds)]
        ours, peer = zip(*rounds, strict=True)
        table.row(name, ours, peer)


if __name__ == "__main__":
    main()
