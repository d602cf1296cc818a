"""Play random command lines in odd environments; none may end in a fault.

Commands, arguments and options are read from the command line's own tree, so that new ones are
covered as they come. Values are drawn by kind: right ones, near misses, huge and odd numbers, texts
with markup, control characters and bytes that are not UTF-8, files and folders that are missing,
damaged, unreadable, or not files at all. So are the environment, the three streams, small limits,
the working folder, and a user that the system does not know. A case passes if

- its exit code is one of 0, 1, 2, 130, 141, 143, or the signal of a limit that it was given;
- it shows no traceback, no "bug in distsgd" and no warning of Python's;
- it says in exactly one line, `error: ...`, why it ended with 1 or 2 (the parser's box counts);
- with --json, its stdout is one JSON object, or nothing if it failed;
- it ends: one that works for long is interrupted, one that stands still fails;
- files that were there before keep their content, and none of its processes is left.

Commands that would start Ray or a node are drawn as errors, except for a SHARE of the cases. A case
takes a second of processor time or less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pty
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.cases import Verdict, add_arguments, play
from harness.judging import faults_of
from harness.lines import MARK, UNKNOWN_USER, Case, draw_case, variables
from harness.material import Material
from harness.processes import computed, end_marked

WORKED, WAITED, TO_STOP = 8.0, 60.0, 30.0
"""Seconds of computing, and in all, after which a case is interrupted; and then to end in."""

RAY_WORKED, RAY_WAITED = 40.0, 120.0

EXPECTED = (0, 1, 2, 130, 141, 143)
MEMORY = 6 * 2**30
"""Bytes of address space of a case without a smaller limit, to protect the machine."""


@dataclass(frozen=True)
class Outcome:
    code: int | None  # negative for a signal; None if it did not end
    output: dict[int, str]  # of the streams that were read
    seconds: float
    interrupted: bool = False
    stood_still: bool = False
    left: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def program() -> list[str]:
    """The command as installed, which does not look for modules in the working folder."""
    installed = Path(sys.executable).with_name("distsgd")
    return [str(installed)] if installed.exists() else [sys.executable, "-P", "-m", "distsgd"]


def run_case(case: Case) -> Outcome:
    """Run it to its end, and see what it leaves and changes."""
    cwd = _working_folder(case)
    before = contents(case)
    ends, files = _open_streams(case)
    began = time.monotonic()
    process = subprocess.Popen(
        [*program(), *case.words], env=variables(case), cwd=cwd, stdin=files[0], stdout=files[1],
        stderr=files[2], start_new_session=True, preexec_fn=lambda: _become(case, cwd),
    )  # fmt: skip
    for file in set(files.values()):
        os.close(file)
    reader = Reader(ends, {name for name, kind in case.streams.items() if kind == "early"})
    interrupted, stood_still = _wait(case, process, reader, began)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = None if process.poll() is None else process.returncode
    process.wait()
    reader.read_rest()
    seconds = time.monotonic() - began
    left = _end_processes(case)
    after = contents(case)
    changed = tuple(sorted(name for name, digest in before.items() if after.get(name) != digest))
    return Outcome(
        code, reader.texts(case.encoding), seconds, interrupted, stood_still, left, changed
    )


def _working_folder(case: Case) -> Path:
    kind = case.working_folder
    cwd = (
        case.folder / "cwd"
        if kind in ("plain", "deleted", "unreadable")
        else case.folder / "cwd" / kind
    )
    cwd.mkdir(parents=True, exist_ok=True)
    if kind == "shadows":
        for name in ("queue", "numpy", "distsgd", "typing", "ray", "rich"):
            (cwd / f"{name}.py").write_text("raise SystemExit('a file of the user is run')\n")
    if kind == "read-only":
        cwd.chmod(0o500)
    if case.user:
        for path in (case.folder, *case.folder.rglob("*")):
            if path.name != "closed" and not path.is_symlink():
                os.chown(path, case.user, case.user)
    return cwd


def _become(case: Case, cwd: Path) -> None:
    """Between fork and exec: give this process the limits, user and streams of the case."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a shell has its background jobs ignore some
    if case.working_folder == "unreadable":
        cwd.chmod(0)
    if case.working_folder == "deleted":
        cwd.rmdir()
    limits = {"CPU": 300, "CORE": 0, **({} if case.ray else {"AS": MEMORY}), **case.limits}
    if case.user:
        os.setgroups([])
        os.setgid(case.user)
        os.setuid(case.user)
    for name, size in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (size, size if hard < 0 else min(size, hard)))
    for stream, kind in case.streams.items():
        if kind == "closed":
            os.close(stream)


