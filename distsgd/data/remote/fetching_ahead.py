"""A process that fetches shards before they are needed, one for all workers of a node.

It is a process of its own because threads in the training process would compete with it for the
interpreter: training from a store on the same machine reached 0.61 of the speed of training in
memory with threads, and 0.73 with this process.

    python -m distsgd.data.remote.fetching_ahead FOLDER URI LIMIT

reads lines from its standard input, each a JSON list of how many shards to fetch and of the files
in the order in which they will be needed from then on, and ends with it. LIMIT is in bytes, 0 for
no limit.
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
from distsgd.data.remote.node_cache import NodeCache
from distsgd.data.remote.remote_folder import RemoteFolder
from distsgd.data.system import python_module, wait_for_exit, whole_environment
from distsgd.errors import DistsgdError

__all__ = ["FetchingAhead"]

_LOCK = ".fetching-ahead.lock"
_SECONDS_TO_END = 5.0
_THREADS = 2
"""Two: while one waits for the store, the other hashes and writes."""


class FetchingAhead:
    """Starts that process, unless another process of this node has started one for this dataset.

    If that other process dies, the next caller of `follow` takes its place.

    Args:
        remote: the dataset, whose store the user has allowed.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None

    def follow(self, files: Sequence[str], count: int) -> None:
        """Say which files are needed from now on, in that order, and how many of them to fetch."""
        if not self._is_ours():
            return
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([count, *files]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has died: the next call starts another one
            self._process.wait()
            self._process = None

    def _is_ours(self) -> bool:
        """Whether this process holds the lock, which the system releases when it dies."""
        if self._lock < 0:
            self._lock = open_inside(self._remote.folder / _LOCK, os.O_RDWR | os.O_CREAT)
            weakref.finalize(self, os.close, self._lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _start(self) -> None:
        remote = self._remote
        self._process = subprocess.Popen(
            python_module(__name__, str(remote.folder), remote.uri, str(remote.limit or 0)),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=whole_environment(),
            start_new_session=True,  # Ctrl-C is for the parent; this one ends with it
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
    """Threads that fetch upcoming shards while there is room."""

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._ahead: list[Shard] = []
        self._lock, self._order = threading.Lock(), threading.Lock()
        self._running = 0

    def follow(self, entries: Sequence[Shard], count: int) -> None:
        """Fetch the first ``count`` of the shards that are needed from now on, in that order."""
        self._cache.need([entry.file for entry in entries])
        with self._lock:
            self._ahead = list(entries[:count])
            while self._running < min(_THREADS, len(self._ahead)):
                self._running += 1
                threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with ExitStack() as in_order:  # reserve room for one shard after the other
                in_order.enter_context(self._order)
                with self._lock:
                    if not (ahead := self._ahead):
                        self._running -= 1
                        return
                    entry = ahead.pop(0)
                try:
                    there = self._cache.prefetch(entry, in_order.close)
                except (DistsgdError, OSError):
                    there = False  # whichever process needs the shard meets and reports it
                if not there:
                    with self._lock:
                        ahead.clear()  # but keep a newer list


def main(folder: Path, uri: str, limit: int) -> None:
    """Fetch what standard input asks for, until it ends."""
    entries = {entry.file: entry for entry in read_manifest(folder).train}
    threads = _Threads(RemoteFolder(folder, uri, limit or None).cache)
    for line in sys.stdin.buffer:
        count, *files = json.loads(line)
        threads.follow([entries[file] for file in files], count)
    os._exit(0)  # do not wait for what is being fetched: an unfinished part is discarded later


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
