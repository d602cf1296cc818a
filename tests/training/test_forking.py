"""A fork goes on from any update of its parent, with other settings or in the parent's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distsgd.training import train
from distsgd.training.forking import fork_with
from distsgd.training.results import Reporter, TrainResult

BASE: dict[str, Any] = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25}

POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {"optimizer": "momentum"},
    "ssp": {"consistency": "ssp", "staleness": 2},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup", "backup": 1},
    "local": {"consistency": "local", "local_steps": 3},
}


def trained(folder: Path, name: str = "run", **settings: Any) -> TrainResult:
    return train("sample", run_dir=folder / name, **{**BASE, **settings})


def forked(parent: Path, at: int | str, name: str = "fork", **given: Any) -> TrainResult:
    options = {key: given.pop(key) for key in ("order", "whole") if key in given}
    return fork_with(parent, at, given, Reporter(), run_dir=parent.parent / name, **options)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ["recorded", "live"])
def test_without_changes_it_ends_as_its_parent(policy: str, order: str, tmp_path: Path) -> None:
    parent = trained(tmp_path, **POLICIES[policy])
    for at in (0, parent.steps // 2, parent.steps - 1, parent.steps):
        fork = forked(tmp_path / "run", at, f"fork-{at}", order=order)
        assert fork.weights_sha256 == parent.weights_sha256, at
        assert fork.steps == parent.steps and fork.status == "finished"
