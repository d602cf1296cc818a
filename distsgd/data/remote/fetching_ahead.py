"""A process that fetches shards before they are needed, one for all workers of a node.

It is a process of its own because threads beside the training would take the interpreter from it:
with them, training from a store on the same machine came to 0.61 of what it does in memory, with
the process to 0.73.

    python -m distsgd.data.remote.fetching_ahead FOLDER LIMIT

reads lines from its standard input, each a JSON list of how many to fetch and of the files in the
order in which they will be needed from then on, and ends with it. LIMIT is in bytes, 0 for none.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from distsgd.data.folder_files import open_inside
from distsgd.data.manifest import Shard, read_manifest
from distsgd.data.remote import known_addresses
from distsgd.data.remote.node_cache import NodeCache
from distsgd.data.remote.remote_folder import RemoteFolder, source_of
from distsgd.data.remote.uri import parse_uri
from distsgd.data.system import python_module, wait_for_exit, whole_environment
from distsgd.errors import DistsgdError

__all__ = ["FetchingAhead"]

_LOCK = ".fetching-ahead.lock"
_SECONDS_TO_END = 5.0
_THREADS = 2
"""Two: while one waits for the store, the other hashes and writes."""


class FetchingAhead:
    """Has shards fetched ahead, unless another process of this node does so for this dataset.

    If that process dies, the next one that says what it needs takes its place.

    Args:
        folder: of the dataset in the cache of this node.
        limit: bytes that the cache may take, or None.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self._folder, self._limit = folder, limit
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None

    def follow(self, files: Sequence[str], count: int) -> None:
        """Say which files are needed from now on, in that order, and how many of them to fetch."""
        if not self._ours():
            return
        if self._process is None:
            self._begin()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([count, *files]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has died: the next call begins another one
            self._process.wait()
            self._process = None

    def _ours(self) -> bool:
        """Whether it falls to this process; the system lets go of the lock when it dies."""
        if self._lock < 0:
            self._lock = open_inside(self._folder / _LOCK, os.O_RDWR | os.O_CREAT)
            weakref.finalize(self, os.close, self._lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            python_module(__name__, str(self._folder), str(self._limit or 0)),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=whole_environment(),
            start_new_session=True,  # Ctrl-C is for us; it ends when we do
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    if wait_for_exit(process, _SECONDS_TO_END) is None:
        process.kill()
        process.wait()


class _Threads:
    """Threads that fetch what will be needed, as far as there is room."""

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._ahead: list[Shard] = []
        self._lock, self._order = threading.Lock(), threading.Lock()
        self._running = 0

    def follow(self, entries: Sequence[Shard], count: int) -> None:
        """What is needed from now on, in that order; the first few are fetched."""
        self._cache.need([entry.file for entry in entries])
        with self._lock:
            self._ahead = list(entries[:count])
            while self._running < min(_THREADS, len(self._ahead)):
                self._running += 1
                threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with ExitStack() as in_order:  # room is taken for one shard after the other
                in_order.enter_context(self._order)
                with self._lock:
                    if not (ahead := self._ahead):
                        self._running -= 1
                        return
                    entry = ahead.pop(0)
                try:
                    there = self._cache.prefetch(entry, in_order.close)
                except (DistsgdError, OSError):
                    there = False  # it is met again, and told, by who needs the shard
                if not there:
                    with self._lock:
                        ahead.clear()  # not what has been said in the meantime


def main(folder: Path, limit: int) -> None:
    """Follow what standard input says, until it ends."""
    entries = {entry.file: entry for entry in read_manifest(folder).train}
    known_addresses.given(parse_uri(source_of(folder)))  # as our parent has seen
    threads = _Threads(RemoteFolder(folder, limit or None).cache)
    for line in sys.stdin.buffer:
        count, *files = json.loads(line)
        threads.follow([entries[file] for file in files], count)
    os._exit(0)  # what is being fetched is not waited for; its part is taken for what it is


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
