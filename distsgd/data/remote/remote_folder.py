"""The local copy of a remote dataset: its manifest, and the shards that were needed so far."""

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
from distsgd.data.remote.addresses import check_known, parse_uri, remember
from distsgd.data.remote.fetching import Fetcher
from distsgd.data.remote.node_cache import Held, NodeCache
from distsgd.data.remote.stores import open_store
from distsgd.errors import CorruptDataError, NotPlainFile, storage_error
from distsgd.spelling import spelling

__all__ = ["RemoteFolder", "find_remote", "known_source"]

_THREADS = 4
_log = logging.getLogger("distsgd")


def find_remote(text: str, *, trusted: bool) -> Path:
    """The folder in the cache that stands for a remote dataset.

    The manifest is fetched each time, so that a dataset that has changed is another one; shards
    are fetched when they are needed.

    Args:
        text: its URI.
        trusted: whether the user has given it; see `check_known` for one that is read from a file.

    Raises:
        UsageError: the URI cannot be used.
        SourceError: the store must not be asked, or does not give the manifest.
        DatasetError: the manifest is malformed.
        StorageError: the cache cannot be written.
    """
    uri = parse_uri(text)
    if not trusted:
        check_known(uri)
    content = Fetcher(open_store(uri), uri.name, _log.warning).read(MANIFEST)
    where = f"{uri.name}/{MANIFEST}"
    manifest = parse_manifest(content, where, "Put a whole dataset folder there")
    if trusted:
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


def known_source(folder: Path) -> str:
    """The URI that a folder of the cache names as its source.

    Raises:
        CorruptDataError: it names none.
        SourceError: the user has never given its address.
    """
    path = folder / REMOTE_SOURCE
    try:
        text = str(json.loads(read_inside(path, most=SMALL))["uri"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptDataError(
            f"{path} does not say where the dataset comes from: {error}",
            f"Remove {folder}, and give {spelling().setting('dataset')} its URI again",
        ) from None
    check_known(parse_uri(text))
    return text


class RemoteFolder:
    """Fetches the shards of a remote dataset into its folder.

    It asks the store of ``uri`` without further checks: see `open_dataset` for who may name one.

    Args:
        folder: the folder in the cache, made by `find_remote`.
        uri: where its shards are fetched from.
        limit: bytes that all remote datasets may take on this node; None for no limit.

    Attributes:
        folder: as given, like ``uri`` and ``limit``.
        cache: the shards on this node.
    """

    def __init__(self, folder: Path, uri: str, limit: int | None) -> None:
        self.folder, self.uri, self.limit = folder, uri, limit
        self._source = parse_uri(uri)
        self._fetcher: Fetcher | None = None
        self._held: list[Held] = []
        self._stopped = False
        self.cache = NodeCache(folder, limit, self._fetch)

    def fetch_all(self, entries: Sequence[Shard]) -> None:
        """Fetch those of some shards that are missing, and keep all of them in the cache.

        Raises:
            DistsgdError: see `NodeCache.hold`.
        """
        missing = [entry for entry in entries if not (self.folder / entry.file).exists()]
        if missing:
            what = f"{len(missing)} shards" if len(missing) > 1 else "a shard"
            size = sum(entry.size for entry in missing) / 1e6
            _log.warning("fetching %s (%.0f MB) of %s", what, size, self._source.name)
        with ThreadPoolExecutor(_THREADS) as pool:
            coming = [pool.submit(self.cache.hold, entry) for entry in entries]
            try:
                for one in as_completed(coming):
                    self._held.append(one.result())
            except BaseException:  # the pool waits for the other threads, so stop them as well
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, entry: Shard, part: Path) -> None:
        if self._fetcher is None:
            store = open_store(self._source)
            self._fetcher = Fetcher(
                store, self._source.name, _log.warning, stopped=lambda: self._stopped
            )
        self._fetcher.fetch(entry.file, entry.size, entry.sha256, part)
