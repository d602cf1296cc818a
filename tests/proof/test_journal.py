"""Audit and replay: every run holds, any altered journal does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Run

from distsgd.errors import JournalError
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.opened_run import open_run
from distsgd.training import TrainResult, train

POLICIES: list[dict[str, Any]] = [
    {"consistency": "bsp", "optimizer": "nesterov"},
    {"consistency": "ssp", "staleness": 3},
    {"consistency": "asp", "optimizer": "adam", "learning_rate": 1e-3},
    {"consistency": "backup", "backup": 2},
    {"consistency": "local", "local_steps": 3},
]


def run(workers: int, **settings: Any) -> TrainResult:
    return train("sample", workers=workers, epochs=3, batch_size=200, slot_size=30, **settings)


def assert_holds(result: TrainResult) -> None:
    found = audit(result.run_dir)
    assert found.complete and found.epochs == 3
    assert found.examples == result.examples_seen == 4500
    assert set(found.class_examples.values()) == {450}
    again = replay(result.run_dir)
    assert again.weights_sha256 == result.weights_sha256
    assert again.checkpoints == 4


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["consistency"])
def test_inline_runs_hold_and_replay(policy: dict[str, Any]) -> None:
    assert_holds(run(0, **policy))


@pytest.mark.ray
def test_a_run_on_ray_holds_and_replays(shared_ray: None) -> None:
    """The policies other than bsp: `tests/training/test_chaos_watch.py`."""
    result = run(3, optimizer="nesterov")
    assert_holds(result)
    assert sum(result.staleness.values()) >= result.steps


@pytest.mark.parametrize(
    "same", [{"consistency": "ssp", "staleness": 0}, {"consistency": "local", "local_steps": 1}]
)
def test_policies_that_are_bsp_in_other_words(same: dict[str, Any]) -> None:
    assert run(0, **same).weights_sha256 == run(0).weights_sha256


@pytest.mark.ray
def test_and_so_on_ray(shared_ray: None) -> None:
    assert run(2, consistency="local", local_steps=1).weights_sha256 == run(0).weights_sha256


Change = Callable[[list[str]], None]


def removed(lines: list[str]) -> None:
    del lines[9]


def doubled(lines: list[str]) -> None:
    lines.insert(9, lines[9])


def cut_off(lines: list[str]) -> None:
    del lines[-1]


def swapped(lines: list[str]) -> None:
    lines[9], lines[10] = lines[10], lines[9]


def worker_altered(lines: list[str]) -> None:
    content = json.loads(lines[9])
    content["c"][0][0] += 1
    lines[9] = json.dumps(content)


def garbled(lines: list[str]) -> None:
    lines[9] = lines[9][:20]


@pytest.mark.parametrize("change", [removed, doubled, swapped, worker_altered, garbled, cut_off])
def test_an_altered_journal_is_caught(change: Change, distsgd_here: Run) -> None:
    result = run(0)
    path = Path(result.run_dir) / "journal.jsonl"
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")
    where = len(lines) + 1 if change is cut_off else 10
    if change is doubled:
        where = 11
    for check in (audit, replay):
        with pytest.raises(JournalError) as caught:
            check(result.run_dir)
        assert caught.value.line == where
    for command in ("audit", "replay"):
        done = distsgd_here(command, result.run_dir, "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["record"] == where
        assert f"record {where}" in done.stderr


def test_a_journal_of_another_run_is_caught() -> None:
    one, other = run(0), run(0, seed=1)
    journal = Path(one.run_dir) / "journal.jsonl"
    journal.write_bytes((Path(other.run_dir) / "journal.jsonl").read_bytes())
    with pytest.raises(JournalError):
        audit(one.run_dir)


def test_w_that_was_not_made_by_the_journal_is_caught() -> None:
    from dataclasses import replace

    from distsgd.runs.checkpoint import read_checkpoint, write_checkpoint

    result = run(0)
    folder = Path(result.run_dir) / "checkpoints"
    model = read_checkpoint(folder / "step-000000016.npz")
    weights = model.weights.copy()
    weights[3, 7] += 1e-7
    write_checkpoint(folder, replace(model, weights=weights))
    with pytest.raises(JournalError, match="record 16: the checkpoint of version 16 has other"):
        replay(result.run_dir)


@pytest.mark.parametrize(
    "wrong",
    [
        ({"consistency": "bsp", "staleness": 2}, "staleness does not go with consistency='bsp'"),
        ({"consistency": "ssp", "staleness": -1}, "staleness cannot be -1"),
        ({"consistency": "backup", "backup": 7}, "backup=7 .*batch_size=200"),
        ({"consistency": "local", "local_steps": 0}, "local_steps cannot be 0"),
        ({"consistency": "gossip"}, "consistency cannot be gossip.*bsp, ssp, asp, backup, local"),
        ({"consistency": "local", "local_steps": 4, "optimizer": "adam"},
         "consistency='local' with .*optimizer='adam'"),
    ],
)  # fmt: skip
def test_policies_that_cannot_be(wrong: tuple[dict[str, Any], str]) -> None:
    from distsgd.errors import UsageError

    settings, words = wrong
    with pytest.raises(UsageError, match=words):
        run(0, **settings)


@pytest.mark.ray
@pytest.mark.parametrize(("channel", "compress"), [("tcp", "topk:0.01"), ("ray", "onebit")])
def test_compressed_runs_replay_on_every_channel(
    channel: str, compress: str, shared_ray: None
) -> None:
    """Other pairs than those with several servers in `tests/on_ray/test_servers.py`."""
    result = run(2, compress=compress, channel=channel, consistency="asp")
    assert_holds(result)
    whole = run(0, consistency="asp")
    assert result.bytes_per_update < whole.bytes_per_update / 1.9


def test_compression_that_cannot_be() -> None:
    from distsgd.errors import UsageError

    with pytest.raises(UsageError, match="compress cannot be topk:2"):
        run(0, compress="topk:2")


def test_a_journal_stays_open_while_its_lines_are_read(tmp_path: Path) -> None:
    lines = open_run(run(0, run_dir=tmp_path / "run").run_dir).journal().entries()
    first, *others = lines
    assert first and others


def forge_fingerprint(run_dir: str, update: int, flip: int) -> None:
    """Change the fingerprint of an update by a difference, and chain the journal anew."""
    from distsgd.runs.journal import chained

    path, digest = Path(run_dir) / "journal.jsonl", open_run(run_dir).first
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["d"]
        if line["v"] == update:
            line["f"] = f"{(int(line['f'], 16) + flip) % 2**64:016x}"
        digest = line["d"] = chained(digest, line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (Path(run_dir) / "report.json").unlink()


def test_replay_names_the_update_whose_w_differs() -> None:
    from distsgd.core.fingerprint import multipliers

    result = run(0)
    assert replay(result.run_dir).fingerprints == result.steps
    forge_fingerprint(result.run_dir, 11, int(multipliers(9)[8]) << 3)
    with pytest.raises(JournalError, match=r"record 11: .* after update 11, first here"):
        replay(result.run_dir)


def test_a_journal_without_fingerprints_holds() -> None:
    """As older ones, and those of several servers."""
    result = run(0, servers=2)
    assert '"f"' not in (Path(result.run_dir) / "journal.jsonl").read_text()
    assert_holds(result)
    assert replay(result.run_dir).fingerprints == 0
