"""A run of a cluster, copied to this machine while it trains, so that the page can show it.

The head of a cluster takes jobs, and shows what they print; nothing else of it has to be reachable.
So a job there prints what is added to the run folder, a line for each piece of a file:

    mirror {"file": "metrics.jsonl", "at": 4096, "data": "<base64>", "end": true}
    mirror {"running": true}

and these lines are written to a folder here. The job ends with the training, or when it is stopped.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distsgd.cluster.jobs import job_api
from distsgd.data.atomic import replace_file
from distsgd.data.folder_files import open_inside
from distsgd.data.system import pause
from distsgd.errors import DistsgdError, RunError, RuntimeFailure, StorageError, UsageError
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions
from distsgd.runs.folder import RunFolder, find_run

__all__ = ["Incoming", "Outgoing", "mirrored_run", "printed"]

_MARK = "mirror "
_WHOLE, _GROWING = ("config.json", "report.json", "tags.json"), ("metrics.jsonl", "journal.jsonl")
_CHECKPOINT = re.compile(r"checkpoints/step-[0-9]{9,18}\.npz")
_MOST_CHECKPOINTS = 20
"""The newest ones are copied; the slider of the page goes over these."""

_PIECE = 12_000
"""Bytes of a file in a line: Ray passes lines of up to 20,000 characters on whole."""

_EVERY_SECONDS, _SECONDS_TO_BEGIN = 0.5, 60.0
_MOST_SAID = 2000


class Outgoing:
    """What has been added to a run folder since the last look, as lines.

    Args:
        run: the run.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._sent: dict[str, tuple[int, int, int]] = {}  # file -> inode, time, bytes
        self._running: bool | None = None

    def look(self) -> Iterator[str]:
        """The lines for what is new."""
        running = self._run.status() == "running"  # what is read later is at least as new
        for name in (*_WHOLE, *_GROWING):
            yield from self._file(name)
        with suppress(RunError, StorageError):
            newest = checkpoint_versions(self._run.checkpoints)[-_MOST_CHECKPOINTS:]
            for version in reversed(newest):
                name = f"checkpoints/{checkpoint_path(self._run.checkpoints, version).name}"
                if name not in self._sent:
                    yield from self._file(name)
        if running != self._running:
            self._running = running
            yield _line({"running": running})

    @property
    def over(self) -> bool:
        """Whether the run had ended at the last look."""
        return self._running is False

    def _file(self, name: str) -> Iterator[str]:
        try:
            file = open_inside(self._run.path / name)
        except OSError:
            return
        try:
            about = os.fstat(file)
            now = about.st_ino, about.st_mtime_ns, about.st_size
            before = self._sent.get(name)
            if now == before:
                return
            at = 0
            if name in _GROWING and before and before[0] == now[0] and before[2] <= now[2]:
                at = before[2]
            self._sent[name] = now
            while at < about.st_size:
                piece = os.pread(file, min(_PIECE, about.st_size - at), at)
                if not piece:
                    return
                end = at + len(piece) >= about.st_size
                data = base64.b64encode(piece).decode()
                yield _line({"file": name, "at": at, "data": data, "end": end})
                at += len(piece)
        finally:
            os.close(file)


def _line(content: dict[str, Any]) -> str:
    return _MARK + json.dumps(content)


def printed(name: str) -> Iterator[str]:
    """The lines that the job on the head prints, until the run has ended.

    Args:
        name: of the run; it may begin within a minute.

    Raises:
        RunError: there is no such run.
    """
    until = time.monotonic() + _SECONDS_TO_BEGIN
    while True:
        try:
            outgoing = Outgoing(find_run(name))
            break
        except RunError:
            if time.monotonic() > until:
                raise
            pause(_EVERY_SECONDS)
    while True:
        yield from outgoing.look()
        if outgoing.over:
            return
        pause(_EVERY_SECONDS)


class Incoming:
    """The copy of a run folder, made of these lines.

    Args:
        folder: the copy; made.

    Attributes:
        folder: as given.
        there: set once there is something to show, or nothing more comes.
        said: the end of what the job has printed besides.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.there, self.said = folder, threading.Event(), ""
        (folder / "checkpoints").mkdir(mode=0o700, parents=True)
        self._run = RunFolder(folder)
        self._rest, self._parts = "", dict[str, bytearray]()
        self._held = False

    @property
    def whole(self) -> bool:
        """Whether there is a run to show."""
        return (self.folder / "config.json").exists()

    def take(self, text: str) -> None:
        """Take a part of what the job prints."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if not line.startswith(_MARK):
                self.said = f"{self.said}{line.strip()} "[-_MOST_SAID:]
                continue
            try:
                self._use(json.loads(line.removeprefix(_MARK)))
            except (ValueError, TypeError, KeyError, OSError, DistsgdError):
                continue  # a later line may be whole again

    def _use(self, content: dict[str, Any]) -> None:
        if "running" in content:
            self._mark(content["running"] is True)
        else:
            data = base64.b64decode(content["data"])
            self._write(str(content["file"]), int(content["at"]), data, content["end"] is True)

    def close(self) -> None:
        """Nothing more comes."""
        self._mark(False)

    def _mark(self, running: bool) -> None:
        """The run trains, or has ended."""
        if running and not self._held:
            self._run.hold()
        elif self._held and not running:
            self._run.release()
        self._held = running
        self.there.set()

    def _write(self, name: str, at: int, data: bytes, end: bool) -> None:
        path = self.folder / name
        if name in _GROWING:
            if at == 0:
                replace_file(path, data)
            elif path.stat().st_size == at:
                with path.open("ab") as file:
                    file.write(data)
        elif name in _WHOLE or _CHECKPOINT.fullmatch(name):
            part = self._parts.setdefault(name, bytearray())
            if at == 0:
                part.clear()
            if len(part) == at:
                part += data
            if end:
                replace_file(path, bytes(self._parts.pop(name)))


@contextmanager
def mirrored_run(name: str, address: str) -> Iterator[Path]:
    """A folder with a copy of one run of a cluster, kept up to date; removed at the end.

    Args:
        name: of the run on the head, or "latest" for that of the newest job.
        address: see `distsgd.cluster.jobs.jobs_address`.

    Raises:
        UsageError: the address or the name is none.
        RuntimeFailure: the cluster cannot be reached, or there is no such run.
    """
    if name.startswith("-"):
        raise UsageError(f"{name} is no name of a run", "See `distsgd jobs list`")
    with (
        job_api(address) as api,
        tempfile.TemporaryDirectory(prefix="distsgd-watch-") as top,
    ):
        if name == "latest":
            jobs = api.jobs()
            if not jobs:
                raise RuntimeFailure(f"there are no jobs at {api.address}", "`distsgd submit`")
            name = jobs[0].run
        incoming = Incoming(Path(top) / Path(name).name)
        job = api.submit(["runs", "mirror", name], [], sample=False, listed=False)
        problems = list[DistsgdError]()

        def receive() -> None:
            try:
                api.follow(job, incoming.take)
            except DistsgdError as error:
                problems.append(error)
            finally:
                incoming.close()

        threading.Thread(target=receive, daemon=True).start()
        try:
            incoming.there.wait()
            if not incoming.whole:
                why = problems[0].problem if problems else incoming.said.strip()
                raise RuntimeFailure(
                    f"{name} at {api.address} cannot be watched: {why or 'its job has ended'}",
                    "See `distsgd jobs list --address ...`",
                )
            yield Path(top)
        finally:
            with suppress(DistsgdError):
                api.stop(job)
