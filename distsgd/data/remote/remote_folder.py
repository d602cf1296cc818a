"""A remote dataset as a folder of this node: its manifest, and the shards that were needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from distsgd.data.folder_files import SMALL, read_inside, replace_inside
from distsgd.data.locations import REMOTE_SOURCE, cache_folder
from distsgd.data.manifest import MANIFEST, Shard, parse_manifest
from distsgd.data.remote import known_addresses
from distsgd.data.remote.known_addresses import check_known, remember
from distsgd.data.remote.node_cache import Held, NodeCache
from distsgd.data.remote.stores import Store, fetch_checked, fetch_small, open_store
from distsgd.data.remote.uri import parse_uri
from distsgd.errors import CorruptDataError, NotPlainFile, storage_error

__all__ = ["RemoteFolder", "find_remote", "source_of"]

_THREADS = 4
_log = logging.getLogger("distsgd")


def find_remote(text: str, *, given: bool) -> Path:
    """The folder of this node that stands for a remote dataset.

    Its manifest is fetched each time, so that a dataset that was changed is another one; its
    shards are fetched when they are needed.

    Args:
        text: its URI.
        given: whether the user has given it; see `known_addresses`.

    Raises:
        UsageError: the URI cannot be used.
        SourceError: the manifest cannot be had.
        DatasetError: it is none.
        StorageError: the cache cannot be written.
    """
    uri = parse_uri(text)
    if given:
        known_addresses.given(uri)
    check_known(uri)
    content = fetch_small(open_store(uri), MANIFEST, uri.name, _log.warning)
    where = f"{uri.name}/{MANIFEST}"
    manifest = parse_manifest(content, where, "Put a whole dataset folder there")
    remember(uri)
    folder = cache_folder() / "remote" / manifest.digest[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, new in (
            (REMOTE_SOURCE, json.dumps({"uri": uri.text}).encode()),
            (MANIFEST, content),
        ):
            path = folder / name
            with suppress(FileNotFoundError, NotPlainFile):
                if read_inside(path) == new:
                    continue
            replace_inside(path, new)
    except OSError as error:
        raise storage_error(error, error.filename or folder) from None
    return folder


class RemoteFolder:
    """The shards of a remote dataset.

    Args:
        folder: that `find_remote` has made.
        limit: bytes that the cache of this node may take, or None.

    Attributes:
        cache: of this node.
        limit: as given.

    Raises:
        SourceError: the user has never given the address that the folder names.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self._uri = parse_uri(source_of(folder))
        check_known(self._uri)
        self._store: Store | None = None
        self._folder, self.limit = folder, limit
        self._held: list[Held] = []
        self._stopped = False
        self.cache = NodeCache(folder, limit, self._fetch)

    def ensure(self, entries: Sequence[Shard]) -> None:
        """Fetch what is missing of these shards, and keep all of them.

        Raises:
            DistsgdError: see `NodeCache.hold`.
        """
        missing = [entry for entry in entries if not (self._folder / entry.file).exists()]
        if missing:
            what = f"{len(missing)} shards" if len(missing) > 1 else "a shard"
            size = sum(entry.size for entry in missing) / 1e6
            _log.warning("fetching %s (%.0f MB) of %s", what, size, self._uri.name)
        with ThreadPoolExecutor(_THREADS) as pool:
            coming = [pool.submit(self.cache.hold, entry) for entry in entries]
            try:
                for one in as_completed(coming):
                    self._held.append(one.result())
            except BaseException:  # the other threads are waited for, so they are to end, too
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, entry: Shard, part: Path) -> None:
        if self._store is None:
            self._store = open_store(self._uri)
        fetch_checked(
            self._store, entry.file, entry.size, entry.sha256, part, self._uri.name, _log.warning,
            lambda: self._stopped,
        )  # fmt: skip


def source_of(folder: Path) -> str:
    """The URI that a local folder stands for.

    Raises:
        CorruptDataError: it cannot be read.
    """
    path = folder / REMOTE_SOURCE
    try:
        return str(json.loads(read_inside(path, most=SMALL))["uri"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptDataError(
            f"{path} does not say where the dataset lies: {error}",
            f"Remove {folder}, and give --dataset its URI again",
        ) from None
