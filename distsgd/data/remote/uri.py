"""Where a remote dataset lies: a URI of its folder, without any secret in it."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from distsgd.errors import UsageError

__all__ = ["SCHEMES", "Uri", "is_uri", "parse_uri"]

SCHEMES = ("s3", "gs", "http", "https", "file")

_S3_OPTIONS = ("endpoint_override", "region", "scheme", "anonymous")
_OPTIONS = {"s3": _S3_OPTIONS, "gs": ("endpoint_override", "scheme", "anonymous")}


class Uri(NamedTuple):
    """A folder somewhere.

    Attributes:
        text: as the user has given it, without a slash at its end.
        scheme: one of `SCHEMES`.
        where: bucket and path, path, or what follows ``//``.
        options: of the store.
    """

    text: str
    scheme: str
    where: str
    options: dict[str, str]

    @property
    def name(self) -> str:
        """It without its options, for messages."""
        return self.text.partition("?")[0]


def is_uri(text: str) -> bool:
    """Whether this is meant as a URI, and not as a name or a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse_uri(text: str) -> Uri:
    """Take a URI apart.

    Raises:
        UsageError: it is of an unknown kind, is not whole, or carries a secret.
    """
    try:
        parts = urlsplit(text)
    except ValueError:  # such as brackets that are not closed; what it says may have a secret
        raise UsageError(
            f"--dataset {text.partition(':')[0]}://... is no address", "Check what follows ://"
        ) from None
    scheme = "gs" if parts.scheme == "gcs" else parts.scheme
    if scheme not in SCHEMES:
        raise UsageError(
            f"--dataset {parts.scheme}://... is of an unknown kind",
            f"There are {', '.join(name + '://' for name in SCHEMES)}, names and paths",
        )
    if "@" in parts.netloc:
        raise UsageError(
            f"--dataset {scheme}://... carries a name or a key before its @",
            "Others could read it: keep it where the store's own tools look for it, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _OPTIONS.get(scheme, ())
    for name in options:
        if name not in known:
            raise UsageError(
                f"--dataset {scheme}://... has an option '{name}' that is not known",
                f"There are: {', '.join(known)}" if known else "Give the address without it",
            )
    where = unquote(parts.netloc + parts.path if scheme != "file" else parts.path).rstrip("/")
    if scheme == "file" and parts.netloc not in ("", "localhost"):
        raise UsageError(f"--dataset {text}: a file:// URI has three slashes", "Add one")
    if not where:
        raise UsageError(f"--dataset {text} names no folder", "Add its path")
    return Uri(text, scheme, where, options)
