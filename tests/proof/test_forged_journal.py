"""Journals whose digests somebody has computed anew: what the plan does not have is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distsgd.errors import DistsgdError, JournalError, RunError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import checkpoint_versions, remove_checkpoints
from distsgd.runs.journal import chained
from distsgd.runs.opened_run import open_run
from distsgd.training import TrainResult, train
from distsgd.training.training import resume

Lines = list[dict[str, Any]]
Forgery = Callable[[Lines], object]

_POLICIES: dict[str, dict[str, Any]] = {
    "bsp": {},
    "asp": {"consistency": "asp"},
    "backup": {"consistency": "backup", "backup": 2},
    "local": {"consistency": "local", "local_steps": 3},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, policy in _POLICIES.items():
        trained(folder / name, **policy)
    return folder


def trained(run: Path, **settings: Any) -> TrainResult:
    few: dict[str, Any] = {"workers": 0, "epochs": 2, "batch_size": 200, "slot_size": 30}
    return train("sample", run_dir=run, **{**few, **settings})


def forge(run: Path, forgery: Forgery, *, alone: bool = True) -> None:
    """Change the lines of a journal, and chain them anew.

    Args:
        run: a run folder.
        forgery: changes the lines, without their digests.
        alone: remove what else tells of the updates: the report, and all checkpoints but the first.
    """
    path, digest = run / "journal.jsonl", open_run(run).first
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["d"]
    forgery(lines)
    with path.open("w") as file:
        for line in lines:
            digest = chained(digest, line)
            file.write(json.dumps({**line, "d": digest}) + "\n")
    if alone:
        (run / "report.json").unlink()
        known = checkpoint_versions(run / "checkpoints")
        remove_checkpoints(run / "checkpoints", known[1:])


def lease(place: int, value: object, line: int = 4) -> Forgery:
    """Another number in the first contribution of a line."""
    return lambda lines: lines[line]["c"][0].__setitem__(place, value)


def field(name: str, value: object, line: int = 4) -> Forgery:
    return lambda lines: lines[line].__setitem__(name, value)


def resumed(**changes: object) -> Forgery:
    entry = {"r": 4, "e": 2, "n": 0, "s": 1, "h": "auto", **changes}
    return lambda lines: lines.insert(4, entry)


_OTHERS_STEP = [[0, 9, 0, 7, 4, 1, 0, 4]]

FORGERIES: dict[str, tuple[str, Forgery, str]] = {
    "a worker that never was": ("bsp", lease(0, 1), "no worker 1 in the fleet of 1"),
    "a negative worker": ("bsp", lease(0, -1), "not a record"),
    "a step of 10^15": ("bsp", field("s", 10**15), "no step 1000000000000000"),
    "a step of 10^15 in a lease": ("bsp", lease(1, 10**15), "from step 1000000000000000"),
    "another step": ("bsp", field("c", _OTHERS_STEP), "from step 9"),
    "another rate's step": ("bsp", field("s", 5), "step 4 comes next"),
    "a lease end of 10^12": ("bsp", lease(3, 10**12), "not those of step 4"),
    "a lease of half a step": ("bsp", lease(3, 3), "not those of step 4"),
    "a lease that goes backwards": ("bsp", lease(2, 8), "not those of step 4"),
    "a negative slot": ("bsp", lease(2, -1), "not a record"),
    "a version to come": ("bsp", lease(4, 9), "-5 updates old"),
    "an old version": ("bsp", lease(4, 3), "1 updates old"),
    "10^9 local steps": ("bsp", lease(5, 10**9), "1000000000 steps"),
    "10^9 replicas": ("bsp", lease(6, 10**9), "1000000000 replicas"),
    "a number that is none": ("bsp", lease(3, "7"), "not a record"),
    "a fraction": ("bsp", lease(3, 7.0), "not a record"),
    "true": ("bsp", field("v", True, 0), "not a record"),
    "10^30": ("bsp", lease(7, 10**30), "not a record"),
    "a million digits": ("bsp", field("t", "9" * 10**6), "not a record"),
    "nothing": ("bsp", field("c", []), "nothing contributes"),
    "no list": ("bsp", field("c", {"0": 1}), "not a record"),
    "a short lease": ("bsp", field("c", [[0, 4]]), "not a record"),
    "a slot twice": (
        "bsp", lambda lines: lines[4]["c"].append(lines[4]["c"][0]), "not those of step 4"
    ),
    "something put off": ("bsp", field("q", [[0, 4, 0, 1]]), "puts nothing off"),
    "a huge q": ("backup", field("q", [[5, 4, 0, 10**12]]), "no piece of slots 0 to"),
    "a q of many": (
        "backup", field("q", [[n, 0, n, n + 1] for n in range(10**5)]), "more pieces than"
    ),
    "a q without a place": ("backup", field("q", [[99, 0, 0, 1]]), "no place"),
    "a slot of before": ("backup", lease(1, 0), "was applied before"),
    "an epoch to come": ("backup", lease(1, 12), "not in epoch 1"),
    "a step too early": ("asp", lambda lines: lines[0].update(
        s=5, c=[[0, 5, 0, 7, 0, 1, 0, 0]]), "was not open yet"),
    "a step twice": ("asp", lambda lines: lines[4].update(
        s=0, c=[[0, 0, 0, 7, 4, 1, 0, 4]]), "was applied before"),
    "more local steps": ("local", lease(5, 4, 1), "4 steps from step"),
    "resumed from elsewhere": ("bsp", resumed(r=3), "from version 3, not 4"),
    "resumed for fewer epochs": ("bsp", resumed(e=1), "fewer than 2"),
    "resumed for 10^12 epochs": ("bsp", resumed(e=10**12), "epochs"),
    "resumed with 10^9 workers": ("bsp", resumed(n=10**9), "workers"),
    "resumed with no server": ("bsp", resumed(s=0), "servers"),
    "resumed by a channel that is none": ("bsp", resumed(h="\x1b[31m"), "channel"),
    "resumed by a long channel": ("bsp", resumed(h="x" * 10**6), "not a record"),
    "an answer of before": ("bsp", resumed(), "before the run was resumed"),
    "one update more": (
        "bsp", lambda lines: lines.append({**lines[-1], "v": len(lines) + 1}), "no step|comes next"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("command", [audit, replay, resume], ids=["audit", "replay", "resume"])
def test_what_the_plan_does_not_have_is_refused(
    command: Callable[[Path], object], name: str, runs: Path, tmp_path: Path
) -> None:
    policy, forgery, why = FORGERIES[name]
    run = shutil.copytree(runs / policy, tmp_path / "run")
    forge(run, forgery)
    with pytest.raises(JournalError, match=why) as caught:
        command(run)
    assert caught.value.line > 0
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "forgery",
    [lambda lines: None, lambda lines: lines.append({"w": 3})],
    ids=["nothing changed", "a fleet that grew at the end"],
)
def test_what_the_run_can_have_written_passes(forgery: Forgery, runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "bsp", tmp_path / "run")
    forge(run, forgery)
    assert audit(run).complete
    assert replay(run).updates == 2 * 8


def test_a_run_that_was_forged_as_a_whole_lacks_what_was_kept(runs: Path, tmp_path: Path) -> None:
    """All its files agree, as they are of a training: another one, in the place of this."""
    run, forged = shutil.copytree(runs / "bsp", tmp_path / "run"), tmp_path / "forged"
    kept = audit(run)
    trained(forged, seed=1)
    shutil.rmtree(run)
    forged.rename(run)
    assert audit(run).complete and replay(run).updates == kept.updates
    for digest in (kept.head, kept.checkpoint_sha256):
        with pytest.raises(JournalError, match=digest):
            audit(run, digest)


def test_a_journal_that_was_chained_anew_lacks_what_was_kept(runs: Path, tmp_path: Path) -> None:
    """Its updates and its W are the same, so only the digest of a record tells."""
    run = shutil.copytree(runs / "bsp", tmp_path / "run")
    kept = audit(run)
    forge(run, lambda lines: lines.insert(8, {"w": 2}))
    assert audit(run).complete and replay(run).weights_sha256 == kept.checkpoint_sha256
    with pytest.raises(JournalError, match=kept.head):
        audit(run, kept.head)


@pytest.mark.parametrize(
    ("forgery", "removed"),
    [
        # Each of these is a run that could have been, and none that these files are of.
        (lambda lines: lines.insert(16, {"r": 16, "e": 3, "n": 0, "s": 1, "h": "auto"}), ()),
        (lambda lines: lines.insert(8, {"w": 2}), ("report.json",)),
        (lambda lines: lines.insert(8, {"w": 2}), ("checkpoints/step-000000016.npz",)),
        (lambda lines: lines.__delitem__(slice(12, None)), ("report.json",)),
    ],
)
def test_checkpoints_and_report_tell_what_the_journal_was(
    forgery: Forgery, removed: tuple[str, ...], runs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "bsp", tmp_path / "run")
    assert audit(run).checkpoints == 3
    forge(run, forgery, alone=False)
    for name in removed:
        (run / name).unlink()
    with pytest.raises(JournalError):
        audit(run)


def a_place(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda ledger: ledger.update(changes)


@pytest.mark.parametrize(
    "change",
    [
        a_place(whole=10**15, next=10**15), a_place(next=10**12), a_place(version=10**9),
        a_place(begun=[[10**12, 0]]), a_place(begun=[[16, 10**12]]), a_place(whole=-1),
        a_place(serials=[[0, -1]]), a_place(whole="16"), a_place(version=True),
    ],
)  # fmt: skip
def test_a_checkpoint_that_tells_of_another_plan_is_not_gone_on_from(
    change: Callable[[dict[str, Any]], None], runs: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from distsgd.runs.checkpoint import read_checkpoint, write_checkpoint

    run = shutil.copytree(runs / "bsp", tmp_path / "run")
    folder = run / "checkpoints"
    model = read_checkpoint(folder / "step-000000008.npz")
    assert model.place is not None
    change(model.place.ledger)
    write_checkpoint(folder, replace(model))
    remove_checkpoints(folder, [0, 16])
    with pytest.raises(RunError, match="cannot be resumed"):
        resume(run)


def test_settings_of_another_plan(runs: Path, tmp_path: Path) -> None:
    """10^9 epochs, which the run has not had: nothing is counted up to that."""
    run = shutil.copytree(runs / "bsp", tmp_path / "run")
    forge(run, resumed(e=10**9, r=16))
    with pytest.raises(DistsgdError):
        audit(run)
