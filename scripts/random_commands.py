"""Random command lines over the real commands, in odd environments; none may end in a fault.

    python scripts/random_commands.py [N=2000] [--seed S] [--first K] [--jobs 2] [--ray SHARE]

Commands, arguments and options are read from the command line's own tree, so that new ones are
covered as they come. Values are drawn by kind: right ones, near misses, huge and odd numbers, texts
with markup, control characters and bytes that are no UTF-8, files and folders that are missing,
damaged, unreadable, or no files at all. So are the environment, the three streams, small limits,
the working folder, and a user that the system does not know. A case passes if

- its exit code is one of 0, 1, 2, 130, 141, 143, or the signal of a limit that it was given;
- it shows no traceback, no "fault of distsgd" and no warning of Python's;
- it says in exactly one line, `error: ...`, why it ended with 1 or 2 (the parser's box counts);
- with --json, its stdout is one JSON object, or, if it failed, nothing;
- it ends: one that works for long is interrupted, one that stands still has failed;
- files that were there before have their old content, and nothing of it is running afterwards.

A case depends on the seed and its number alone; `--first K` with `N` of 1 plays it again, and
`--show` says what it is. Commands that would start Ray or a node are drawn as errors, except for a
SHARE of the cases. Exit code 1 if a case failed. One second a case or less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import pty
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from random_lines import MARK, UNKNOWN_USER, Case, draw_case, variables
from random_material import Material

WORKED, WAITED, TO_STOP = 8.0, 60.0, 30.0
"""Seconds of computing, or of anything, after which a case is interrupted; and then to end in."""

RAY_WORKED, RAY_WAITED = 40.0, 120.0

EXPECTED = (0, 1, 2, 130, 141, 143)
FAULT = re.compile(
    r"fault of distsgd|Traceback \(most recent|Exception ignored|Fatal Python|Segmentation|OpenBLAS"
    r"|\b[A-Z][A-Za-z]*Warning: "
)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MEMORY = 6 * 2**30
"""Bytes of address space of a case that is given no smaller limit: a stopgap for the machine."""


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
    """Run it to its end, and look what it has left and changed."""
    cwd = _working_folder(case)
    before = contents(case)
    ends, files = _open_streams(case)
    begun = time.monotonic()
    process = subprocess.Popen(
        [*program(), *case.words], env=variables(case), cwd=cwd, stdin=files[0], stdout=files[1],
        stderr=files[2], start_new_session=True, preexec_fn=lambda: _become(case, cwd),
    )  # fmt: skip
    for file in set(files.values()):
        os.close(file)
    reader = Reader(ends, {name for name, kind in case.streams.items() if kind == "early"})
    interrupted, stood_still = _wait(case, process, reader, begun)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = None if process.poll() is None else process.returncode
    process.wait()
    reader.read_rest()
    seconds = time.monotonic() - begun
    left = _clear(case)
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
    """Between fork and exec: take what the case meets upon this process."""
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
    """Our ends of what is read, and what the process gets as 0, 1 and 2."""
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
    """Takes what the streams bring, without waiting for them."""

    def __init__(self, ends: dict[int, int], early: set[int]) -> None:
        self._selector = selectors.DefaultSelector()
        self._early = early
        self._found: dict[int, bytes] = dict.fromkeys(ends, b"")
        for stream, end in ends.items():
            self._selector.register(end, selectors.EVENT_READ, stream)

    def read(self, seconds: float) -> bool:
        """Whether there is more to come; waits for it so long at most."""
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
        """What is there already; then all is closed."""
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
    case: Case, process: subprocess.Popen[bytes], reader: Reader, begun: float
) -> tuple[bool, bool]:
    """Until it ends, or did not when it was interrupted: whether it was, and why."""
    worked, waited = (RAY_WORKED, RAY_WAITED) if case.ray else (WORKED, WAITED)
    interrupted, stood_still = 0.0, False
    while process.poll() is None:
        if not reader.read(0.05):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        now, computed = time.monotonic(), _computed(process.pid)
        if not interrupted and (computed > worked or now - begun > waited):
            interrupted, stood_still = now, computed < 0.3 * worked and not case.ray
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        elif interrupted and now - interrupted > TO_STOP:
            break
    return bool(interrupted), stood_still


def _computed(pid: int) -> float:
    """Seconds of processor time of a process and the children that it has waited for."""
    with suppress(OSError, IndexError):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, parts[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _clear(case: Case) -> tuple[str, ...]:
    """Command lines of processes of the case that have not ended; they are ended."""
    until = time.monotonic() + (20 if case.ray else 3)
    while (living := _living(case)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in living:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return tuple(living.values())


def _living(case: Case) -> dict[int, str]:
    mark = os.fsencode(f"{MARK}={case.folder}")
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
    return found


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
    """What is wrong with how a case ended; nothing, if it passes."""
    found = []
    output = {stream: ANSI.sub("", text) for stream, text in outcome.output.items()}
    text = "\n".join(output.values())
    lines = [line.rstrip("\r") for line in text.splitlines()]
    if outcome.code is None:
        found.append("it does not end when it is interrupted")
    elif outcome.stood_still:
        found.append("it stands still")
    elif outcome.code not in EXPECTED and not _explained(case, outcome.code):
        found.append(f"exit code {outcome.code}")
    found += [line.strip() for line in lines if FAULT.search(line)][:1]
    errors = [line for line in lines if line.startswith("error: ")]
    if outcome.code in (1, 2) and (2 in output or "terminal" in case.streams.values()):
        parser = outcome.code == 2 and not errors and ("Usage: " in text or 1 not in outcome.output)
        if len(errors) + parser != 1 and not outcome.interrupted:
            found.append(f"{len(errors)} error lines with exit code {outcome.code}: {_last(lines)}")
    raw = [line for whole in outcome.output.values() for line in whole.splitlines()]
    for line in raw:
        if line.startswith("error: ") and not line.rstrip("\r").replace("\udcff", "").isprintable():
            found.append(f"control characters in an error: {line!r}")
    if case.json and 1 in output and "terminal" not in case.streams.values():
        found += _json_faults(case, outcome, output[1])
    if case.streams.get(1) == "full" and outcome.code == 0:
        found.append("its answer could not be written, and it says nothing")
    found += [f"{_kind_of(Path(name), case)} was changed" for name in outcome.changed[:1]]
    found += [f"still running: {line}" for line in outcome.left[:1]]
    return found


def _explained(case: Case, code: int) -> bool:
    """Whether a limit of the case ends a process by this signal."""
    return code == -signal.SIGXFSZ and "FSIZE" in case.limits


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "nothing is said")


def _json_faults(case: Case, outcome: Outcome, text: str) -> list[str]:
    if "--help" in case.words or "--version" in case.words or (outcome.code and not text.strip()):
        return []
    try:
        whole = isinstance(json.loads(text), dict)
    except ValueError:
        whole = False
    return [] if whole or outcome.code == 2 else ["stdout is not one JSON object"]


def _kind_of(path: Path, case: Case) -> str:
    return str(path.relative_to(case.folder))


def group_of(fault: str) -> str:
    """Equal for faults that differ in numbers, names and paths alone."""
    short = re.sub(r"(/[^\s:,']+)+", "PATH", fault)
    short = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", short)
    return re.sub(r"[0-9a-f]{8,}|[-+]?\d+([.,]\d+)*", "N", short)[:160]


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Verdict:
    """A case, how it ended, and what is wrong with that."""

    number: int
    line: str
    outcome: Outcome
    faults: tuple[str, ...]
    computed: float  # seconds of processor time

    def show(self) -> None:
        """Print the case and its streams."""
        print(f"{self.number}: {self.line}")
        for stream, text in self.outcome.output.items():
            print(f"--- {stream}\n{text!r}" if "\x1b" in text else f"--- {stream}\n{text}")
        print(f"--- exit code {self.outcome.code}, {self.outcome.seconds:.1f} s", flush=True)

    def record(self) -> str:
        """As a line of JSON."""
        lines = "\n".join(self.outcome.output.values()).splitlines()
        content = {
            "number": self.number, "line": self.line, "code": self.outcome.code,
            "answer": _last(lines), "faults": self.faults, "computed": round(self.computed, 2),
            "seconds": round(self.outcome.seconds, 2), "interrupted": self.outcome.interrupted,
        }  # fmt: skip
        return json.dumps(content) + "\n"


@dataclass(frozen=True)
class Job:
    """What a process of this script needs to know to run a case."""

    seed: int
    number: int
    material: Path
    folder: Path
    ray: float  # the share of cases that may start Ray
    strangers: bool  # whether some are run by a user that the system does not know
    show: bool = False

    def run(self) -> Verdict:
        """Draw, run and judge; an error of this script is a fault of the case."""
        folder, before = self.folder / f"case-{self.number}", _computed_by_children()
        line, outcome, found = "", Outcome(None, {}, 0.0), []
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
        computed = _computed_by_children() - before
        verdict = Verdict(self.number, line, outcome, tuple(found), computed)
        if self.show:
            verdict.show()
        return verdict


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


def play(jobs: Iterable[Job], processes: int) -> Iterator[Verdict]:
    """Verdicts as they come."""
    if processes == 1:
        yield from (job.run() for job in jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(Job.run, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ray", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--show", action="store_true", help="print each case and what it printed")
    parser.add_argument("--log", type=Path, help="write each verdict into this file, as JSON lines")
    given = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="random-commands-"))
    folder.chmod(0o755)
    strangers = os.geteuid() == 0 and reachable_to_others()
    if os.geteuid() == 0 and not strangers:
        print("without unknown users: this Python lies in a folder that is closed to them")
    try:
        material = Material(folder / "material")
        material.make()
        numbers = range(given.first, given.first + given.cases)
        same = (material.folder, folder, given.ray, strangers, given.show)
        jobs = [Job(given.seed, number, *same) for number in numbers]
        return report(play(jobs, min(given.jobs, len(jobs))), given)
    finally:
        _remove(folder)


def report(verdicts: Iterator[Verdict], given: argparse.Namespace) -> int:
    """Print failures as they come, and then by group; 1 if there are any."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    codes: Counter[int | None] = Counter()
    begun = time.monotonic()
    log = given.log.open("w", buffering=1) if given.log else None
    for verdict in verdicts:
        codes[verdict.outcome.code] += 1
        if log:
            log.write(verdict.record())
        if verdict.faults:
            groups[group_of(verdict.faults[0])].append(verdict)
            print(f"{verdict.number}: {verdict.faults[0]}\n    {verdict.line}", flush=True)
    share = f" --ray {given.ray}" if given.ray else ""
    for name, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        again = f"1 --seed {given.seed} --first {found[0].number}{share} --show"
        print(f"\n{len(found)} times: {name}\n  python scripts/random_commands.py {again}")
    failed = sum(map(len, groups.values()))
    shown = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str))
    seconds = time.monotonic() - begun
    print(f"\n{codes.total() - failed} of {codes.total()} pass in {seconds:.0f} s; codes {shown}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
