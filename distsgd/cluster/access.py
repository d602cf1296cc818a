"""The token and the TLS settings of a Ray cluster, checked before Ray connects.

Ray itself would retry for 20 to 60 seconds, or end the process.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path

from distsgd.data.locations import expanded, home_folder
from distsgd.errors import RuntimeFailure, UsageError
from distsgd.on_ray.private import CHECK_ALIVE
from distsgd.transport.handshake import context
from distsgd.transport.ray_variables import (
    AUTH_MODE,
    TLS_FILES,
    TOKEN,
    TOKEN_PATH,
    USE_TLS,
    uses_tls,
)

__all__ = ["check_tls", "check_token", "cluster_home", "known_token", "token_file"]


_TOKEN_SECONDS = 5.0
_NO_HEAD = ("UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED")


def cluster_home() -> Path:
    """Folder of the token and the node records: beside the runs, or ``$DISTSGD_CLUSTER_HOME``."""
    chosen = os.environ.get("DISTSGD_CLUSTER_HOME")
    return expanded(chosen) if chosen else home_folder() / "cluster"


def token_file() -> Path:
    """The token of the cluster, readable only by this user."""
    return cluster_home() / "token"


def known_token() -> dict[str, str]:
    """Ray's variables for the token on this machine, unless they already name another."""
    named = any(os.environ.get(name) for name in (TOKEN, TOKEN_PATH))
    if named or os.environ.get(AUTH_MODE, "token") != "token" or not token_file().is_file():
        return {}
    return {AUTH_MODE: "token", TOKEN_PATH: str(token_file())}


def check_token(address: str, settings: dict[str, str]) -> None:
    """Check that a head answers and accepts the token; Ray itself would try for 20 s.

    Args:
        address: HOST:PORT of the head.
        settings: environment variables in addition to those that are set.

    Raises:
        RuntimeFailure: it does not accept the token, or is not a head.
    """
    if uses_tls():
        return
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return
    token = _token({**os.environ, **settings})
    # As Ray does, whatever http_proxy says.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(
            CHECK_ALIVE, request_serializer=lambda sent: sent, response_deserializer=lambda got: got
        )
        try:
            call(b"", timeout=_TOKEN_SECONDS, metadata=[("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                what = "another token" if token else "a token"
                raise RuntimeFailure(
                    f"the Ray cluster at {address} requires {what}",
                    f"Copy the head's token to {token_file()}, or name its file in "
                    f"{TOKEN_PATH} with {AUTH_MODE}=token",
                ) from None
            if error.code().name in _NO_HEAD:
                raise RuntimeFailure(
                    f"what answers at {address} is not the head of a Ray cluster, or too busy",
                    "Give HOST:PORT of the head; `distsgd cluster status` shows it there",
                ) from None


def _token(environment: dict[str, str]) -> str:
    if environment.get(TOKEN):
        return environment[TOKEN]
    path = environment.get(TOKEN_PATH, "~/.ray/auth_token")
    with suppress(OSError, UnicodeDecodeError, UsageError):
        return expanded(path).read_text(encoding="utf-8").strip()
    return ""


_TLS_SECONDS = 5.0


def check_tls(address: str) -> None:
    """Check that both sides use TLS, or neither; Ray would try for a minute, or end the process.

    Args:
        address: HOST:PORT of the head.

    Raises:
        RuntimeFailure: one of the two uses TLS and the other does not, or their certificates are
            of different authorities.
        UsageError: ours cannot be read.
    """
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    speaks = _problem(address, anybody) is None
    if not uses_tls():
        if speaks:
            raise RuntimeFailure(
                f"the Ray cluster at {address} uses TLS, and this process does not",
                f"Set {USE_TLS}=1, {', '.join(TLS_FILES[:-1])} and {TLS_FILES[-1]}, as on the head",
            )
        return
    if not speaks:
        raise RuntimeFailure(
            f"the Ray cluster at {address} does not use TLS, and RAY_USE_TLS is set here",
            "Start its head with the same settings, or unset RAY_USE_TLS",
        )
    ours = context(server=False)
    ours.set_alpn_protocols(["h2"])
    if (problem := _problem(address, ours)) is not None:
        raise RuntimeFailure(
            f"no TLS with the Ray cluster at {address}: {problem}",
            "Its certificate and that of this machine have to be of the authority in "
            f"{TLS_FILES[-1]}",
        )


def _problem(address: str, how: ssl.SSLContext) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_TLS_SECONDS) as plain,
            how.wrap_socket(plain, server_hostname=host) as secured,
        ):
            if how.verify_mode == ssl.CERT_REQUIRED:
                secured.recv(1)  # the peer rejects our certificate only after the handshake
    except (OSError, ssl.SSLError) as error:
        return getattr(error, "reason", None) or str(error)
    return None
