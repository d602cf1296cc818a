"""This machine as a node of a Ray cluster: started, and stopped again without harm to others."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from distsgd.data.atomic import replace_file
from distsgd.errors import RuntimeFailure, UsageError, storage_error
from distsgd.runtime.cluster_token import check_token, cluster_home, token_file
from distsgd.runtime.session_guard import clear_session, processes_of

__all__ = ["Node", "read_node", "start_head", "start_member", "stop_node"]

PORT = 6379
_STORE_BYTES = 200 * 2**20
_SECONDS_TO_START = 60
_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",
    "RAY_local_fs_capacity_threshold": "1",
    "RAY_enable_open_telemetry": "0",
    # A node that does not answer for so long is dead: 5 s instead of a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """What `cluster start` has started here.

    Attributes:
        address: HOST:PORT of the cluster's head.
        node_ip: the address that this machine listens at.
        head: whether it is the head.
        folder: of Ray's files; every process of it names the folder.
    """

    address: str
    node_ip: str
    head: bool
    folder: str

    @property
    def processes(self) -> list[int]:
        """Those that live."""
        return processes_of(self.folder)


def read_node() -> Node | None:
    """What has been started here and lives, if anything."""
    node = _remembered()
    return node if node is not None and node.processes else None


def start_head(node_ip: str = "127.0.0.1", port: int = PORT, cpus: int | None = None) -> Node:
    """Make this machine the head of a new cluster, with a new token.

    Args:
        node_ip: the address to listen at; others reach a head of 127.0.0.1 from here alone.
        port: of the head.
        cpus: that the node offers; None for all.

    Raises:
        UsageError: the address is not of this machine, or a node runs already.
        RuntimeFailure: Ray did not start.
    """
    _check_free(node_ip)
    if not 0 < port < 65_536:
        raise UsageError(f"--port cannot be {port}", "Give a number from 1 to 65535")
    _write(token_file(), secrets.token_hex(32))
    arguments = ["--head", f"--port={port}", "--include-dashboard=false"]
    return _started(f"{node_ip}:{port}", node_ip, True, arguments, cpus)


def start_member(
    address: str, node_ip: str | None = None, token: Path | None = None, cpus: int | None = None
) -> Node:
    """Join this machine to a cluster.

    Args:
        address: HOST:PORT of its head.
        node_ip: the address to listen at; None for the one that the head is reached from.
        token: a file with the head's token, which is copied; None for the one that is here.
        cpus: that the node offers; None for all.

    Raises:
        UsageError: there is no token, or as `start_head`.
        RuntimeFailure: the head cannot be reached, or Ray did not start.
    """
    own = node_ip or _way_to(address)
    _check_free(own)
    given = token or token_file()
    try:
        secret = given.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"there is no token of the cluster in {given}",
            f"Copy the head's, which is {token_file()} there, and give it with --token-file",
        ) from None
    check_token(address, {"RAY_AUTH_TOKEN": secret})
    _write(token_file(), secret)
    return _started(address, own, False, [f"--address={address}"], cpus)


def _remembered() -> Node | None:
    """What was started here last, whether it lives or not."""
    try:
        return Node(**json.loads((cluster_home() / "node.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def stop_node() -> Node | None:
    """End what `cluster start` has started here; returns what that was.

    Raises:
        RuntimeFailure: a process does not end.
    """
    node = _remembered()
    if node is None:
        return None
    clear_session(Path(node.folder))
    if left := node.processes:
        raise RuntimeFailure(f"processes {left} do not end", "End them by hand, then try again")
    (cluster_home() / "node.json").unlink(missing_ok=True)
    return node


def _check_free(node_ip: str) -> None:
    if (node := read_node()) is not None:
        raise UsageError(
            f"this machine is a node of the cluster at {node.address} already",
            "`distsgd cluster stop` ends it",
        )
    stop_node()  # what a loss of power has left
    try:
        ipaddress.ip_address(node_ip)
        with socket.socket(socket.AF_INET6 if ":" in node_ip else socket.AF_INET) as probe:
            probe.bind((node_ip, 0))
    except (ValueError, OSError):
        raise UsageError(
            f"--node-ip {node_ip} is no address of this machine", "`ip addr` shows those it has"
        ) from None


def _way_to(address: str) -> str:
    """The address of this machine that the head sees."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--join cannot be {address}", "Give HOST:PORT of the head")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as found:
            own: str = found.getsockname()[0]
            return own
    except OSError as error:
        raise RuntimeFailure(
            f"no head answers at {address}: {error.strerror or error}",
            "Look whether it was started with --node-ip of an address that this machine reaches",
        ) from None


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, content.encode())
    except OSError as error:
        raise storage_error(error, path) from None


def _started(
    address: str, node_ip: str, head: bool, arguments: list[str], cpus: int | None
) -> Node:
    """Run `ray start`, whose processes stay, and remember them."""
    # Short, as the paths of its sockets must fit, and the user's alone.
    folder = Path(tempfile.mkdtemp(prefix="distsgd-node-", dir="/tmp"))
    node = Node(address=address, node_ip=node_ip, head=head, folder=str(folder))
    _write(cluster_home() / "node.json", json.dumps(asdict(node)))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={node_ip}",
        f"--temp-dir={folder}/ray", f"--object-store-memory={_STORE_BYTES}",
        "--disable-usage-stats", *arguments, *([] if cpus is None else [f"--num-cpus={cpus}"]),
    ]  # fmt: skip
    environment = {**os.environ, **_SETTINGS, "RAY_AUTH_TOKEN_PATH": str(token_file())}
    environment.pop("RAY_AUTH_TOKEN", None)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS_TO_START
        )
        failed = done.returncode != 0
        why = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        failed, why = True, f"it takes longer than {_SECONDS_TO_START} s"
    if failed:
        clear_session(folder)
        shutil.rmtree(folder, ignore_errors=True)
        (cluster_home() / "node.json").unlink(missing_ok=True)
        raise RuntimeFailure(
            f"Ray did not start: {why}", "Look whether the port is free and the disk has room"
        )
    return node
