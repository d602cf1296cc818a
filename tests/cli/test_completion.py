"""Completion in the shells, and what is suggested after a slip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import PATIENCE, Run
from typer.main import get_command

from distsgd.cli.app import app
from distsgd.cli.completion_commands import SHELLS, script

CASES = {
    "distsgd tr": {"train"},
    "distsgd runs sh": {"show"},
    "distsgd train --resume-i": {"--resume-if-exists"},
    "distsgd train --loss so": {"softmax"},
    "distsgd train --consistency a": {"asp"},
    "distsgd train --dataset ": {"cifar10", "sample", "flowers"},
    "distsgd train --batch-size f": {"full"},
    "distsgd train --set mom": {"momentum="},
    "distsgd resume n": {"nightly"},
    "distsgd docs serv": {"serve", "service"},
    "distsgd train --log-format j": {"json"},
    "distsgd completion z": {"zsh"},
}
BASH = """
source "$1"
read -ra COMP_WORDS <<< "$2"
[ "${2% }" = "$2" ] || COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_distsgd 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
zmodload zsh/zpty
zpty shell 'TERM=dumb zsh -f -i'
ask() { zpty -w -n shell "$1"; zpty -r shell answer "*$2*"; }
zpty -w shell "PS1=; source $1; bindkey '^I' complete-word; print REA''DY"
zpty -r shell answer '*READY*'
for line word in "distsgd train --loss=sof" softmax "distsgd runs sho" show; do
    zpty -w -n shell $line$'\\t'
    zpty -r shell answer "*$word*" || exit 1
    zpty -w shell ' #'
    print $word
done
"""


@pytest.fixture
def surroundings(private_home: Path, tmp_path: Path) -> dict[str, str]:
    """A cache with a dataset and a home with a run."""
    (private_home / "runs" / "nightly").mkdir(parents=True)
    (tmp_path / "cache" / "datasets" / "flowers").mkdir(parents=True)
    return {**os.environ, "DISTSGD_CACHE": str(tmp_path / "cache")}


def written(shell: str, folder: Path) -> Path:
    file = folder / f"distsgd.{shell}"
    file.write_text(script(get_command(app), shell), encoding="utf-8")
    return file


def completed(*command: object, env: dict[str, str]) -> list[str]:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bash(surroundings: dict[str, str], tmp_path: Path) -> None:
    file = written("bash", tmp_path)
    for line, expected in CASES.items():
        found = completed("bash", "--norc", "-c", BASH, "bash", file, line, env=surroundings)
        assert set(found) == expected, line


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(surroundings: dict[str, str], tmp_path: Path) -> None:
    file = written("fish", tmp_path)
    for line, expected in CASES.items():
        asked = f"source {file}; complete -C '{line}'"
        found = completed("fish", "-N", "-c", asked, env=surroundings)
        assert {word.partition("\t")[0] for word in found} == expected, line


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh(surroundings: dict[str, str], tmp_path: Path) -> None:
    file = written("zsh", tmp_path)
    assert completed("zsh", "-f", "-c", ZSH, "zsh", file, env=surroundings) == ["softmax", "show"]


def test_the_command_prints_the_script_and_refuses_other_shells(distsgd_here: Run) -> None:
    for shell in SHELLS:
        done = distsgd_here("completion", shell)
        assert done.returncode == 0 and "--resume-if-exists" in done.stdout.replace("-l ", "--")
    done = distsgd_here("completion", "tcsh")
    assert done.returncode == 2 and "Give bash, zsh or fish" in done.stderr


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("trian", "Did you mean 'train'?"),
        ("runs lst", "Did you mean 'list'?"),
        ("verfy", "Did you mean `distsgd data verify`?"),
        ("train --epoch 3", "--epochs EPOCHS"),
        ("train -epochs 3", "Did you mean --epochs?"),
        ("train --lr 1", "--learning-rate LEARNING_RATE"),
        ("train --set epoch=3", "Did you mean --set epochs=3?"),
        ("evaluate --dataste sample", "--dataset"),
        ("frobnicate", "distsgd --help`."),
    ],
)
def test_a_slip_gets_a_suggestion(distsgd_here: Run, line: str, suggestion: str) -> None:
    done = distsgd_here(*line.split())
    assert done.returncode == 2 and suggestion in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
