"""Which ports processes listen at, and what those answer to somebody without the token."""

from __future__ import annotations

import ast
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_SECURITY = Path(__file__).parents[1] / "cluster" / "SECURITY.md"
_LISTENS = "0A"
"""The state of such a socket in /proc/net/tcp, as Linux numbers them."""


class Listener(NamedTuple):
    """A port that a process listens at.

    Attributes:
        program: what the process is: "raylet", "dashboard.py", "ray::DashboardAgent".
        ip: the address; "0.0.0.0" for every one.
        port: its number.
    """

    program: str
    ip: str
    port: int


def documented() -> dict[tuple[str, str], set[str]]:
    """The table of ports in SECURITY.md: (program, where it listens) -> what it answers."""
    found = {}
    lines = _SECURITY.read_text(encoding="utf-8").splitlines()
    row = lines.index("| process | port | listens at | answers without the token |") + 2
    while lines[row].startswith("|"):
        programs, _, places, given = lines[row].strip("| ").split(" | ")
        for program in re.findall("`([^`]+)`", programs):
            for place in places.split(", "):
                found[program, place] = set(re.findall("`([^`]+)`", given))
        row += 1
    return found


def listeners(pids: Iterable[int]) -> list[Listener]:
    """All of these processes, in whatever network namespace they are."""
    found = []
    for pid in pids:
        with suppress(OSError):  # it has ended
            process, sockets = Path("/proc", str(pid)), set[str]()
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    sockets.update(re.findall(r"^socket:\[(\d+)\]$", str(link.readlink())))
            program = _program((process / "cmdline").read_bytes())
            for name in ("tcp", "tcp6"):
                for line in (process / "net" / name).read_text().splitlines()[1:]:
                    _, where, _, state, *_, inode = line.split()[:10]
                    if state == _LISTENS and inode in sockets:
                        ip, _, port = where.partition(":")
                        found.append(Listener(program, _address(ip), int(port, 16)))
    return found


def _program(command_line: bytes) -> str:
    words = command_line.decode().split("\0")
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0].strip()
    if Path(words[0]).name.startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")]
    return Path(words[0]).name


def _address(digits: str) -> str:
    """Of the kernel's hexadecimal words, each of them in the processor's order."""
    words = [bytes.fromhex(digits[n : n + 8]) for n in range(0, len(digits), 8)]
    raw = b"".join(word[:: -1 if sys.byteorder == "little" else 1] for word in words)
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    ip = ipaddress.IPv6Address(raw)
    return "0.0.0.0" if not int(ip) else str(ip.ipv4_mapped or ip)


@cache
def _paths() -> list[str]:
    """Of all that Ray's web servers serve, and of metrics."""
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    found = {"/", "/metrics"}
    for source in (Path(spec.origin).parent / "dashboard").rglob("*.py"):
        for text in re.findall(r"routes\.get\(\s*(\"[^\"]+\")", source.read_text()):
            found.add(re.sub(r"\{[^}]*\}", "x", ast.literal_eval(text)))
    return sorted(found)


def answers(
    ports: Iterable[int], host: str, user: int | None = None, through: Sequence[str] = ()
) -> dict[int, set[str]]:
    """What ports give to somebody who has no token.

    Args:
        ports: to ask.
        host: their address.
        user: to ask as, by number; None for ours.
        through: comes before the command line, such as ``ip netns exec NAME``.

    Returns:
        port -> paths of HTTP and services of gRPC, by their last names, that answered.
    """
    asked = json.dumps([host, sorted(set(ports)), _paths(), user])
    done = subprocess.run(
        [*through, sys.executable, "-c", _ASK, asked], capture_output=True, text=True, check=True
    )
    return {int(port): set(found) for port, found in json.loads(done.stdout).items()}


_ASK = r"""
import http.client, importlib, json, os, pkgutil, sys
import grpc
import ray.core.generated

host, ports, paths, user = json.loads(sys.argv[1])
NAMES = "grpc.reflection.v1alpha.ServerReflection"
METHODS = {"grpc.health.v1.Health": ["Check"], "grpc.channelz.v1.Channelz": ["GetServers"]}
for module in pkgutil.iter_modules(ray.core.generated.__path__):
    if module.name.endswith("_pb2"):
        file = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
        for service in file.services_by_name.values():
            METHODS[service.full_name] = [method.name for method in service.methods]
REFUSALS = [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED]
if user is not None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def over_http(port):
    for path in paths:
        asking = http.client.HTTPConnection(host, port, timeout=5)
        try:
            asking.request("GET", path)
            status = asking.getresponse().status
        except (OSError, http.client.HTTPException):  # it speaks no HTTP, or nothing
            return
        finally:
            asking.close()
        if status not in (401, 403, 404, 405):
            yield path


def over_grpc(port):
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:

        def answered(method, sent=b""):
            try:
                return next(channel.stream_stream(method)(iter([sent]), timeout=5), b"")
            except grpc.RpcError as error:
                return None if error.code() in REFUSALS else (error.details() or "").encode()

        try:
            grpc.channel_ready_future(channel).result(timeout=0.5)
        except grpc.FutureTimeoutError:  # it speaks no gRPC
            return
        names = answered(f"/{NAMES}/ServerReflectionInfo", b"\x3a\x01*")  # list the services
        if names is not None:
            yield NAMES.rpartition(".")[2]
        for service, methods in METHODS.items():
            if names is None or service.encode() in names:
                if any(answered(f"/{service}/{method}") is not None for method in methods):
                    yield service.rpartition(".")[2]


print(json.dumps({port: list(over_http(port)) or list(over_grpc(port)) for port in ports}))
"""
