"""Who may see the page: a token in the link, then a cookie; and requests of its own pages alone.

Any program of this machine and any web page in the user's browser can send requests to a port on
loopback. So each needs the cookie that the link gives; the host must be loopback by name, which a
domain that an attacker points here (DNS rebinding) is not; and the origin must be the page's own.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from distsgd.data.token_file import same_secret

__all__ = ["Access"]

_HOSTS = ("127.0.0.1", "localhost", "::1")
_BYTES = 24


def _secret() -> str:
    return secrets.token_urlsafe(_BYTES)


@dataclass(frozen=True)
class Access:
    """The secrets of one server.

    Attributes:
        token: in the link.
        session: in the cookie.
        key: that a request which does something carries in its header X-Distsgd-Key; only a page
            from here can read it.
    """

    token: str = field(default_factory=_secret)
    session: str = field(default_factory=_secret)
    key: str = field(default_factory=_secret)

    def opens(self, token: str | None) -> bool:
        """Whether this is the token of the link."""
        return same_secret(self.token, token)

    def refusal(
        self, method: str, headers: Mapping[str, str], cookie: str | None, *, link: bool = False
    ) -> str:
        """Why a request is refused, or "".

        Args:
            method: of the request.
            headers: of the request; names in any case.
            cookie: value of our cookie, or None.
            link: whether it is the link with its token, which needs no cookie.
        """
        host = headers.get("Host", "")
        if not _is_loopback(host):
            return "this page answers to 127.0.0.1 and localhost alone"
        origin = headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return "requests of other pages are refused"
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not link:
            return "requests of other pages are refused"
        if not link and not same_secret(self.session, cookie):
            return "open the link that `distsgd watch` printed"
        if method not in ("GET", "HEAD") and (
            origin is None or not same_secret(self.key, headers.get("X-Distsgd-Key"))
        ):
            return "only the page itself may ask for this"
        return ""


def _is_loopback(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname in _HOSTS and "@" not in host and (parts.port or 80) > 0
    except ValueError:
        return False
