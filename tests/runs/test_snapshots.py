"""The cache of snapshots stays within its bound, and never changes an answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from distsgd import Callback
from distsgd.errors import RunError
from distsgd.proof import timeline as timelines
from distsgd.proof.replayer import Replayer
from distsgd.proof.timeline import Timeline
from distsgd.runs import snapshots as snapshots_of_runs
from distsgd.runs.folder import RunFolder
from distsgd.runs.opened_run import OpenedRun, open_run
from distsgd.runs.snapshots import Snapshots
from distsgd.training import keeper, train
from distsgd.training.forking import fork_with
from distsgd.training.results import EpochRow, Reporter


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    given: dict[str, Any] = {"workers": 0, "epochs": 2, "batch_size": 5, "slot_size": 5}
    train("sample", run_dir=folder, optimizer="momentum", **given)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> OpenedRun:
    """A copy of the run, without snapshots."""
    shutil.copytree(trained, tmp_path / "run")
    return open_run(tmp_path / "run")


def plain(run: OpenedRun, version: int) -> bytes:
    """W recomputed without snapshots."""
    return Timeline(run, cache=False).at(version).weights.tobytes()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def files(run: OpenedRun) -> list[Path]:
    return sorted(run.folder.snapshots.glob("step-*.npz"))


def test_they_are_written_and_used(run: OpenedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(run, 250)
    assert not files(run), "without the cache none are written"
    assert Timeline(run).at(250).weights.tobytes() == expected
    versions = Snapshots(run.folder).versions
    assert versions == [32, 64, 96, 128, 160, 192, 224]
    made = list[int]()
    versions_of = Replayer.versions

    def counted(replayer: Replayer, entries: Any) -> Any:
        for version, weights in versions_of(replayer, entries):
            made.append(version)
            yield version, weights

    monkeypatch.setattr(Replayer, "versions", counted)
    assert Timeline(run).at(250).weights.tobytes() == expected
    assert made == list(range(224, 251))


def test_their_bytes_are_bounded(run: OpenedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    Timeline(run).at(250)
    one = files(run)[0].stat().st_size
    most = int(3.5 * one)

    class Bounded(Snapshots):
        def __init__(self, folder: RunFolder) -> None:
            super().__init__(folder, most)

        def spacing(self, size: int, length: int) -> int:
            return 32 if super().spacing(size, length) else 0

    monkeypatch.setattr(timelines, "Snapshots", Bounded)
    timeline = Timeline(run)
    for version in (590, 40, 140, 430, 64, 280):
        assert timeline.at(version).version == version
        assert one <= size_of(run.folder.snapshots) <= most


def test_spacing_keeps_within_the_bound(run: OpenedRun) -> None:
    found = Snapshots(run.folder, 64 << 20)
    spacing = found.spacing(150_000, 100_000)
    assert 100_000 // spacing * 150_000 <= 64 << 20
    assert found.spacing(65 << 20, 100_000) == 0, "one that is larger than all may be"


def test_a_training_that_thins_out_keeps_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1 << 20
    monkeypatch.setattr(keeper, "Snapshots", lambda folder: Snapshots(folder, most))
    train(
        "sample", run_dir=tmp_path / "run", workers=0, epochs=16, batch_size=380, slot_size=190,
        keep_checkpoints=2,
    )  # fmt: skip
    size = size_of(tmp_path / "run/snapshots")
    assert 0 < size <= most
    run = open_run(tmp_path / "run")
    assert Timeline(run).at(47).weights.tobytes() == plain(run, 47)


@pytest.mark.parametrize("damage", ["short", "empty", "bit", "other"])
def test_a_damaged_one_is_not_used(run: OpenedRun, damage: str) -> None:
    expected = plain(run, 252)
    Timeline(run).at(250)
    assert len(files(run)) > 1
    for path in files(run):
        content = bytearray(path.read_bytes())
        if damage == "other":  # a whole file, but of another update
            content = bytearray(files(run)[0].read_bytes())
        elif damage == "bit":
            content[len(content) // 2] ^= 1
        path.write_bytes({"short": content[:1000], "empty": b""}.get(damage, content))
    if damage == "other":
        files(run)[0].unlink()
    assert Timeline(run).at(252).weights.tobytes() == expected


def test_a_folder_that_cannot_be_written(run: OpenedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_of_runs.os, "access", lambda *_, **__: False)
    expected = plain(run, 70)
    assert Timeline(run).at(70).weights.tobytes() == expected
    assert not run.folder.snapshots.exists()


def test_a_folder_of_snapshots_that_is_a_file_or_a_link(run: OpenedRun, tmp_path: Path) -> None:
    expected = plain(run, 70)
    run.folder.snapshots.write_text("mine")
    assert Timeline(run).at(70).weights.tobytes() == expected
    assert run.folder.snapshots.read_text() == "mine"
    run.folder.snapshots.unlink()
    (tmp_path / "elsewhere").mkdir()
    run.folder.snapshots.symlink_to(tmp_path / "elsewhere")
    assert Timeline(run).at(70).weights.tobytes() == expected
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_at_once(run: OpenedRun) -> None:
    one, other = Timeline(run), Timeline(run)
    steps = zip(one.steps(30, 100), other.steps(30, 100), strict=True)
    for here, there in steps:
        assert here.after.tobytes() == there.after.tobytes()
    for path in files(run):  # one removes what the other knows of
        path.unlink()
    assert one.at(101).weights.tobytes() == plain(run, 101)
    assert other.at(99).weights.tobytes() == plain(run, 99)


def test_a_run_that_is_training(tmp_path: Path) -> None:
    found = list[tuple[int, bytes]]()

    class Looks(Callback):
        def epoch(self, row: EpochRow) -> None:
            timeline = Timeline(open_run(tmp_path / "run"))
            version = timeline.last - 3
            found.append((version, timeline.at(version).weights.tobytes()))

    train(
        "sample", run_dir=tmp_path / "run", workers=0, epochs=3, batch_size=50, slot_size=50,
        callbacks=[Looks()],
    )  # fmt: skip
    assert found
    for version, weights in found:
        assert plain(open_run(tmp_path / "run"), version) == weights


def test_a_fork_begins_from_the_snapshots_of_its_parent(run: OpenedRun, tmp_path: Path) -> None:
    Timeline(run).at(250)
    before = Snapshots(run.folder).versions
    fork_with(run.folder.path, 270, {}, Reporter(), run_dir=tmp_path / "fork")
    fork = open_run(tmp_path / "fork")
    for version in (230, 270, 400):
        assert Timeline(fork).at(version).weights.tobytes() == plain(run, version)
    assert set(before) <= set(Snapshots(run.folder).versions)
    assert all(version > 270 for version in Snapshots(fork.folder).versions)
    shutil.rmtree(run.folder.path)
    with pytest.raises(RunError, match="is gone"):
        Timeline(open_run(tmp_path / "fork")).at(230)
    assert Timeline(fork).at(400).version == 400
