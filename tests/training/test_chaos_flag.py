"""Requests for chaos, and the errors of those that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distsgd.core.chaos import PROCESS_FAULTS, PUSH_FAULTS, Fault
from distsgd.errors import UsageError
from distsgd.training.chaos import SILENCE, chaos_from

FAULTS = (Path(__file__).parents[2] / "distsgd/docs/faults.md").read_text(encoding="utf-8")


def test_every_fault() -> None:
    chaos = chaos_from(
        "kill-worker:every=50, stop-worker:for=2s:every=200,kill-server:at=300,drop-push:p=0.01,"
        "dup-push:p=1,delay:p=0.01:for=20ms",
        seed=3, workers=1,
    )  # fmt: skip
    assert chaos.faults == (
        Fault("kill-worker", every=50),
        Fault("stop-worker", every=200, seconds=2.0),
        Fault("kill-server", at=300),
        Fault("drop-push", share=0.01, seconds=SILENCE),
        Fault("dup-push", share=1.0),
        Fault("delay", share=0.01, seconds=0.02),
    )
    assert chaos.seed == 3
    assert {fault.name for fault in chaos.faults} == {*PROCESS_FAULTS, *PUSH_FAULTS}


def test_a_seed_of_its_own_and_the_same_fault_twice() -> None:
    chaos = chaos_from("kill-server:at=1,seed=7,kill-server:at=9", seed=3, workers=1)
    assert chaos.seed == 7
    assert [fault.at for fault in chaos.faults] == [1, 9]


@pytest.mark.parametrize(
    ("text", "piece", "word"),
    [
        ("", "", "no fault"),
        ("kill-worker:at=5,", "", "no fault"),
        ("seed=3", "seed=3", "no fault is requested"),
        ("delay:p=0.1:for=1s,kill-wroker:at=5", "kill-wroker:at=5", "Did you mean kill-worker?"),
        ("burn-disk", "burn-disk", "There are: kill-worker"),
        ("kill-worker", "kill-worker", "every= and at="),
        ("kill-worker:at=5:every=5", "kill-worker:at=5:every=5", "one of every= and at="),
        ("kill-worker:at=5:at=6", "kill-worker:at=5:at=6", "twice"),
        ("kill-worker:evry=5", "kill-worker:evry=5", "'evry=5' is not understood"),
        ("kill-worker:5", "kill-worker:5", "'5' is not understood"),
        ("kill-worker:p=0.1", "kill-worker:p=0.1", "every=UPDATES or at=UPDATE"),
        ("kill-worker:every=0", "kill-worker:every=0", "1 or more"),
        ("kill-worker:at=2.5", "kill-worker:at=2.5", "whole number"),
        ("kill-worker:at=²", "kill-worker:at=²", "whole number"),
        ("stop-worker:at=5", "stop-worker:at=5", "it needs for="),
        ("stop-worker:at=5:for=2", "stop-worker:at=5:for=2", "such as 2s or 20ms"),
        ("stop-worker:at=5:for=0s", "stop-worker:at=5:for=0s", "such as 2s or 20ms"),
        ("stop-worker:at=5:for=-1s", "stop-worker:at=5:for=-1s", "such as 2s or 20ms"),
        ("dup-push", "dup-push", "it needs p="),
        ("dup-push:p=0", "dup-push:p=0", "above 0"),
        ("dup-push:p=1.5", "dup-push:p=1.5", "up to 1"),
        ("dup-push:p=nan", "dup-push:p=nan", "up to 1"),
        ("dup-push:p=x", "dup-push:p=x", "p cannot be 'x'"),
        ("drop-push:p=1", "drop-push:p=1", "below 1"),
        ("delay:p=0.5", "delay:p=0.5", "it needs for="),
        ("delay:p=0.5:for=1s,seed=-1", "seed=-1", "0 or more"),
        ("seed=1,delay:p=0.5:for=1s,seed=2", "seed=2", "twice"),
    ],
)
def test_errors_name_the_bad_piece(text: str, piece: str, word: str) -> None:
    with pytest.raises(UsageError) as found:
        chaos_from(text, seed=0, workers=2)
    assert f"chaos: '{piece}': " in str(found.value)
    assert word in str(found.value)


@pytest.mark.parametrize("name", PROCESS_FAULTS)
def test_one_process_has_nobody_to_kill(name: str) -> None:
    text = f"delay:p=0.1:for=1ms,{name}:at=5{':for=1s' if name == 'stop-worker' else ''}"
    with pytest.raises(UsageError, match=f"'{name}:at=5.*workers=0 trains in one process"):
        chaos_from(text, seed=0, workers=0)
    assert chaos_from(text, seed=0, workers=1)


def test_the_table_of_the_manual_is_complete_and_true() -> None:
    examples = re.findall(r"^\| `((?:\w+-)?\w+:[^`]*=[^`]*)` \|", FAULTS, re.MULTILINE)
    found = [chaos_from(example, seed=0, workers=1).faults[0].name for example in examples]
    assert sorted(found) == sorted((*PROCESS_FAULTS, *PUSH_FAULTS))
