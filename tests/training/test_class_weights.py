"""The setting `class_weight`: what it does, and everything that has to know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Run, on_sample

import distsgd
from distsgd.config.class_weights import class_weights, factors_of
from distsgd.config.jobs import make_job
from distsgd.data.arrays import ArrayDataset, ArraySplit
from distsgd.data.dataset import open_dataset
from distsgd.errors import UsageError, VerificationError
from distsgd.proof.recomputing import Recomputer
from distsgd.training.limits import check_exact

NONE_OUT = np.empty(0, np.int64)


def rare(rows: int = 900, weights: Any = None) -> ArrayDataset:
    """Two overlapping classes, of which the second has a twentieth of the rows."""
    random = np.random.default_rng(5)
    labels = (np.arange(rows) % 20 == 0).astype(np.uint8)
    values = random.standard_normal((rows, 6)).astype(np.float32)
    values[:, 0] += 1.5 * labels
    return ArrayDataset(ArraySplit(values, labels, weights), ("often", "rare"))


def test_balanced_is_what_scikit_learn_means_and_the_mean_is_one() -> None:
    found = factors_of("balanced", rare(), NONE_OUT)
    assert found.classes == pytest.approx((900 / (2 * 855), 900 / (2 * 45)))
    named = factors_of("rare=4", rare(), NONE_OUT).classes
    assert named[1] / named[0] == pytest.approx(4)
    assert 855 * named[0] + 45 * named[1] == pytest.approx(900)


def test_rows_held_out_do_not_count_and_weights_of_rows_multiply() -> None:
    weights = np.random.default_rng(1).uniform(0.5, 2, 900)
    dataset, config = rare(weights=weights), on_sample(validation=0.2, class_weight="rare=3")
    job = make_job(config, dataset)
    used = np.setdiff1d(np.arange(900), job.plan.held_out)
    products = dataset.train.weights[used] * np.array(job.class_factors)[dataset.train.labels[used]]
    assert len(used) == 720 and products.mean() == pytest.approx(1)


def test_a_rare_class_is_found_more_often(tmp_path: Path) -> None:
    X, y = rare().train._rows[0], rare().train.labels
    right = {}
    for how in ("none", "balanced"):
        given = {"epochs": 20, "workers": 0, "run_dir": tmp_path / how}
        distsgd.train((X, y), test=(X, y), class_weight=how, **given)
        right[how] = distsgd.load(tmp_path / how).predictor().scores(X).argmax(axis=1)[y == 1] == 1
    assert right["none"].mean() < 0.3 and right["balanced"].mean() > 0.6


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_audit_replay_resume_and_verify_know_it(tmp_path: Path, arithmetic: str) -> None:
    class Stops(distsgd.Reporter):
        def epoch(self, row: distsgd.EpochRow) -> None:
            raise KeyboardInterrupt

    settings = {"workers": 0, "epochs": 2, "class_weight": {"cat": 3, "dog": 0.25}}
    settings |= {"arithmetic": arithmetic, "validation": 0.2, "verify": 0.2}
    whole = distsgd.train("sample", run_dir=tmp_path / "whole", **settings)
    with pytest.raises(distsgd.errors.TrainingInterrupted):
        distsgd.train("sample", run_dir=tmp_path / "run", reporter=Stops(), **settings)
    assert distsgd.resume(tmp_path / "run").weights_sha256 == whole.weights_sha256
    assert distsgd.audit(tmp_path / "run").complete
    assert distsgd.replay(tmp_path / "run").weights_sha256 == whole.weights_sha256
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert kept["class_weight"] == "cat=3,dog=0.25"
    plain = distsgd.train("sample", run_dir=tmp_path / "plain", **settings | {"class_weight": None})
    assert plain.weights_sha256 != whole.weights_sha256


def test_a_verifier_that_does_not_know_it_sees_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recomputer, "_class_factors", lambda *_: None)
    with pytest.raises(VerificationError):
        distsgd.train("sample", workers=0, epochs=1, class_weight="cat=3", verify=0.5,
                      run_dir=tmp_path / "run")  # fmt: skip


def test_exact_arithmetic_knows_the_largest_factor() -> None:
    config = on_sample(arithmetic="exact", class_weight="cat=100")
    job = make_job(config, open_dataset("sample"))
    assert job.largest_factor == max(job.class_factors) > 8
    assert job.kernel()._grids.factor == job.largest_factor  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="arithmetic='exact' does not go with"):
        check_exact(config, 3072, 10, 2.0**30)


@pytest.mark.parametrize(
    "text", ["", "cat", "cat=", "cat=-1", "cat=nan", "cat=inf", "cat=2,", "cat=1,cat=2", "=2"]
)
def test_what_is_no_class_weight_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"class_weight.* cannot be .*Give none, balanced, or CLASS"
    ):
        on_sample(class_weight=text)


def test_names_may_have_commas_and_equal_signs() -> None:
    assert class_weights("a, b=2,c=d=0.5") == {"a, b": 2, "c=d": 0.5}


def test_unknown_classes_are_refused_with_the_nearest(distsgd_here: Run) -> None:
    found = distsgd_here(
        "train", "--dataset", "sample", "--workers", "0", "--class-weight", "Trukc=2"
    )
    assert found.returncode == 2 and "has no class Trukc. Did you mean truck?" in found.stderr
    with pytest.raises(UsageError, match=r"no class lorry\. It has airplane, "):
        distsgd.train("sample", workers=0, class_weight="lorry=2")
    nothing = ",".join(f"{name}=0" for name in open_dataset("sample").manifest.classes)
    with pytest.raises(UsageError, match="leaves no training example that counts"):
        distsgd.train("sample", workers=0, class_weight=nothing)
