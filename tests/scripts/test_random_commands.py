"""A dozen random command lines of `scripts/faults.py commands`, the same ones each time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from harness.cases import group_of
from harness.commands import Outcome, RandomCommand, faults
from harness.lines import Case, commands, listed
from harness.material import Material

SEED, CASES = 5, 12


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("random") / "material"
    Material(folder).make()
    yield folder


@pytest.mark.parametrize("number", range(CASES))
def test_no_command_line_ends_in_a_fault(material: Path, tmp_path: Path, number: int) -> None:
    case = RandomCommand(SEED, number, material, tmp_path, ray=0.0, strangers=False)
    verdict = case.run()
    assert not verdict.faults, (verdict.line, verdict.output)


def test_all_commands_are_known() -> None:
    """From the command line's own tree, with what their options take."""
    known = {" ".join(command.words): command for command in commands()}
    assert {"train", "data import", "runs list", "cluster start", "study noise"} <= set(known)
    kinds = {one.name: one.kind for one in known["train"].parameters}
    workers = {
        name for name, one in known.items()
        if any((p.name, p.kind) == ("workers", "ray workers") for p in one.parameters)
    }  # fmt: skip
    assert {"train", "resume", "landscape", "search random", "study descent"} <= workers
    assert not {"simulate", "scale"} & workers
    assert {one.kind for one in known["stepsize"].parameters if one.name == "steps"} == {"list"}
    assert kinds["epochs"] == "int"
    assert kinds["config"] == "path"
    assert kinds["run_dir"] == kinds["trace"] == "output"
    assert kinds["set_"] == "setting"
    assert {one.kind for one in known["resume"].parameters if not one.flags} == {"run"}


def test_what_a_help_text_offers() -> None:
    assert listed("softmax or svm. (default: softmax)") == ["softmax", "svm"]
    assert listed("linear, or mlp:HIDDEN, as mlp:20.") == ["linear", "mlp:1", "mlp:20"]
    assert listed("Resize images: ROWSxCOLUMNS, as 32x32.") == ["32x32"]


FINE = "error: no run at x. Check the path.\n"


@pytest.mark.parametrize(
    ("words", "code", "stdout", "stderr", "fault"),
    [
        (["audit"], 1, "", FINE, ""),
        (["audit"], 0, "all holds\n", "", ""),
        (["audit", "--json"], 0, "{}", "", ""),
        (["audit", "--json"], 0, "{}{}", "", "stdout is not one JSON object"),
        (["audit", "--json"], 1, "half", FINE, "stdout is not one JSON object"),
        (["audit"], 1, "", "", "0 error lines"),
        (["audit"], 1, "", FINE * 2, "2 error lines"),
        (["audit"], 1, "", "error: a\x1b[31mb\n", "control characters"),
        (["audit"], 1, "", f"Traceback (most recent call last):\n{FINE}", "Traceback"),
        (["audit"], 0, "", "x.py:1: RuntimeWarning: overflow\n", "RuntimeWarning"),
        (["audit"], 120, "", "", "exit code 120"),
        (["audit"], -11, "", "", "exit code -11"),
        (["audit"], None, "", "", "does not end"),
    ],
)
def test_what_is_a_fault(
    words: list[str], code: int | None, stdout: str, stderr: str, fault: str
) -> None:
    case = Case(0, Path("/nowhere"), words)
    found = faults(case, Outcome(code, {1: stdout, 2: stderr}, 0.0))
    assert [fault in one for one in found] == ([True] if fault else [])


def test_faults_of_one_kind_are_one_group() -> None:
    one = group_of("error: /a/b is 13 bytes, not 'x'")
    assert one == group_of("error: /c is 7.5 bytes, not 'y z'")
