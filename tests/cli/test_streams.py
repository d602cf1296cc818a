"""Commands that are started without standard streams, as daemons are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, command_line

from distsgd.cli.streams import open_missing_streams
from distsgd.proof.audit import audit

TRAIN = ("train", "--dataset", "sample", "--workers", 0, "--epochs", 1, "--json")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_training_without_a_stream(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command_line(*TRAIN, "--run-dir", "run")],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert audit(tmp_path / "run").complete
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    if " >&-" in f" {closed}":
        assert done.stdout == ""
    else:
        assert json.loads(done.stdout)["weights_sha256"] == report["weights_sha256"]
    assert ("epoch" in done.stderr) == ("2>&-" not in closed)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_file_that_is_opened_later_is_no_stream(closed: tuple[int, ...]) -> None:
    child = os.fork()
    if not child:
        for number in closed:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        open_missing_streams()
        streams = (sys.stdin, sys.stdout, sys.stderr)
        print("nobody reads this", file=sys.stderr, flush=True)
        whole = all(streams) and all(os.get_inheritable(number) for number in range(3))
        os._exit(not (whole and os.open(os.devnull, os.O_RDONLY) > 2))
    assert os.waitpid(child, 0)[1] == 0


LIBRARY = """
import os, sys
os.close(0), os.close(1), os.close(2)
import distsgd
class Reporter(distsgd.Reporter):
    def epoch(self, row):
        for number in range(3):
            os.write(number, b"what a library prints")
distsgd.train("sample", workers=0, epochs=1, run_dir="run", reporter=Reporter())
distsgd.resume("run", epochs=2, reporter=Reporter())
for number in range(3):
    try:
        os.fstat(number)
    except OSError:
        continue
    sys.exit(3)
"""


def test_a_program_without_streams_trains_too(tmp_path: Path) -> None:
    """And is left as it was: the three are closed again."""
    assert subprocess.run([sys.executable, "-c", LIBRARY], cwd=tmp_path).returncode == 0
    assert audit(tmp_path / "run").complete


def test_streams_that_are_there_stay() -> None:
    before = sys.stdin, sys.stdout, sys.stderr, [os.fstat(number).st_ino for number in range(3)]
    open_missing_streams()
    after = sys.stdin, sys.stdout, sys.stderr, [os.fstat(number).st_ino for number in range(3)]
    assert after == before
