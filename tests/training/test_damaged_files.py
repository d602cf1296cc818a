"""Any file of a run or a dataset, damaged at random: the right result, or an error of our own.

A failure names its case: `damaged(place, CASE)`, and the action that is named, play it again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damages import DAMAGES, flip_bits
from typer.testing import CliRunner

from distsgd.cli.app import app
from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.shards import write_dataset
from distsgd.errors import DistsgdError, RunError
from distsgd.lecture.experiments import gradcheck
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import read_checkpoint, weights_sha256
from distsgd.runs.folder import RunFolder
from distsgd.training import evaluate, resume, train

CASES, CHUNKS = 56, 2
EPOCHS = 3
SETTINGS: dict[str, Any] = {"workers": 0, "batch_size": 16, "slot_size": 4, "log_every": 1,
                            "epochs": EPOCHS, "optimizer": "momentum"}  # fmt: skip


@dataclass
class Place:
    """A sound tree, and where damaged copies of it are put: paths are recorded in runs."""

    sound: Path
    work: Path
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A dataset; a run that has finished; the same, killed in its last epoch."""
    root = tmp_path_factory.mktemp("damaged")
    work = root / "work"
    (work / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def examples(rows: int) -> tuple[Any, Any]:
        labels = (np.arange(rows) % 3).astype(np.uint8)
        return rng.integers(0, 256, (rows, 12), dtype=np.uint8), labels

    write_dataset(
        work / "data", name="tiny", shape=(3, 2, 2), classes=("ant", "bee", "cow"),
        train=examples(120), test=examples(30), shards=2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTSGD_HOME", str(root / "home"))
        patch.setattr(
            os, "fsync", lambda _: None
        )  # no power fails here, and it takes half the time
        train(work / "data", run_dir=work / "run", **SETTINGS)
        shutil.copytree(work / "run", work / "killed")
        kill_in_last_epoch(work / "killed")
        shutil.copytree(work, root / "sound")
        found = Place(root / "sound", work, {})
        for name, act in ACTIONS.items():
            found.expected[name] = act(work)
            restore(found)
        yield found
    shutil.rmtree(root, ignore_errors=True)


def kill_in_last_epoch(run: Path) -> None:
    (run / "report.json").unlink()
    max((run / "checkpoints").iterdir()).unlink()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:40])


def restore(place: Place) -> None:
    shutil.rmtree(place.work)
    shutil.copytree(place.sound, place.work)


# --- what is tried


def train_anew(work: Path) -> object:
    result = train(work / "data", run_dir=work / "new", **SETTINGS)
    return result.weights_sha256, result.test_loss, result.train_accuracy


def go_on(work: Path) -> object:
    result = resume(work / "killed")
    return result.weights_sha256, result.test_loss, result.train_accuracy


def look_at_finished(work: Path) -> object:
    result = resume(work / "run")
    return result.weights_sha256, result.test_loss, result.train_accuracy


def evaluated(work: Path) -> object:
    """Of W at the step that is said, which is not the last one if its checkpoint is gone."""
    found = evaluate(work / "run")
    newest = max((work / "run" / "checkpoints").glob("step-*.npz"))
    assert found.weights_sha256 == weights_sha256(read_checkpoint(newest).weights)
    assert newest.stem == f"step-{found.step:09d}"
    return (found.loss, found.accuracy, found.class_accuracy) if found.step == 24 else None


def evaluated_on_train(work: Path) -> object:
    found = evaluate(work / "run", split="train")
    return found.loss if found.step == 24 else None