def _open_streams(case: Case) -> tuple[dict[int, int], dict[int, int]]:
    """Our ends of the streams that are read, and the files that become 0, 1 and 2."""
    ends: dict[int, int] = {}
    files: dict[int, int] = {}
    terminal = pty.openpty() if "terminal" in case.streams.values() else None
    for stream in (0, 1, 2):
        kind = case.streams.get(stream, "plain")
        if kind == "terminal" and terminal is not None:
            files[stream] = os.dup(terminal[1])
            ends[1] = terminal[0]
        elif kind == "full":
            files[stream] = os.open("/dev/full", os.O_RDWR)
        elif kind == "folder":
            files[stream] = os.open("/", os.O_RDONLY)
        elif stream == 0 or kind == "closed":
            files[stream] = os.open(os.devnull, os.O_RDWR)
        else:
            ends[stream], files[stream] = os.pipe()
    if terminal is not None:
        os.close(terminal[1])
    return ends, files


class Reader:
    """Reads the streams without blocking."""

    def __init__(self, ends: dict[int, int], early: set[int]) -> None:
        self._selector = selectors.DefaultSelector()
        self._early = early
        self._found: dict[int, bytes] = dict.fromkeys(ends, b"")
        for stream, end in ends.items():
            self._selector.register(end, selectors.EVENT_READ, stream)

    def read(self, seconds: float) -> bool:
        """Read what comes within so many seconds; returns whether any stream is still open."""
        for key, _ in self._selector.select(seconds) if self._selector.get_map() else ():
            end, stream = int(key.fd), int(key.data)
            try:
                piece = os.read(end, 65536)
            except OSError:  # the terminal has been closed at its other end
                piece = b""
            self._found[stream] = (self._found[stream] + piece)[-4_000_000:]
            if not piece or stream in self._early:
                self._selector.unregister(end)
                os.close(end)
        return bool(self._selector.get_map())

    def read_rest(self) -> None:
        """Read what has already come, and close all streams."""
        until = time.monotonic() + 1
        while self.read(0.05) and time.monotonic() < until:
            pass
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            os.close(int(key.fd))
        self._selector.close()

    def texts(self, encoding: str) -> dict[int, str]:
        return {
            stream: content.decode(encoding, "surrogateescape")
            for stream, content in self._found.items()
            if stream not in self._early
        }


def _wait(
    case: Case, process: subprocess.Popen[bytes], reader: Reader, began: float
) -> tuple[bool, bool]:
    """Wait until it ends, interrupt it if it does not; returns whether, and if it stood still."""
    worked, waited = (RAY_WORKED, RAY_WAITED) if case.ray else (WORKED, WAITED)
    interrupted, stood_still = 0.0, False
    while process.poll() is None:
        if not reader.read(0.05):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        now, used = time.monotonic(), computed(process.pid)
        if not interrupted and (used > worked or now - began > waited):
            interrupted, stood_still = now, used < 0.3 * worked and not case.ray
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        elif interrupted and now - interrupted > TO_STOP:
            break
    return bool(interrupted), stood_still


def _end_processes(case: Case) -> tuple[str, ...]:
    """End what the case has left running, and return the command lines."""
    return end_marked(os.fsencode(f"{MARK}={case.folder}\0"), 20 if case.ray else 3)


