"""`distsgd bisect`: the first update at which a condition holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Run

from distsgd.errors import DivergedError, UsageError
from distsgd.forensics.bisect import bisect
from distsgd.forensics.conditions import parse_condition
from distsgd.proof.replayer import Step
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("sample", run_dir=folder, workers=0, epochs=3, batch_size=50, slot_size=25,
          learning_rate=0.2, consistency="backup", validation=0.1)  # fmt: skip
    return open_run(folder)


def share(run: OpenedRun, step: Step, of: str = "") -> float:
    """Test accuracy, or that of a class, by a plain product."""
    job, test = step.job, run.dataset.test
    rows = np.concatenate([rows for rows, _ in test.batches()]).astype(np.float64)
    features = (rows - job.preprocessing.mean) / job.preprocessing.scale
    weights = job.architecture.unpad(step.after)
    right = (features @ weights[:, :-1].T + weights[:, -1]).argmax(axis=1) == test.labels
    if of:
        right = right[test.labels == run.dataset.manifest.classes.index(of)]
    return float(right.mean())


def norm(values: Any) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def ratio(step: Step) -> float:
    return norm(step.after.astype(np.float64) - step.before) / norm(step.before)


BRUTE: dict[str, Callable[[OpenedRun, Step], bool]] = {
    "loss > 3": lambda run, step: step.loss > 3,
    "loss >= 1e9": lambda run, step: False,
    "minibatch_accuracy > 50%": lambda run, step: step.correct / step.examples > 0.5,
    "weight_norm > 2": lambda run, step: norm(step.after) > 2,
    "step_ratio < 0.2": lambda run, step: ratio(step) < 0.2,
    "step_norm > 1.0 and loss > 2": lambda run, step: (
        norm(step.after.astype(np.float64) - step.before) > 1 and step.loss > 2
    ),
    "learning_rate < 0.1": lambda run, step: step.job.schedule.at(step.record.step) < 0.1,
    "deferred >= 1": lambda run, step: bool(step.record.requeued),
    "staleness > 0": lambda run, step: False,
    "test_accuracy > 20%": lambda run, step: share(run, step) > 0.2,
    "accuracy[cat] > 0.3 or loss > 100": lambda run, step: (
        share(run, step, "cat") > 0.3 or step.loss > 100
    ),
}


@pytest.mark.parametrize("condition", BRUTE)
def test_it_is_the_one_that_looking_at_all_finds(run: OpenedRun, condition: str) -> None:
    timeline = Timeline(run)
    expected = next(
        (step.record.version for step in timeline.steps(1, timeline.last)
         if BRUTE[condition](run, step)), None,
    )  # fmt: skip
    found = bisect(run, condition, every=True)
    assert found.update == expected and found.exact and found.last == timeline.last


def test_what_is_measured_is_found_by_halves(run: OpenedRun) -> None:
    found = bisect(run, "test_accuracy > 20%")
    assert found.update is not None and found.after is not None
    assert found.after["test_accuracy"] > 0.2 and found.looked_at < 15
    assert found.before is None or found.before["test_accuracy"] <= 0.2
    best = bisect(run, "validation_accuracy falls 5%", every=True)
    (value,) = (best.after or {"": 0.0}).values()
    values = [
        (bisect(run, "validation_accuracy < 2", start=n).after or {})["validation_accuracy"]
        for n in range(1, (best.update or 0) + 1)
    ]
    assert values[-1] == value
    falls = [max(values[:n], default=0) - values[n] > 0.05 for n in range(len(values))]
    assert falls == [*[False] * (len(values) - 1), True]


def test_the_update_that_diverged_was_never_applied(tmp_path: Path, distsgd_here: Run) -> None:
    folder = tmp_path / "run"
    with pytest.raises(DivergedError):
        train("sample", run_dir=folder, workers=0, epochs=9, batch_size=50, learning_rate=1e25)
    last = Timeline(open_run(folder)).last
    for condition in ("diverged", "nan", "loss < 0 or diverged"):
        found = bisect(folder, condition)
        assert (found.update, found.applied) == (last + 1, False)
    assert json.loads(distsgd_here("bisect", str(folder), "--until", "nan", "--json").stdout)


def test_the_command_says_where_and_what_next(run: OpenedRun, distsgd_here: Run) -> None:
    folder = str(run.folder.path)
    shown = distsgd_here("bisect", folder, "--until", "loss > 3").stdout
    update = bisect(run, "loss > 3").update
    assert f"update {update}" in shown and f"distsgd show {folder} {update}" in shown
    none = distsgd_here("bisect", folder, "--until", "loss > 1e9")
    assert "holds at none of" in none.stderr


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "its end"), ("los > 3", "'los'"), ("loss 3", "'3'"), ("loss > x", "its end|'x'"),
        ("loss > 3 loss", "'loss'"), ("loss > 3 and", "its end"), ("loss[cat] > 3", "loss.cat."),
        ("loss > 1.2.3", "1.2.3"), ("__import__('os')", "__import__"),
    ],
)  # fmt: skip
def test_a_condition_that_is_none_names_the_word(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        parse_condition(text)


def test_and_binds_more_strongly_than_or() -> None:
    condition = parse_condition("loss > 3 or loss > 1 and staleness >= 2")
    found = [condition.holds({"loss": loss, "staleness": age}) for loss, age in
             ((4, 0), (2, 2), (2, 1), (0, 9))]  # fmt: skip
    assert found == [True, True, False, False]
