"""Influence is the sum of inner products that it is said to be, and foretells a retraining."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import Run

import distsgd
from distsgd.core.model.reference import loss_and_gradient, with_bias
from distsgd.engine.job import Job
from distsgd.errors import RunError, UsageError
from distsgd.forensics.blame import blame, blame_row, rows_of, surest_wrong
from distsgd.forensics.contributions import Contributions, features_of_rows
from distsgd.forensics.example_history import example_history
from distsgd.forensics.influence import Targets, tracin
from distsgd.forensics.unrolled import unrolled
from distsgd.proof.timeline import Timeline
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training import train
from distsgd.training.forking import fork_with
from distsgd.training.results import Reporter

SETTINGS: dict[str, dict[str, Any]] = {
    "bsp": {},
    "asp": {"consistency": "asp"},
    "momentum": {"optimizer": "momentum"},
    "nesterov": {"optimizer": "nesterov"},
    "local": {"consistency": "local", "local_steps": 3},
    "mlp": {"model": "mlp:5"},
    "svm": {"loss": "svm"},
    "weights": {"class_weight": "cat=2,dog=0.5"},
}
TESTS = np.array([7, 100])


def trained(folder: Path, **settings: Any) -> OpenedRun:
    given = {
        "workers": 0, "epochs": 1, "batch_size": 300, "slot_size": 50, "dtype": "float64",
        **settings,
    }  # fmt: skip
    train("sample", run_dir=folder, **given)
    return open_run(folder)


def targets_of(run: OpenedRun, job: Job) -> Targets:
    pixels = rows_of(run.dataset.test, TESTS, job.features)
    features = features_of_rows(job.preprocessing, pixels, job.dtype)
    return Targets.single(features, run.dataset.test.labels_of(TESTS))


def gradient(run: OpenedRun, job: Job, weights: Any, split: str, row: int) -> Any:
    """Of one example, from its pixels, by the plain formulas."""
    examples = getattr(run.dataset, split)
    pixels = rows_of(examples, [row], job.features)
    inputs = with_bias((pixels - job.preprocessing.mean) / job.preprocessing.scale)
    model = job.architecture
    layers = model.split_kept(model.unpad(weights))
    label = examples.labels_of(np.array([row]))
    _, found = loss_and_gradient(layers, inputs, label, job.loss)
    factor = job.class_factors[int(label[0])] if job.class_factors and split == "train" else 1.0
    return factor * np.concatenate([part.ravel() for part in found])


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_sum_of_inner_products(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **SETTINGS[name])
    job = run.job(run.origin)
    found = tracin(run, targets_of(run, job))
    some = [3, 40, 777, 1200]
    expected = np.zeros((len(some), len(TESTS)))
    rates = [job.schedule.at(step) for step in range(5)]
    mu = job.momentum if job.optimizer != "sgd" else 0.0
    for step in Timeline(run).steps(1, found.updates):
        t = step.record.version - 1
        leads = rates[t] if mu and job.optimizer == "nesterov" else 0.0
        later = sum(rate * mu**k for k, rate in enumerate(rates[t:]))
        weight = leads + mu * later if leads else later
        for one in Contributions(run.dataset.train).of(step):
            if one.lease.replicas:
                weight = one.rate
            for place, row in enumerate(some):
                if row in one.rows:
                    own = gradient(run, job, one.weights, "train", row)
                    expected[place] += [
                        weight * one.share * own @ gradient(run, job, one.weights, "test", test)
                        for test in TESTS
                    ]
    np.testing.assert_allclose(found.values[some], expected, rtol=1e-9)
    assert (found.counts == 1).all() and np.abs(expected).min() > 0


def test_each_gradient_is_taken_at_the_w_that_was_read(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    step = next(Timeline(run).steps(3, 3))
    worker, lease = step.record.contributions[0]
    stale = replace(step.record, contributions=((worker, lease._replace(version=1)),))
    old = step.before * 0.5
    (one,) = Contributions(run.dataset.train).of(replace(step, record=stale, reads={1: old}))
    assert one.weights is old and one.share == 1 / 300
    own = gradient(run, step.job, old, "train", int(one.rows[4]))
    total = np.outer(one.gradients.errors[0][4], one.gradients.inputs[0][4, :3073])
    np.testing.assert_allclose(total.ravel(), own, atol=1e-12)


def test_adaptive_rules_divide_the_gradient(tmp_path: Path) -> None:
    """A first update of adagrad moves W by rate * sign: examples add up to that."""
    run = trained(tmp_path / "run", optimizer="adagrad", batch_size=1500, regularization=0)
    job = run.job(run.origin)
    found = tracin(run, targets_of(run, job))
    step = next(Timeline(run).steps(1, 1))
    for place, test in enumerate(TESTS):
        towards = job.architecture.pad(
            gradient(run, job, step.before, "test", test).reshape(job.architecture.kept_shape)
        )
        total = (step.before - step.after) @ towards
        assert found.values[:, place].sum() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ["bsp", "momentum", "nesterov", "local", "weights"])
def test_unrolled_is_what_a_retraining_gives(name: str, tmp_path: Path) -> None:
    settings = {"epochs": 2, **SETTINGS[name]}
    run = trained(tmp_path / "run", **settings)
    job = run.job(run.origin)
    targets = targets_of(run, job)
    found = unrolled(run, targets).values
    row = int(np.abs(found[:, 0]).argmax())
    other = trained(tmp_path / "other", without=[row], **settings)
    changes = losses(other, targets) - losses(run, targets)
    np.testing.assert_allclose(found[row], changes, rtol=0.1, atol=2e-4)


def losses(run: OpenedRun, targets: Targets) -> Any:
    timeline = Timeline(run)
    return targets.gradients(
        run.job(run.origin), timeline.at(timeline.last).snapshot.weights
    ).losses


@pytest.mark.parametrize("settings", [{"model": "mlp:5"}, {"loss": "svm"}, {"optimizer": "adam"}])
def test_unrolled_refuses_what_it_cannot(settings: dict[str, str], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", **settings)
    with pytest.raises(UsageError, match=r"^the method unrolled .*Give the method tracin"):
        unrolled(run, targets_of(run, run.job(run.origin)))


def test_a_blame_names_examples_and_shows_them(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    worst = surest_wrong(run.folder.path, most=3)
    assert [one.probability for one in worst] == sorted(
        (one.probability for one in worst), reverse=True
    )
    found = blame(run.folder.path, test=worst[0].test, top=4)
    assert (found.label, found.predicted) == (worst[0].label, worst[0].predicted)
    assert found.probability == pytest.approx(worst[0].probability)
    assert [one.influence for one in found.helpful] == sorted(found.values)[:-5:-1]
    assert [one.influence for one in found.harmful] == sorted(found.values)[:4]
    assert sum(found.classes.values()) == pytest.approx(found.values.sum())
    path = tmp_path / "why.png"
    path.write_bytes(found.picture())
    with Image.open(path) as sheet:
        assert min(sheet.size) > 200
    pixels = rows_of(run.dataset.test, [worst[0].test], 3072)[0]
    own = blame_row(run, pixels, "own", label=worst[0].label)
    np.testing.assert_allclose(own.values, found.values, rtol=1e-9)
    assert blame_row(run, pixels, "own").label == worst[0].predicted
    whole = blame(run.folder.path, of_class="cat", at=3)
    assert (whole.at, whole.updates, whole.target) == (3, 3, "class cat")


def test_a_fork_is_explained_over_its_parents_updates_too(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", optimizer="momentum")
    path = tmp_path / "fork"
    fork_with(run.folder.path, 3, {}, Reporter(), run_dir=path)
    targets = targets_of(run, run.job(run.origin))
    found = tracin(open_run(path), targets)
    assert (found.first, found.updates) == (1, 5)
    np.testing.assert_array_equal(found.values, tracin(run, targets).values)
    whole = distsgd.blame(distsgd.load(path), test=7)
    assert isinstance(whole, distsgd.Blame) and whole.updates == 5
    assert len(example_history(path, 40).parts) == 1
    shutil.rmtree(run.folder.path)
    with pytest.raises(RunError, match=r"was forked from at update 3, is gone\. Put it back"):
        blame(path, test=7)


def test_predict_why(distsgd_here: Run, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    pixels = rows_of(run.dataset.test, [7], 3072)[0]
    image = tmp_path / "photo.png"
    Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(image)
    label = run.dataset.manifest.classes[int(run.dataset.test.labels_of(np.array([7]))[0])]
    given = "predict", str(run.folder.path), str(image), "--why"
    out = tmp_path / "why.png"
    done = distsgd_here(*given, "--label", label, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    found, own = json.loads(done.stdout), blame(run.folder.path, test=7)
    assert [one["example"] for one in found["helpful"]] == [one.example for one in own.helpful]
    assert found["loss"] == pytest.approx(own.loss) and found["predicted"] == own.predicted
    with Image.open(out) as sheet:
        assert min(sheet.size) > 200
    done = distsgd_here(*given)
    assert f"predicted  {own.predicted}" in done.stdout and "helpful" in done.stdout
    done = distsgd_here(*given, str(image))
    assert done.returncode == 2 and "--why explains one image or row" in done.stderr


def test_the_history_of_an_example(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", epochs=2)
    found = example_history(run.folder.path, 40, test=7)
    job = run.job(run.origin)
    assert [one.epoch for one in found.parts] == [1, 2] and found.updates == 10
    for one in found.parts:
        assert one.update == one.step + 1 and one.version == one.step
        assert 40 in job.plan.indices(one.step, one.slot)
        step = next(Timeline(run).steps(one.update, one.update))
        own = gradient(run, job, step.before, "train", 40)
        effect = -step.learning_rate / 300
        assert one.own == pytest.approx(effect * own @ own)
        test = gradient(run, job, step.before, "test", 7)
        assert one.test_own == pytest.approx(effect * own @ test)
        moved = job.architecture.unpad(step.after - step.before).ravel()
        assert one.expected == pytest.approx(own @ moved)
        assert one.minibatch_after < one.minibatch_before == pytest.approx(step.loss)
    assert found.totals["own"] == pytest.approx(sum(one.own or 0 for one in found.parts))
    influence = tracin(run, targets_of(run, job)).values[40, 0]
    assert found.totals["test_own"] == pytest.approx(-influence)


def test_what_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    path = trained(tmp_path / "run").folder.path
    for given, words in (
        ({"test": 400}, "test=400: cifar10-sample has 400 test examples, counted from 0"),
        ({"of_class": "cas"}, "has no class cas. Did you mean cat?"),
        ({"test": 1, "of_class": "cat"}, "nothing, or too much, to explain"),
        ({"test": 1, "at": 99}, "has no update 99"),
        ({"test": 1, "method": "magic"}, "method cannot be magic. Give tracin or unrolled"),
    ):
        with pytest.raises(UsageError) as error:
            blame(path, **given)  # type: ignore[arg-type]
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match="has 1,500 training examples"):
        example_history(path, 1500)
