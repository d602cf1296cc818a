"""Tokens of this user's listeners: kept in files for the user's eyes alone, compared safely."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from distsgd.data.atomic import replace_file
from distsgd.data.folder_files import SMALL, read_inside
from distsgd.errors import storage_error

__all__ = ["bearer_matches", "kept_token", "same_secret"]

_BYTES = 32


def kept_token(path: Path) -> str:
    """The token in a file; a new one, written there, if there is none.

    Raises:
        StorageError: the file cannot be read or written.
    """
    try:
        if path.is_file() and (known := read_inside(path, most=SMALL).decode("ascii").strip()):
            return known
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_urlsafe(_BYTES)
        replace_file(path, f"{token}\n".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise storage_error(error if isinstance(error, OSError) else OSError(), path) from None
    return token


def same_secret(ours: str, theirs: str | None) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return theirs is not None and hmac.compare_digest(
        ours.encode(), theirs.encode("utf-8", "surrogateescape")
    )


def bearer_matches(token: str, authorization: str | None) -> bool:
    """Whether a header ``Authorization: Bearer TOKEN`` carries a token."""
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and same_secret(token, given.strip())