def contents(case: Case) -> dict[str, str]:
    """Digests of the files that must stay as they are."""
    found = {}
    for name in ("in", "data", "cache", "home", "cwd"):
        for path in sorted((case.folder / name).rglob("*")):
            if not path.is_symlink() and path.is_file() and not _exempt(case, path):
                with suppress(OSError):
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _exempt(case: Case, path: Path) -> bool:
    return bool(case.may_change & {path, *path.parents}) or "__pycache__" in path.parts


# ---------------------------------------------------------------- judging


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with how a case ended; empty if it passes."""
    code, text = outcome.code, "\n".join(outcome.output.values())
    terminal = "terminal" in case.streams.values()
    expected = {*EXPECTED} | ({-signal.SIGXFSZ} if "FSIZE" in case.limits else set())
    found = []
    if outcome.stood_still and code is not None:
        found.append("it stands still")
        expected.add(code)
    found += faults_of(
        code, text, expected=expected, allowed="\udcff", usage_is_read=1 in outcome.output,
        reason_is_read=(2 in outcome.output or terminal) and not outcome.interrupted,
    )  # fmt: skip
    if case.json and 1 in outcome.output and not terminal:
        found += _json_faults(case, outcome, outcome.output[1])
    if case.streams.get(1) == "full" and code == 0:
        found.append("its answer could not be written, and it says nothing")
    found += [f"{Path(name).relative_to(case.folder)} was changed" for name in outcome.changed[:1]]
    return found + [f"still running: {line}" for line in outcome.left[:1]]


def _json_faults(case: Case, outcome: Outcome, text: str) -> list[str]:
    if "--help" in case.words or "--version" in case.words or (outcome.code and not text.strip()):
        return []
    try:
        whole = isinstance(json.loads(text), dict)
    except ValueError:
        whole = False
    return [] if whole or outcome.code == 2 else ["stdout is not one JSON object"]


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class RandomCommand:
    """Everything that a process of the pool needs to play a command line."""

    seed: int
    number: int
    material: Path
    folder: Path
    ray: float  # the share of cases that may start Ray
    strangers: bool  # whether some are run by a user that the system does not know

    def run(self) -> Verdict:
        """Draw, run and judge; an error of this script is a fault of the case."""
        folder, before = self.folder / f"case-{self.number}", _computed_by_children()
        line, outcome = "", Outcome(None, {}, 0.0)
        try:
            material = Material(self.material)
            case = draw_case(self.seed, self.number, material, folder, self.ray, self.strangers)
            line = case.line()
            outcome = run_case(case)
            found = faults(case, outcome)
        except Exception as error:
            found = [f"this script: {error!r}"]
        finally:
            _remove(folder)
        output = [f"--- {stream}\n{text}" for stream, text in outcome.output.items()]
        code = "no end" if outcome.code is None else f"exit {outcome.code}"
        return Verdict(
            number=self.number, line=line, faults=tuple(found), counts=Counter([code]),
            seconds=outcome.seconds, computed=_computed_by_children() - before,
            output="\n".join([*output, f"--- {code}"]).replace("\x1b", "\\x1b"),
        )  # fmt: skip


def _computed_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _remove(folder: Path) -> None:
    for path in [folder, *folder.glob("*"), *folder.glob("cwd/*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def reachable_to_others() -> bool:
    """Whether a user that the system does not know could run this Python."""
    other = {"user": UNKNOWN_USER, "group": UNKNOWN_USER, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import distsgd"], check=True, **other)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, cases=2000, processes=2)
    parser.add_argument("--ray", type=float, default=0.0, metavar="SHARE")


def main(given: argparse.Namespace) -> int:
    folder = Path(tempfile.mkdtemp(prefix="random-commands-"))
    folder.chmod(0o755)
    strangers = os.geteuid() == 0 and reachable_to_others()
    if os.geteuid() == 0 and not strangers:
        print("without unknown users: this Python lies in a folder that is closed to them")
    try:
        material = Material(folder / "material")
        material.make()
        same = (material.folder, folder, given.ray, strangers)
        return play(lambda n: RandomCommand(given.seed, n, *same), given)
    finally:
        _remove(folder)
