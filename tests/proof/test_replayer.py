"""Contributions that read one W are recomputed as one piece, with the bits that they have apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.messages import Push
from distsgd.engine.worker import Worker
from distsgd.proof.replay import replay
from distsgd.proof.replayer import Replayer, start_of
from distsgd.runs.checkpoint import checkpoint_path, read_checkpoint
from distsgd.runs.journal import Entry, Record
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.training import train

CUTS = {1: (0, 4), 2: (0, 2, 4), 3: (0, 2, 3, 4)}
"""Workers -> where they cut a minibatch of four slots."""

SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"model": "mlp:8", "loss": "softmax"},
    "momentum": {"optimizer": "momentum"},
    "exact": {"arithmetic": "exact"},
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots of each gradient that is computed in this process."""
    found: list[int] = []
    answer = Worker.answer

    def counted(worker: Worker, lease: Any, *rest: Any) -> Push:
        found.append(lease.last - lease.first)
        return answer(worker, lease, *rest)

    monkeypatch.setattr(Worker, "answer", counted)
    return found


def trained(folder: Path, **settings: Any) -> OpenedRun:
    few = {"workers": 0, "epochs": 1, "batch_size": 100, "slot_size": 25, **settings}
    train("sample", run_dir=folder / "run", **few)
    return open_run(folder / "run")


def shared_out(record: Record, workers: int) -> Record:
    """The record of the same update by several workers."""
    ((_, lease),) = record.contributions
    cuts = CUTS[workers]
    return replace(
        record,
        contributions=tuple(
            (worker, lease._replace(first=cuts[worker], last=cuts[worker + 1]))
            for worker in range(workers)
        ),
    )


def weights_of(run: OpenedRun, entries: list[Entry]) -> list[bytes]:
    """The bits of W of every version."""
    first = read_checkpoint(checkpoint_path(run.folder.checkpoints, 0))
    replayer = Replayer(run.origin, run.dataset, start_of(first), run.products)
    return [weights.tobytes() for _, weights in replayer.versions(entries)]


@pytest.mark.parametrize("name", SETTINGS)
def test_pieces_that_read_one_w_are_computed_as_one(
    name: str, answers: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = trained(tmp_path, **SETTINGS[name])
    records = [entry for entry, _ in run.journal().entries() if isinstance(entry, Record)]
    alone = weights_of(run, list(records))
    assert len(alone) == len(records) + 1 == 16
    for workers in (2, 3):
        entries: list[Entry] = [shared_out(record, workers) for record in records]
        answers.clear()
        assert weights_of(run, entries) == alone
        assert answers == [4] * len(records)
        with monkeypatch.context() as patch:
            patch.setattr(Replayer, "_as_one", lambda replayer, record: None)
            answers.clear()
            assert weights_of(run, entries) == alone
            assert len(answers) == workers * len(records)


def test_pieces_that_read_several_w_stay_apart(answers: list[int], tmp_path: Path) -> None:
    run = trained(tmp_path, consistency="asp")
    records = [entry for entry, _ in run.journal().entries() if isinstance(entry, Record)][:3]
    last = shared_out(records[2], 2)
    (_, lease), other = last.contributions
    stale = replace(last, contributions=((0, lease._replace(version=1)), other))
    answers.clear()
    found = weights_of(run, [*records[:2], stale])
    assert answers == [4, 4, 2, 2]
    assert found[:3] == weights_of(run, list(records))[:3]
    assert found[3] != weights_of(run, [*records[:2], last])[3]


def test_a_replay_says_how_long_its_updates_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a clock that goes on by a second whenever it is read."""
    from itertools import count

    run, clock = trained(tmp_path), count()
    monkeypatch.setattr("distsgd.proof.replay.perf_counter", lambda: float(next(clock)))
    found = replay(run.folder.path)
    # Two readings around all, of which a second falls to each of two checkpoints: 5 - 2 seconds.
    assert found.checkpoints == 2 and found.seconds == 3.0
    assert found.images_per_second == 1500 / 3
