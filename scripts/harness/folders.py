"""Play hostile run folders, datasets and sources to every command that reads them.

A case is one folder, drawn from sound ones by `harness/harm.py`: links, pipes, devices, sockets and
folders in place of files, values of any kind in files whose digests hold, journals that are chained
anew, archives and shards that unpack to gigabytes or claim to, addresses of a listener. It is made
anew for each command, and passes if each of them

- exits with 0, 1 or 2, without a traceback, a "bug in distsgd" or a signal, and says in exactly
  one line why it ended with 1 or 2; it never blames the memory of the machine;
- takes at most 5 s of processor time and 500 MB of memory. A training that continues such a run may
  take longer, if SIGTERM ends it;
- leaves what lies outside the folder as it was: content, modes and times;
- connects to nothing: the addresses are those of a listener on loopback.

Commands run in children of a process that has imported distsgd, so that start-up does not count. A
case takes four seconds of processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from harness.cases import Verdict, add_arguments, play
from harness.harm import COMMANDS, Hostile
from harness.judging import errors_in, faults_of, plain_lines
from harness.processes import computed

SECONDS, MEGABYTES = 5.0, 500
WAITED, TO_STOP = 60.0, 20.0
"""Seconds in all after which a command is asked to end; and then to end in."""

ADDRESS_SPACE = 3 * 2**30
BLAMES_MEMORY = re.compile(r"too little memory|annot allocate memory")
TRAINS = ("resume", "train", "replay", "simulate")


@dataclass(frozen=True)
class Outcome:
    code: int | None  # negative for a signal; None if it did not end
    text: str
    computed: float
    megabytes: int
    stopped: bool


def material(folder: Path) -> None:
    """Train runs of several kinds, and import a dataset, once."""
    from distsgd.data.importing.import_dataset import import_dataset
    from distsgd.data.locations import SAMPLE
    from distsgd.training.training import train

    rows = "".join(f"{n % 7},{n % 5},{'ab'[n % 2]}\n" for n in range(60))
    (folder / "plain.csv").write_text("u,v,label\n" + rows)
    os.environ.update(DISTSGD_CACHE=f"{folder}/cache", DISTSGD_HOME=f"{folder}/home")
    import_dataset(folder / "plain.csv", "columns")
    shutil.copytree(folder / "cache/datasets/columns", folder / "columns")
    shutil.copytree(SAMPLE, folder / "sample")
    few = {"workers": 0, "epochs": 3, "batch_size": 200, "slot_size": 30}
    kinds = {
        "good": {}, "asp": {"consistency": "asp"}, "backup": {"consistency": "backup", "backup": 2},
        "local": {"consistency": "local", "local_steps": 3}, "topk": {"compress": "topk:0.1"},
        "bounded": {"journal": "bounded", "checkpoint_seconds": 1e-9},
    }  # fmt: skip
    for name, settings in kinds.items():
        train("sample", run_dir=folder / name, **{**few, **settings})  # type: ignore[arg-type]
    train("columns", run_dir=folder / "rows", batch_size=8, workers=0, epochs=1)
    from PIL import Image

    Image.new("RGB", (32, 32)).save(folder / "picture.png")


# ---------------------------------------------------------------- one command


def run_command(words: list[str], folder: Path) -> Outcome:
    """Run it in a child, until it ends or has taken too long."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_command(words, folder, write)
    os.close(write)
    os.set_blocking(read, False)
    output, began, stopped = b"", time.monotonic(), 0.0
    while True:
        with suppress(BlockingIOError):
            output = (output + os.read(read, 1 << 20))[-1_000_000:]
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        now = time.monotonic()
        if not stopped and (now - began > WAITED or computed(pid) > 2 * SECONDS):
            stopped = now
            os.kill(pid, signal.SIGTERM)
        if stopped and now - stopped > TO_STOP:
            os.killpg(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            break
        time.sleep(0.01)
    while piece := _rest(read):
        output = (output + piece)[-1_000_000:]
    os.close(read)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    unstoppable = stopped and code == -signal.SIGKILL
    return Outcome(
        None if unstoppable else code, output.decode("utf-8", "surrogateescape"),
        used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, bool(stopped),
    )  # fmt: skip


def _rest(read: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(read, 1 << 20)
    return b""


def _become_command(words: list[str], folder: Path, write: int) -> None:
    """In the child: the command line, as a shell would start it."""
    code = 99
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for stream, file in ((0, nothing), (1, write), (2, write)):
            os.dup2(file, stream)
        os.closerange(3, 256)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        os.chdir(folder / "cwd")
        for name in [name for name in os.environ if name.startswith(("DISTSGD", "RAY", "AWS"))]:
            del os.environ[name]
        os.environ.update(
            DISTSGD_HOME=f"{folder}/home", DISTSGD_CACHE=f"{folder}/cache", HOME=f"{folder}/home",
            TMPDIR=f"{folder}/cwd", COLUMNS="200", OPENBLAS_NUM_THREADS="1",
            AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_SESSION_TOKEN="token",
            AWS_EC2_METADATA_DISABLED="true",
        )  # fmt: skip
        tempfile.tempdir = None
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.argv = ["distsgd", *words]
        from distsgd.cli.start import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# ---------------------------------------------------------------- what must not change


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Mode, size, time, inode and digest of a folder and everything in it."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        digest = ""
        if stat.S_ISREG(info.st_mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder.parent))] = (info.st_mode, info.st_size, info.st_mtime_ns,
                                                       info.st_ino, digest)  # fmt: skip
    return found