def shown(work: Path) -> object:
    done = CliRunner().invoke(app, ["runs", "show", str(work / "run"), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    content = json.loads(done.stdout)
    return content["settings"], content["dataset"]


def shown_to_people(work: Path) -> object:
    for command in (["runs", "show", str(work / "killed")], ["runs", "list"]):
        done = CliRunner().invoke(app, command)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
    return None


def replayed(work: Path) -> object:
    return replay(work / "run").weights_sha256


ACTIONS: dict[str, Callable[[Path], object]] = {
    "evaluate": evaluated,
    "evaluate on train": evaluated_on_train,
    # Of the checkpoints those that can be read count.
    "audit": lambda work: asdict(
        replace(audit(work / "run"), checkpoints=0, checkpoint=0, checkpoint_sha256="")
    ),
    "replay": replayed,
    "runs show --json": shown,
    "runs show, list": shown_to_people,
    "data verify": lambda work: verify_dataset(work / "data").manifest.digest,
    "gradcheck": lambda work: [asdict(row) for row in gradcheck(
        "svm", dataset=str(work / "data"), examples=5, parameters=3)],
    "train": train_anew,
    "resume": go_on,
    "resume what has finished": look_at_finished,
}  # fmt: skip

READS = {
    "data": tuple(name for name in ACTIONS if not name.startswith("runs")),
    "run": tuple(set(ACTIONS) - {"train", "resume", "gradcheck", "data verify"}),
    "killed": ("resume", "runs show, list"),
}
"""Who reads the files of a folder."""

WRITERS = ("train", "resume", "resume what has finished")


# --- the damage


def files(work: Path) -> dict[str, bytes]:
    found = (path for path in work.rglob("*") if path.is_file() and path.name != ".running")
    return {str(path.relative_to(work)): path.read_bytes() for path in sorted(found)}


def damaged(place: Place, case: int) -> tuple[str, list[str]]:
    """Damage one file, or swap two; returns what was done, and who reads them."""
    restore(place)
    chance, whole = random.Random(case), files(place.sound)
    name, other = chance.sample(sorted(whole), 2)
    kind = chance.choice([*DAMAGES, "swapped"])
    if kind == "swapped":
        other = chance.choice([near for near in whole if Path(near).parent == Path(name).parent])
        put(place.work / other, whole[name])
        put(place.work / name, whole[other])
        return f"case {case}: {name} and {other} swapped", readers(name)
    content = whole[name]
    put(place.work / name, DAMAGES[kind](chance, content, whole[other]) if content else b"x")
    return f"case {case}: {name} {kind}", readers(name)


def readers(name: str) -> list[str]:
    """In the order of `ACTIONS`: those who add to a run come last."""
    return [action for action in ACTIONS if action in READS[Path(name).parts[0]]]


def put(path: Path, content: bytes | None) -> None:
    """Another file in its place, as nothing is to change below an open mapping."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def assert_nothing_good_is_lost(
    name: str, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    """Who only looks changes nothing; who trains adds to its own run."""
    for file, content in before.items():
        ours = name in WRITERS and Path(file).name in ("report.json", "metrics.jsonl")
        if file.endswith("journal.jsonl") and name in WRITERS:
            whole = content[: content.rfind(b"\n") + 1]
            assert after[file].startswith(whole), file
        elif file.endswith(".npz") and after.get(file) != content:
            # A damaged checkpoint may be made anew, from the journal.
            assert name in WRITERS and file in after, file
        elif not ours:
            assert after.get(file) == content, file


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_right_result_or_an_error_of_our_own(place: Place, chunk: int) -> None:
    for case in range(chunk, CASES, CHUNKS):
        what, actions = damaged(place, case)
        for name in actions:
            before = files(place.work)
            try:
                found = ACTIONS[name](place.work)
                if found is not None:
                    assert found == place.expected[name]
            except DistsgdError as error:
                assert str(error)
            except BaseException as error:
                raise AssertionError(f"{what}; then {name}: {error!r}") from error
            try:
                assert_nothing_good_is_lost(name, before, files(place.work))
            except AssertionError as error:
                raise AssertionError(f"{what}; then {name} has overwritten: {error}") from error
            if name == "train":
                shutil.rmtree(place.work / "new", ignore_errors=True)


def test_a_corrupt_shard_is_never_trained_on(place: Place) -> None:
    """Every one, whichever of its bits is flipped."""
    for case, shard in enumerate(sorted((place.sound / "data").glob("*.arrow")) * 20):
        restore(place)
        path = place.work / "data" / shard.name
        put(path, flip_bits(random.Random(case), shard.read_bytes(), b""))
        for name in ("train", "resume", "data verify"):
            with pytest.raises(DistsgdError, match=shard.name):
                ACTIONS[name](place.work)
        assert not (place.work / "new").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("chaos", "none"), ("steps", "12"), ("test_accuracy", None), ("staleness", [1]),
     ("verified", 3), ("chaos", {"asked": "x"}), ("waiting_seconds", {"0": "long"})],
)  # fmt: skip
def test_a_report_whose_digest_holds_but_not_its_values(
    name: str, value: object, tmp_path: Path
) -> None:
    train("sample", workers=0, epochs=1, run_dir=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert resume(tmp_path / "run").status == "finished"
    folder.write("report.json", {**folder.read("report.json"), name: value})
    with pytest.raises(RunError, match=r"report\.json is damaged: .*Remove it") as caught:
        resume(tmp_path / "run")
    assert len(str(caught.value)) < 1000


def test_a_long_value_does_not_make_a_long_error(tmp_path: Path) -> None:
    train("sample", workers=0, epochs=1, run_dir=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    config = folder.read("config.json")
    config["settings"]["loss"] = "x" * 10_000
    folder.write("config.json", config)
    with pytest.raises(RunError, match=r"config\.json is damaged") as caught:
        resume(tmp_path / "run")
    assert len(str(caught.value)) < 1000
