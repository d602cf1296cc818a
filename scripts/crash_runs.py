"""Runs whose driver is killed at a random moment of its writing, then resumed.

    python scripts/crash_runs.py [RUNS=20] [--first SEED] [--ray RUNS]

Each run is a process that sends itself SIGKILL at a seeded write, fsync, rename or truncation in
its run folder: a write gets half of its bytes out first. So the middle of a checkpoint, of the
journal and of the metrics are all hit. There is a checkpoint after every update, and every other
run has a bounded journal. Half of the resumed runs are killed once more. In the end the SHA-256 of
W must be that of the run in peace, the audit and the replay must hold, and every file be readable.
With --ray, so many runs on Ray are killed at random times too. Exit code 1 if one fails. Takes half
a second a run, and half a minute a run on Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from distsgd.data import folder_files
from distsgd.proof.audit import audit
from distsgd.proof.replay import replay
from distsgd.runs.checkpoint import read_checkpoint
from distsgd.training.training import resume, train

EPOCHS, BATCH, OPERATIONS = 3, 256, 150


def die_at(number: int, run: Path, word: Path) -> None:
    """Arrange for SIGKILL at the operation of this number, from 1, in the middle of a write."""
    left = number

    def strike(name: str, half: Callable[[], object] = lambda: None) -> None:
        nonlocal left
        if (run / "config.json").exists():
            left -= 1
            if not left:
                half()
                word.write_text(name)
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
        plainly = getattr(module, "replace_inside", None) is folder_files.replace_inside
        if plainly and module is not folder_files:
            module.replace_inside = replace_inside  # type: ignore[attr-defined]


def killed(number: int, run: Path, what: Callable[[], object]) -> str:
    """Do something in a process that dies at an operation; where it died, "" if it did not."""
    word = run.with_name("word")
    word.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            die_at(number, run, word)
            what()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return word.read_text()
    if os.WEXITSTATUS(status):
        raise RuntimeError("the run failed")
    return ""


def check(run: Path, sha: str, peace: str) -> None:
    """All that must hold of a run that was resumed to its end."""
    if sha != peace:
        raise RuntimeError("other bits than the run in peace")
    if not audit(run).complete or replay(run).weights_sha256 != peace:
        raise RuntimeError("the audit or the replay does not hold")
    for path in run.rglob("*"):
        if path.suffix == ".npz":
            read_checkpoint(path)
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".tmp":
            raise RuntimeError(f"{path.name} is left")


def one(seed: int, run: Path, peace: str) -> list[str]:
    """Returns where it was killed."""
    random = Random(seed)
    settings: dict[str, Any] = {
        "workers": 0, "epochs": EPOCHS, "batch_size": BATCH, "checkpoint_seconds": 1e-9,
        "log_every": 2, "journal": ("keep", "bounded")[seed % 2],
    }  # fmt: skip
    first = random.randrange(1, OPERATIONS)
    places = [killed(first, run, lambda: train("sample", run_dir=run, **settings))]
    if random.random() < 0.5:
        places.append(killed(random.randrange(1, 40), run, lambda: resume(run)))
    check(run, resume(run).weights_sha256, peace)
    return [place for place in places if place]


def one_on_ray(seed: int, run: Path, peace: str) -> list[str]:
    """The same with two workers on Ray, killed after a random time from its first update on."""
    random = Random(seed)
    command = [sys.executable, "-m", "distsgd"]
    training = [*command, "train", "--dataset", "sample", "--epochs", "300", "--run-dir", run]
    process = subprocess.Popen([*map(str, training)], stdout=subprocess.DEVNULL)
    journal = run / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 2))
    process.kill()
    process.wait()
    again = [*command, "resume", str(run), "--workers", str(random.randint(1, 3)), "--json"]
    done = subprocess.run(again, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    check(run, json.loads(done.stdout)["weights_sha256"], peace)
    return ["a random time on Ray"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int, nargs="?", default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--ray", type=int, default=0)
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="distsgd-crash-"))
    os.environ["DISTSGD_HOME"] = str(home / "home")
    failed, struck = 0, Counter[str]()
    rounds = [(one, EPOCHS, given.runs), (one_on_ray, 300, given.ray)]
    for kind, epochs, runs in rounds:
        peace = train("sample", workers=0, epochs=epochs).weights_sha256 if runs else ""
        for seed in range(given.first, given.first + runs):
            run = home / f"{kind.__name__}-{seed}" / "run"
            run.parent.mkdir()
            try:
                places = kind(seed, run, peace)
                struck.update(places)
                print(f"{seed}: same bits; killed at {', then '.join(places) or 'nothing'}")
            except Exception as error:
                failed += 1
                print(f"{seed}: FAILS: {error} (kept in {run})")
    print(f"\n{given.runs + given.ray - failed} of {given.runs + given.ray} hold; {dict(struck)}")
    if not failed:
        with suppress(OSError):
            shutil.rmtree(home)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
