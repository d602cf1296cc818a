"""The addresses of remote datasets that this user has given, so that no file can give another.

To ask a store is to send it the user's credentials, or at least the address of this machine. The
settings of a run name the store of its dataset, and a run may come from a stranger. So a store is
asked only if the user has given its address: as a dataset on a command line, in a settings file of
their own, or to a function, now or before. These addresses are kept in a file beside the runs.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from urllib.parse import quote, urlencode

from distsgd.data.folder_files import SMALL, open_inside, read_inside
from distsgd.data.locations import home_folder
from distsgd.data.remote.uri import Uri
from distsgd.errors import SourceError, StorageError

__all__ = ["check_known", "given", "remember"]

_FILE = "addresses"

_given: set[str] = set()
"""By this process."""


def _address(uri: Uri) -> str:
    """Who is asked for a dataset: the scheme, the host or bucket, and all options of the store."""
    host = quote(uri.where.partition("/")[0], safe=":[]")
    options = urlencode(sorted(uri.options.items()), safe=":")
    return f"{uri.scheme}://{host}" + (f"?{options}" if options else "")


def given(uri: Uri) -> None:
    """The user has given an address: this process may ask it."""
    _given.add(_address(uri))


def remember(uri: Uri) -> None:
    """Keep an address for later commands, unless the disk does not take it."""
    if uri.scheme == "file" or (address := _address(uri)) in _kept():
        return
    with suppress(OSError, StorageError):
        home_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open_inside(home_folder() / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{address}\n".encode())
        finally:
            os.close(file)


def check_known(uri: Uri) -> None:
    """Refuse an address that the user has not given; a folder of this machine is asked nothing.

    Raises:
        SourceError: the user has not; names the address and how to give it.
    """
    if uri.scheme == "file" or (address := _address(uri)) in _given or address in _kept():
        return
    raise SourceError(
        f"its files say that the dataset lies at {address}, an address that you have never given "
        "yourself; nothing was sent there",
        f"If you trust it, give it once: `distsgd data info --dataset {shlex.quote(uri.text)}`",
    )


def _kept() -> set[str]:
    try:
        content = read_inside(home_folder() / _FILE, most=SMALL)
    except (OSError, StorageError):
        return set()
    return set(content.decode(errors="replace").splitlines())
