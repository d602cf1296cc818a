"""`distsgd diff` names the first update in which two runs differ, and why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Run

import distsgd
from distsgd.core.optim import Updater
from distsgd.data.dataset import Dataset
from distsgd.data.shards import DatasetWriter
from distsgd.engine.worker import Worker
from distsgd.errors import JournalError, RunError
from distsgd.forensics.difference import diff
from distsgd.forensics.recorded import RecordedRun, _key

SETTINGS: dict[str, Any] = {"workers": 0, "epochs": 3, "batch_size": 100, "slot_size": 25}


def trained(folder: Path, dataset: object = "sample", **settings: Any) -> Path:
    distsgd.train(dataset, run_dir=folder, **{**SETTINGS, **settings})
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "clean")


def flip(values: np.ndarray[Any, Any], entry: int, bit: int) -> None:
    values.view(np.uint32)[entry] ^= np.uint32(1 << bit)


def test_nothing_differs(clean: Path, tmp_path: Path) -> None:
    again = diff(clean, trained(tmp_path / "again", checkpoint_seconds=5))
    assert again.same and again.update is None and again.after == again.compared == 45
    assert [(one.name, one.matters) for one in again.settings] == [("checkpoint_seconds", False)]
    alone = diff(clean)
    assert alone.same and alone.after == 45 and "the same bits" in alone.cause


def test_a_shorter_run_is_the_same_as_far_as_it_goes(clean: Path, tmp_path: Path) -> None:
    settings = {"schedule": "constant"}
    one = trained(tmp_path / "one", epochs=1, **settings)
    found = diff(one, trained(tmp_path / "two", epochs=2, **settings))
    assert found.same and found.after == 15 and "two goes on to update 30" in found.cause


def test_a_setting(clean: Path, tmp_path: Path) -> None:
    found = diff(clean, trained(tmp_path / "other", learning_rate=0.02, log_every=3))
    assert found.update == 1 and not found.same
    assert found.cause == "settings: learning_rate acts first, in update 1"
    assert found.there is not None and not found.there.records and not found.there.pixels
    assert found.there.entries is not None and found.there.entries.differing > 30_000
    assert [one.update for one in found.distances][:3] == [1, 2, 3]
    assert found.distances[-1].update == 45


def test_a_setting_that_acts_later(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"schedule": "step", "step_epochs": 1}
    one = trained(tmp_path / "one", **settings)
    found = diff(one, trained(tmp_path / "two", step_factor=0.5, **settings))
    assert found.update == 16 and found.after == 15
    assert found.cause == "settings: step_factor acts first, in update 16"


def test_the_seed_acts_before_the_first_update(clean: Path, tmp_path: Path) -> None:
    found = diff(clean, trained(tmp_path / "other", seed=1))
    assert found.update == 0 and found.cause == "W differs from the start: seed"


def test_the_order_of_a_policy(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"consistency": "asp", "epochs": 1}
    first = trained(tmp_path / "first", **settings)
    second = trained(tmp_path / "second", slot_size=50, **settings)
    found = diff(first, second)
    assert found.record == found.update == 1 and found.there is not None and found.there.pieces


def test_the_pieces_of_a_minibatch_make_no_difference(clean: Path, tmp_path: Path) -> None:
    """A fleet leases the slots in other pieces; its journal and its settings differ, W does not."""
    run = RecordedRun.find(clean)
    record = next(run._records())
    ((worker, lease),) = record.contributions
    halves = ((worker, lease._replace(last=2)), (worker, lease._replace(first=2)))
    assert _key(replace(record, contributions=halves)) == _key(record)
    other = replace(record, contributions=((worker, lease._replace(version=7)),))
    assert _key(other) != _key(record)


@pytest.mark.parametrize("compress", ["onebit", "fp16"])
def test_encoded_gradients_after_a_resume(compress: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", compress=compress, epochs=2)
    distsgd.resume(run, epochs=3)
    found = diff(run)
    assert found.same and found.after == 45, found.cause


def changed_copy(sample: Dataset, folder: Path, image: int, pixel: int, labels: bool) -> Path:
    folder.mkdir()
    writer = DatasetWriter(folder, sample.manifest.shape, sample.manifest.classes)
    for split in ("train", "test"):
        low = 0
        for number, (rows, own) in enumerate(getattr(sample, split).batches()):
            rows, own = np.array(rows), np.array(own)
            if split == "train" and low <= image < low + len(rows):
                if labels:
                    own[image - low] ^= 1
                else:
                    rows[image - low, pixel] ^= 64
            low += len(rows)
            writer.write(split, f"{split}-{number}.arrow", rows, own)
    writer.finish("copy")
    return folder


@pytest.mark.parametrize("labels", [False, True])
def test_an_image(labels: bool, clean: Path, sample: Dataset, tmp_path: Path) -> None:
    copy = changed_copy(sample, tmp_path / "copy", 700, 500, labels)
    found = diff(clean, trained(tmp_path / "other", str(copy)))
    assert found.data is not None and found.data.count == 1 and found.data.changed is not None
    (row,) = found.data.changed
    assert row.example == 700 and row.label == labels and row.values == (0 if labels else 1)
    if labels:
        assert found.update == row.used[0] and found.there is not None
        assert found.there.labels == (700,) and found.cause.startswith("data: the labels")
    else:
        assert found.update == 1 and found.data.mean and "the mean image" in found.cause
        assert f"first used in update {row.used[0]}" in found.cause


def test_a_run_whose_dataset_is_gone(clean: Path, sample: Dataset, tmp_path: Path) -> None:
    copy = changed_copy(sample, tmp_path / "copy", 700, 500, labels=True)
    other = trained(tmp_path / "other", str(copy))
    shutil.rmtree(copy)
    found = diff(clean, other)
    assert not found.same and found.data is not None and found.data.changed is None
    assert any("cannot be opened" in note for note in found.notes)
    with pytest.raises(RunError, match="cannot be recomputed"):
        diff(other)


def test_other_models_have_nothing_to_compare(clean: Path, tmp_path: Path) -> None:
    found = diff(clean, trained(tmp_path / "other", model="mlp:8", epochs=1))
    assert found.cause.startswith("they have nothing to compare W by: the models are linear and")
    assert not found.same and found.update is None


GRADIENT = (21, 2, 4000, 26)


@pytest.mark.parametrize("alone", [False, True])
def test_a_bit_of_a_gradient(
    alone: bool, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, slot, entry, bit = GRADIENT
    from distsgd.core.model.slot_gradient import LinearKernel

    compute, done = LinearKernel.gradients, [0]

    def faulty(self: Any, weights: Any, labels: Any, out: Any, *rest: Any) -> Any:
        found = compute(self, weights, labels, out, *rest)
        wanted = (update - 1) * 4 + slot - done[0]
        if 0 <= wanted < len(labels):
            flip(out[wanted], entry, bit)
        done[0] += len(labels)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(LinearKernel, "gradients", faulty)
        other = trained(tmp_path / "other")
    found = diff(other) if alone else diff(clean, other)
    assert found.update == update and len(found.departing) == 1
    (fault,) = found.faults
    assert (fault.kind, fault.slots, fault.bit) == ("gradient", ((update - 1, slot),), bit)
    assert fault.entry == "class automobile, pixel x 16, y 28, channel 0"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("kind", ["weights", "read"])
def test_a_bit_of_the_weights(
    kind: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, answer = Updater.apply, Worker.answer

    def writing(self: Updater, total: Any, examples: int, step: int, before: Any = None) -> float:
        rate = apply(self, total, examples, step, before)
        if step == 20:
            flip(self.weights, 5000, 17)
        return rate

    def reading(self: Worker, lease: Any, flat: Any) -> Any:
        if lease.step == 20:
            flip(flat, 5000, 22)
        return answer(self, lease, flat)

    with monkeypatch.context() as patched:
        if kind == "weights":
            patched.setattr(Updater, "apply", writing)
        else:
            patched.setattr(Worker, "answer", reading)
        run = trained(tmp_path / "run", optimizer=optimizer)
    found = diff(run)
    assert found.update == 21
    (fault,) = found.faults
    assert fault.kind == kind and fault.entry == "class automobile, pixel x 24, y 27, channel 1"


def test_a_bit_of_a_pixel_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Dataset
) -> None:
    from distsgd.data.split import Split

    gather = Split.gather

    def faulty(self: Split, indices: Any, out: Any) -> None:
        gather(self, indices, out)
        out[np.flatnonzero(indices == 77), 1234] ^= np.uint8(16)

    with monkeypatch.context() as patched:
        patched.setattr(Split, "gather", faulty)
        run = trained(tmp_path / "run")
    found = diff(run)
    (fault,) = found.faults
    assert (fault.kind, fault.example, fault.bit) == ("pixel", 77, 4)
    assert found.there is not None and fault.slots[0][0] == found.there.steps[0]
    assert found.distances[-1].relative > 0


def test_the_command(distsgd_here: Run, clean: Path, tmp_path: Path) -> None:
    other = trained(tmp_path / "other", learning_rate=0.02)
    done = distsgd_here("diff", str(clean), str(other), "--figure", str(tmp_path / "f.svg"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("W differs from update 1 on\n")
    for words in ("learning_rate", "slots 0 to 3 of step 0 by worker 0", "units in the last place"):
        assert words in done.stdout
    assert (tmp_path / "f.svg").stat().st_size > 1000
    found = json.loads(distsgd_here("diff", str(clean), str(other), "--json").stdout)
    assert found["update"] == 1 and found["there"]["entries"]["of"] == 30730
    nothing = distsgd_here("diff", str(clean), "--figure", str(tmp_path / "g.svg"))
    assert nothing.returncode == 2 and "there is no distance to draw" in nothing.stderr


def test_a_journal_that_is_damaged_is_named(clean: Path, tmp_path: Path) -> None:
    run = shutil.copytree(clean, tmp_path / "run")
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(JournalError):
        diff(clean, run)


def test_without_fingerprints(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older journals have none: checkpoints and replay find the same update."""
    from distsgd.forensics import recorded

    settings: dict[str, Any] = {"schedule": "step", "step_epochs": 1}
    one = trained(tmp_path / "one", **settings)
    two = trained(tmp_path / "two", step_factor=0.5, **settings)
    monkeypatch.setattr(recorded, "_print_of", lambda record: None)
    found = diff(one, two)
    assert found.update == 16 and "recomputed" in found.method
