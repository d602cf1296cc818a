"""Addresses of remote datasets: what a URI may say, and which stores may be asked.

To ask a store is to send it the user's credentials, or at least the address of this machine. The
settings of a run name the store of its dataset, and a run may come from a stranger. So the URI of a
run is used only if the user has given the address of its store before, as a dataset on a command
line, in a settings file of their own, or to a function. These addresses are kept in a file beside
the runs.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from distsgd.data.folder_files import SMALL, open_inside, read_inside
from distsgd.data.locations import home_folder
from distsgd.errors import SourceError, StorageError, UsageError
from distsgd.spelling import spelling

__all__ = ["Uri", "check_known", "is_uri", "parse_uri", "remember"]

_SCHEMES = ("s3", "gs", "http", "https", "file")
_OPTIONS = {
    "s3": ("endpoint_override", "region", "scheme", "anonymous"),
    "gs": ("endpoint_override", "scheme", "anonymous"),
}
"""Options of a store, which may follow a question mark."""

_FILE = "addresses"


class Uri(NamedTuple):
    """The URI of a folder, without any secret in it.

    Attributes:
        text: as the user gave it.
        scheme: "s3", "gs", "http", "https" or "file".
        where: bucket and path, host and path, or path; without a slash at the end.
        options: options of the store.
    """

    text: str
    scheme: str
    where: str
    options: dict[str, str]

    @property
    def name(self) -> str:
        """The URI without its options, for messages."""
        return self.text.partition("?")[0]

    @property
    def address(self) -> str:
        """The store that is asked: the scheme, the host or bucket, and all options."""
        host = quote(self.where.partition("/")[0], safe=":[]")
        options = urlencode(sorted(self.options.items()), safe=":")
        return f"{self.scheme}://{host}" + (f"?{options}" if options else "")


def is_uri(text: str) -> bool:
    """Whether a text is meant as a URI, and not as a name or a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse_uri(text: str) -> Uri:
    """Parse and check the URI of a dataset.

    Raises:
        UsageError: it is of an unknown kind, incomplete, or carries a secret.
    """
    dataset = spelling().setting("dataset")
    try:
        parts = urlsplit(text)
    except ValueError:  # such as an unclosed bracket; its message may repeat a secret
        raise UsageError(
            f"{dataset} {text.partition(':')[0]}://... is not a valid URI", "Check what follows ://"
        ) from None
    scheme = "gs" if parts.scheme == "gcs" else parts.scheme
    if scheme not in _SCHEMES:
        raise UsageError(
            f"{dataset} {parts.scheme}://... is of an unknown kind",
            f"Give {', '.join(name + '://' for name in _SCHEMES)}, a name or a path",
        )
    if "@" in parts.netloc:
        raise UsageError(
            f"{dataset} {scheme}://... carries a name or a key before its @",
            "Others could read it: keep it where the store's own tools look for it, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _OPTIONS.get(scheme, ())
    for name in options:
        if name not in known:
            raise UsageError(
                f"{dataset} {scheme}://... has an unknown option '{name}'",
                f"Known options: {', '.join(known)}" if known else "Give the URI without it",
            )
    where = unquote(parts.netloc + parts.path if scheme != "file" else parts.path).rstrip("/")
    if scheme == "file" and parts.netloc not in ("", "localhost"):
        raise UsageError(f"{dataset} {text}: a file:// URI has three slashes", "Add one")
    if not where:
        raise UsageError(f"{dataset} {text} names no folder", "Add its path")
    return Uri(text, scheme, where, options)


def check_known(uri: Uri) -> None:
    """Refuse a store whose address the user has never given; a local folder needs no permission.

    Raises:
        SourceError: names the address and how to give it.
    """
    if uri.scheme == "file" or uri.address in _remembered():
        return
    raise SourceError(
        f"its files say that the dataset is at {uri.address}, an address that you have never given "
        "yourself; nothing was sent there",
        f"If you trust it, give it once: `distsgd data info --dataset {shlex.quote(uri.text)}`",
    )


def remember(uri: Uri) -> None:
    """Keep an address that the user has given, for `check_known`; idempotent.

    A home folder that cannot be written is no error: the address is then asked for again.
    """
    if uri.scheme == "file" or uri.address in _remembered():
        return
    with suppress(OSError, StorageError):
        home_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open_inside(home_folder() / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{uri.address}\n".encode())
        finally:
            os.close(file)


def _remembered() -> set[str]:
    try:
        content = read_inside(home_folder() / _FILE, most=SMALL)
    except (OSError, StorageError):
        return set()
    return set(content.decode(errors="replace").splitlines())