class Listener:
    """Counts who connects to a port of loopback."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.calls = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            self.calls += 1
            connection.close()


# ---------------------------------------------------------------- a case


@dataclass(frozen=True)
class HostileFolder:
    """Everything that a process of the pool needs to play a folder."""

    seed: int
    number: int
    material: Path
    folder: Path

    def run(self) -> Verdict:
        """Make the folder anew for each command, and judge."""
        found, output, outcomes = list[str](), list[str](), list[Outcome]()
        harm, kind, at = list[str](), "run", 0
        while at < len(COMMANDS[kind]):
            folder = self.folder / f"case-{self.number}-{at}"
            words = [COMMANDS[kind][at]]
            try:
                listener = _listener()
                random = Random(f"{self.seed} {self.number}")
                case = Hostile(random, folder, self.material, listener.port, [])
                kind, harm = case.draw(), case.said
                words = self._words(COMMANDS[kind][at], case, kind)
                before, calls = state_of(case.outside), listener.calls
                outcome = run_command(words, folder)
                after = state_of(case.outside)
                wrong = faults(words, outcome)
                changed = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
                wrong += [f"{name} was changed or made" for name in changed[:1]]
                time.sleep(0.001)
                if listener.calls != calls:
                    wrong.append("it connected to an address of the folder")
            except Exception as error:
                wrong, outcome = [f"this script: {error!r}"], Outcome(None, "", 0, 0, False)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            found += [f"{COMMANDS[kind][at]}: {fault:.300}" for fault in wrong]
            outcomes.append(outcome)
            output.append(f"$ distsgd {' '.join(words)}\n{outcome.text}--- {outcome}\n")
            at += 1
        return Verdict(
            number=self.number,
            line="; ".join(harm),
            faults=tuple(found),
            counts=Counter(f"exit {one.code}" for one in outcomes),
            rows=(kind,),
            computed=max(one.computed for one in outcomes),
            megabytes=max(one.megabytes for one in outcomes),
            output="\n".join(output).replace("\x1b", "\\x1b"),
        )

    def _words(self, line: str, case: Hostile, kind: str) -> list[str]:
        places = {
            "RUN": case.folder / "in/run", "SET": case.folder / "in/set",
            "GOOD": self.material / "good", "ROWS": self.material / "rows",
            "PICTURE": self.material / "picture.png", "OUT": case.folder / "cwd/out.svg",
        }  # fmt: skip
        if kind == "source":
            places["SOURCE"] = case.source()
        return [str(places.get(word, word)) for word in line.split()]


_LISTENERS: list[Listener] = []


def _listener() -> Listener:
    """One for each process of this script."""
    if not _LISTENERS:
        _LISTENERS.append(Listener())
    return _LISTENERS[0]


def faults(words: list[str], outcome: Outcome) -> list[str]:
    """What is wrong with how a command ended; empty if it passes."""
    code = outcome.code
    trained = words[0] in TRAINS and outcome.stopped and code in (130, 143, 0, -15)
    expected = {0, 1, 2} | ({code or 0} if trained or outcome.stopped else set())
    found = faults_of(code, outcome.text, expected=expected)
    if (outcome.computed > SECONDS or outcome.stopped) and not trained:
        found.append(f"it takes {outcome.computed:.0f} s" + (" and stands still" * outcome.stopped))
    if outcome.megabytes > MEGABYTES:
        found.append(f"it takes {outcome.megabytes} MB")
    errors = errors_in(plain_lines(outcome.text))
    found += [f"a line of {len(line)} characters" for line in errors if len(line) > 2000][:1]
    return found + [line for line in errors if BLAMES_MEMORY.search(line)][:1]


def _prepare() -> None:
    """Import what commands need, so that it is there in their children."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import PIL.Image  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import distsgd.data.importing.import_dataset  # noqa: F401


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, cases=1000, processes=2)


def main(given: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    sound = folder / "material"
    try:
        sound.mkdir()
        making = multiprocessing.get_context("spawn").Process(target=material, args=(sound,))
        making.start()
        making.join()
        return play(lambda n: HostileFolder(given.seed, n, sound, folder), given, _prepare)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
