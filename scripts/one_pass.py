"""Compare a search, whose settings are trained together, with a single run of each setting.

    python scripts/one_pass.py [--trials 16] [--epochs 10] [--singles 4] [--dataset cifar10]

The search is `distsgd tune`, a single run is `distsgd train` with the settings of a trial, each a
command line from start to end, with the same workers. Some of the trials are trained alone, half of
them before the search and half after it; the time of all is taken to be in proportion. Their losses
and accuracies on the rows held out must be those of the search, bit for bit. Takes two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from harness.tables import Table, print_environment, spread

MEASURED = ("validation_loss", "validation_accuracy")


def run(home: str, *arguments: object) -> tuple[float, dict[str, Any]]:
    """Seconds of a command line, and what it prints."""
    command = [sys.executable, "-m", "distsgd", *map(str, arguments), "--json"]
    began = perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "DISTSGD_HOME": home}
    )
    seconds = perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return seconds, json.loads(done.stdout)


def main(trials: int, epochs: int, singles: int, dataset: str, workers: int) -> None:
    """Print the comparison."""
    print_environment()
    common = ["--dataset", dataset, "--epochs", epochs, "--workers", workers, "--validation", 0.1]
    rates = [0.06 * 20 ** (-number / max(1, trials - 1)) for number in range(trials)]
    rates = [float(f"{rate:.3g}") for rate in rates]
    chosen = [trials * place // singles for place in range(singles)]
    found: dict[float, tuple[float, dict[str, Any]]] = {}
    with TemporaryDirectory() as home:

        def alone(places: list[int]) -> None:
            for place in places:
                given = ["--learning-rate", rates[place]]
                found[rates[place]] = run(home, "train", *common, *given)

        alone(chosen[::2])
        search = f"learning_rate={','.join(map(str, rates))}"
        wall, result = run(home, "tune", *common, "--search", search, "--method", "grid")
        alone(chosen[1::2])
    together = {trial["settings"]["learning_rate"]: trial for trial in result["trials"]}
    same = all(one[name] == together[rate][name] for rate, (_, one) in found.items()
               for name in MEASURED)  # fmt: skip
    seconds = [one for one, _ in found.values()]
    steps = [one["step_seconds"] for _, one in found.values()]
    stacked = sum(trial["seconds"] for trial in together.values())
    each = sum(seconds) / len(seconds)
    table = Table("", "seconds", "of the runs")
    table.row(f"a run, median of {len(seconds)}", spread(seconds), None)
    table.row(f"{trials} runs, one after another", each * trials, 1.0)
    table.row(f"a search of {trials} trials", wall, wall / (each * trials))
    table.row(f"steps of {trials} runs", sum(steps) / len(steps) * trials, 1.0)
    own = stacked / max(1, workers)
    table.row("steps of the search", own, own / (sum(steps) / len(steps) * trials))
    print(f"\n{len(found)} trials trained alone: {'the same' if same else 'OTHER'} "
          "losses and accuracies")  # fmt: skip
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--singles", type=int, default=4, help="trials that are trained alone")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--workers", type=int, default=2)
    main(**vars(parser.parse_args()))
