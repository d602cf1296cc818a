"""Kill the driver of a run in the middle of its writing, resume the run, and compare the bits.

A case is a process that sends itself SIGKILL at a seeded write, fsync, rename or truncation in its
run folder; a write gets half of its bytes out first. So it dies in the middle of checkpoints, the
journal and the metrics. There is a checkpoint after every update, and every other run has a bounded
journal. Half of the resumed runs are killed once more. In the end the SHA-256 of W must be that of
an undisturbed run, the audit and the replay must hold, and every file must be readable. Half a
second a case. With `--ray` the cases are runs on Ray, killed at random times: half a minute a case.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from distsgd.data import folder_files
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import read_checkpoint
from distsgd.training import resume, train
from harness.cases import Verdict, add_arguments, play
from harness.processes import Failure, result, start, wait_for

EPOCHS, RAY_EPOCHS, OPERATIONS = 3, 300, 150
JOURNALS = ("keep", "bounded")


def die_at(number: int, run: Path, note: Path) -> None:
    """Arrange for SIGKILL at the operation of this number, from 1, in the middle of a write."""
    left = number

    def strike(name: str, half: Callable[[], object] = lambda: None) -> None:
        nonlocal left
        if (run / "config.json").exists():
            left -= 1
            if not left:
                half()
                note.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)

    plain = os.write

    def write(file: int, content: bytes) -> int:
        target = Path(f"/proc/self/fd/{file}").readlink().name
        strike(f"write of {target}", lambda: plain(file, content[: len(content) // 2]))
        return plain(file, content)

    def before(name: str) -> None:
        call = getattr(os, name)

        def struck(*arguments: Any, **options: Any) -> Any:
            strike(name)
            return call(*arguments, **options)

        setattr(os, name, struck)

    def replace_inside(
        path: Path, content: bytes, whole: Any = folder_files.replace_inside, **options: Any
    ) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        kind = "checkpoint" if path.suffix == ".npz" else path.name
        strike(f"write of {kind}", lambda: beside.write_bytes(content[: len(content) // 2]))
        whole(path, content, **options)

    os.write = write
    for name in ("fsync", "replace", "rename", "ftruncate"):
        before(name)
    for module in list(sys.modules.values()):
        imported = getattr(module, "replace_inside", None) is folder_files.replace_inside
        if imported and module is not folder_files:
            module.replace_inside = replace_inside  # type: ignore[attr-defined]


def killed(number: int, run: Path, action: Callable[[], object]) -> str:
    """Run an action in a process that dies at an operation; where it died, "" if it did not."""
    note = run.with_name("note")
    note.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            die_at(number, run, note)
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return note.read_text()
    if os.WEXITSTATUS(status):
        raise Failure("the run failed")
    return ""


def check(run: Path, sha: str, undisturbed: str) -> None:
    """All that must hold of a run that was resumed to its end."""
    if sha != undisturbed:
        raise Failure("the bits differ from those of the undisturbed run")
    if not audit(run).complete or replay(run).weights_sha256 != undisturbed:
        raise Failure("the audit or the replay does not hold")
    for path in run.rglob("*"):
        if path.suffix == ".npz":
            read_checkpoint(path)
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".tmp":
            raise Failure(f"{path.name} is left")


@dataclass(frozen=True)
class CrashedRun:
    """A run whose driver is killed, once or twice, and resumed."""

    number: int
    run_dir: Path
    undisturbed: str  # SHA-256 of W
    on_ray: bool

    def run(self) -> Verdict:
        began, places, fault = time.monotonic(), list[str](), ""
        self.run_dir.parent.mkdir()
        try:
            sha = (self._on_ray if self.on_ray else self._inline)(Random(self.number), places)
            check(self.run_dir, sha, self.undisturbed)
        except Exception as error:
            fault = f"{error} (kept in {self.run_dir})"
        return Verdict(
            number=self.number,
            line="on Ray" if self.on_ray else f"journal={JOURNALS[self.number % 2]}",
            faults=(fault,) if fault else (),
            counts=Counter(places),
            seconds=time.monotonic() - began,
        )

    def _inline(self, random: Random, places: list[str]) -> str:
        run = self.run_dir
        settings: dict[str, Any] = {
            "workers": 0, "epochs": EPOCHS, "checkpoint_seconds": 1e-9, "log_every": 2,
            "journal": JOURNALS[self.number % 2],
        }  # fmt: skip
        first = random.randrange(1, OPERATIONS)
        places.append(killed(first, run, lambda: train("sample", run_dir=run, **settings)))
        if random.random() < 0.5:
            places.append(killed(random.randrange(1, 40), run, lambda: resume(run)))
        places[:] = filter(None, places)
        return resume(run).weights_sha256

    def _on_ray(self, random: Random, places: list[str]) -> str:
        """Kill it at a random moment from its first update on, and resume it with other workers."""
        run, journal = self.run_dir, self.run_dir / "journal.jsonl"
        process = start("train", "--dataset", "sample", "--epochs", RAY_EPOCHS, "--run-dir", run)
        has_updates = lambda: journal.exists() and journal.stat().st_size  # noqa: E731
        wait_for(lambda: process.poll() is not None or has_updates())
        time.sleep(random.uniform(0, 2))
        process.kill()
        process.wait()
        places.append("a random time on Ray")
        answer = result("resume", run, "--workers", random.randint(1, 3))
        return str(answer["weights_sha256"])


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, cases=20)
    parser.add_argument("--ray", action="store_true", help="runs on Ray, killed at random times")


def main(given: argparse.Namespace) -> int:
    home = Path(tempfile.mkdtemp(prefix="distsgd-crash-"))
    os.environ["DISTSGD_HOME"] = str(home / "home")
    epochs = RAY_EPOCHS if given.ray else EPOCHS
    undisturbed = train("sample", workers=0, epochs=epochs).weights_sha256
    code = play(lambda n: CrashedRun(n, home / f"case-{n}" / "run", undisturbed, given.ray), given)
    if not code:
        with suppress(OSError):
            shutil.rmtree(home)
    return code
