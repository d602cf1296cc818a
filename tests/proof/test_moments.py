"""An update as a user names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distsgd.errors import UsageError
from distsgd.proof.moments import end_of_epoch, update_of
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training import train


def trained(folder: Path, **settings: Any) -> OpenedRun:
    given = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25, **settings}
    train("sample", run_dir=folder / "run", **given)
    return open_run(folder / "run")


def test_words_for_updates(tmp_path: Path) -> None:
    run = trained(tmp_path)
    named = {
        0: 0, "7": 7, 45: 45, "last": 45, "last-3": 42, -1: 45, "-45": 1, "epoch:0": 0,
        "epoch:2": 30, " epoch:3 ": 45,
    }  # fmt: skip
    assert {name: update_of(run, name) for name in named} == named
    for name in ("", "first", "epoch:4", "epoch:", "-47", "last-46", "1.5", "9" * 99):
        with pytest.raises(UsageError):
            update_of(run, name)


@pytest.mark.parametrize("settings", [{}, {"consistency": "backup"}, {"consistency": "local"}])
def test_ends_of_epochs_without_metrics(settings: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, **settings)
    found = [end_of_epoch(run, epoch) for epoch in range(4)]
    (run.folder.path / "metrics.jsonl").unlink()
    assert [end_of_epoch(run, epoch) for epoch in range(4)] == found
    with pytest.raises(UsageError, match="has no end of epoch 4: it knows those of epochs up to 3"):
        end_of_epoch(run, 4)
