"""Checks what `distsgd blame` says: trains again without examples, and looks at the loss.

    python scripts/leave_out.py [--seed S] [--tests N] [--draws D] [--left-out K]

For each of some test examples of the embedded sample it leaves out the K most helpful training
examples, the K most harmful ones, and K random ones, each by the setting `without`: the same seed,
minibatches and learning rates. It prints how the loss of the test example changed, and how well the
sums of influences order those changes. With 20 test examples it takes about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from distsgd.forensics.blame import METHODS, rows_of
from distsgd.forensics.contributions import features_of_rows
from distsgd.forensics.influence import Targets
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training import train


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


def correlation(a, b):
    """Spearman's, of values without ties."""
    return float(np.corrcoef(ranks(np.array(a)), ranks(np.array(b)))[0, 1])


def losses(run: OpenedRun, targets: Targets):
    timeline = Timeline(run)
    weights = timeline.at(timeline.last).snapshot.weights
    return targets.gradients(run.job(run.origin), weights).losses.astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seed", 0), ("tests", 20), ("draws", 3), ("left-out", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as top:
        folders = (Path(top) / str(number) for number in range(10**6))

        def trained(without=()) -> OpenedRun:
            folder = next(folders)
            train("sample", workers=0, seed=given.seed, without=without, run_dir=folder)
            return open_run(folder)

        run = trained()
        job, dataset = run.job(run.origin), run.dataset
        tests = np.sort(random.choice(len(dataset.test), given.tests, replace=False))
        pixels = rows_of(dataset.test, tests, job.features)
        features = features_of_rows(job.preprocessing, pixels, job.dtype)
        targets = Targets.single(features, dataset.test.labels_of(tests))
        before = losses(run, targets)
        print(f"{given.tests} test examples, {given.left_out} training examples left out, "
              f"seed {given.seed}; mean loss {before.mean():.3f}")  # fmt: skip
        sets = [random.choice(len(dataset.train), given.left_out, replace=False)
                for _ in range(given.draws * given.tests)]  # fmt: skip
        changes = np.array([losses(trained(rows), targets) - before for rows in sets])
        for name, compute in METHODS.items():
            values = compute(run, targets).values
            order = np.argsort(-values, axis=0)
            print(f"\n{name}")
            found = {}
            for kind, chosen in (("most helpful", order[: given.left_out]),
                                 ("most harmful", order[-given.left_out :])):  # fmt: skip
                moved = np.array([
                    (losses(trained(chosen[:, i]), targets) - before)[i]
                    for i in range(given.tests)
                ])  # fmt: skip
                told = np.array([values[chosen[:, i], i].sum() for i in range(given.tests)])
                found[kind] = moved, told
            for kind, sign in (("most helpful", 1), ("most harmful", -1)):
                moved, told = found[kind]
                own = np.array([
                    np.abs(changes[i * given.draws : (i + 1) * given.draws, i]).max()
                    for i in range(given.tests)
                ])  # fmt: skip
                print(
                    f"  without the {kind}: as foretold {np.sum(np.sign(moved) == sign)} of "
                    f"{given.tests}, by more than all {given.draws} random sets "
                    f"{np.sum(sign * moved > own)}; change mean {moved.mean():+.4f}, median "
                    f"{np.median(moved):+.4f}, foretold mean {told.mean():+.4f}"
                )
            own = [(values[rows, i // given.draws].sum(), changes[i, i // given.draws])
                   for i, rows in enumerate(sets)]  # fmt: skip
            told, moved = np.array(own).T
            every = [(t, m) for pair in found.values() for m, t in zip(*pair, strict=True)]
            print(
                f"  without random ones: change mean {moved.mean():+.4f}, mean size "
                f"{np.abs(moved).mean():.4f}, signs right {np.mean(told * moved > 0):.0%}; rank "
                f"correlation {correlation(told, moved):.3f}, with the others "
                f"{correlation(*zip(*(every + own), strict=True)):.3f}"
            )


if __name__ == "__main__":
    main()
