"""This machine as a node of a Ray cluster: started, and stopped again without harm to others."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from distsgd.data.atomic import replace_file
from distsgd.errors import RuntimeFailure, UsageError, storage_error
from distsgd.runtime.cluster_tls import check_tls
from distsgd.runtime.cluster_token import check_token, cluster_home, token_file
from distsgd.runtime.node_address import answers, check_address, check_port, free_port, way_to
from distsgd.runtime.ray_session import LOOPBACK, is_loopback
from distsgd.runtime.session_guard import MARK, clear_session, processes_of

__all__ = ["Node", "last_node", "read_node", "start_head", "start_member", "stop_node"]

PORT = 6379
JOBS_PORT = 8265
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
        jobs_port: where the head takes jobs; 0 on others.
    """

    address: str
    node_ip: str
    head: bool
    folder: str
    jobs_port: int = 0

    @property
    def processes(self) -> list[int]:
        """Those that live."""
        return processes_of(self.folder)

    @property
    def lives(self) -> bool:
        """Whether it is part of a cluster: Ray's log monitor, say, outlives a raylet that died."""
        running = set(map(_program, self.processes))
        return running >= ({"raylet", "gcs_server"} if self.head else {"raylet"})


def read_node() -> Node | None:
    """What has been started here and lives, if anything."""
    node = last_node()
    return node if node is not None and node.lives else None


def start_head(
    node_ip: str = "127.0.0.1",
    port: int = PORT,
    cpus: int | None = None,
    jobs_port: int = JOBS_PORT,
    token: Path | None = None,
    autoscaling: Path | None = None,
) -> Node:
    """Make this machine the head of a new cluster, with a new token.

    Args:
        node_ip: the address to listen at; others reach a head of 127.0.0.1 from here alone.
        port: of the head.
        cpus: that the node offers; None for all.
        jobs_port: where it takes jobs (`distsgd submit`), at the same address.
        token: a file with the token to use; None for a new one.
        autoscaling: the file by which Ray's cluster launcher describes the other machines.

    Raises:
        UsageError: the address is not of this machine, or a node runs already.
        RuntimeFailure: Ray did not start.
    """
    _check_free(node_ip)
    for flag, number in (("--port", port), ("--jobs-port", jobs_port)):
        if not 0 < number < 65_536:
            raise UsageError(f"{flag} cannot be {number}", "Give a number from 1 to 65535")
        check_port(node_ip, flag, number)
    if autoscaling is not None and not autoscaling.is_file():
        raise UsageError(
            f"--autoscaling-config: there is no file {autoscaling}", "`ray up` puts it on the head"
        )
    _check_no_other_head()
    secret = secrets.token_hex(32) if token is None else _secret_in(token)
    arguments = [
        "--head", f"--port={port}", "--include-dashboard=true", f"--dashboard-host={node_ip}",
        f"--dashboard-port={jobs_port}",
    ]  # fmt: skip
    if autoscaling is not None:
        arguments.append(f"--autoscaling-config={autoscaling}")
    node = Node(address=f"{node_ip}:{port}", node_ip=node_ip, head=True, folder="",
                jobs_port=jobs_port)  # fmt: skip
    return _started(node, arguments, cpus, secret)


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
    own = node_ip or way_to(address)
    _check_free(own)
    secret = _secret_in(token or token_file())
    check_tls(address)
    check_token(address, {"RAY_AUTH_TOKEN": secret})
    node = Node(address=address, node_ip=own, head=False, folder="")
    return _started(node, [f"--address={address}"], cpus, secret)


def _note() -> Path:
    """Where it is written what runs here; several machines may share the folder."""
    return cluster_home() / f"node-{socket.gethostname()}.json"


def _check_no_other_head() -> None:
    """Machines may share the folder, but there is one token in it."""
    for note in cluster_home().glob("node-*.json"):
        other = _noted(note)
        if note != _note() and other is not None and other.head and answers(other.address):
            raise UsageError(
                f"the token of the cluster at {other.address} lies in {cluster_home()}, which that "
                "machine shares",
                "Name another folder for this one: DISTSGD_CLUSTER_HOME",
            )


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def _secret_in(file: Path) -> str:
    try:
        if secret := file.read_text(encoding="utf-8").strip():
            return secret
    except (OSError, UnicodeDecodeError):
        pass
    raise UsageError(
        f"there is no token of the cluster in {file}",
        f"Copy the head's, which is {token_file()} there, and give it with --token-file",
    )


def last_node() -> Node | None:
    """What was started here last, whether it lives or not."""
    return _noted(_note())


def _noted(note: Path) -> Node | None:
    try:
        return Node(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def stop_node() -> Node | None:
    """End what `cluster start` has started here; returns what that was.

    Raises:
        RuntimeFailure: a process does not end.
    """
    if last_node() is None:
        return None
    with FileLock(_note().with_suffix(".lock")):  # who comes second finds that it is done
        if (node := last_node()) is None:
            return None
        clear_session(Path(node.folder))
        if left := node.processes:
            raise RuntimeFailure(f"processes {left} do not end", "End them by hand, then try again")
        _note().unlink(missing_ok=True)
    return node


def _check_free(node_ip: str) -> None:
    if (node := read_node()) is not None:
        raise UsageError(
            f"this machine is a node of the cluster at {node.address} already",
            "`distsgd cluster stop` ends it",
        )
    stop_node()  # what is left of one that has died
    check_address(node_ip)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, content.encode())
    except OSError as error:
        raise storage_error(error, path) from None


def _started(wanted: Node, arguments: list[str], cpus: int | None, secret: str) -> Node:
    """Run `ray start`, whose processes stay, and remember them."""
    # Short, as the paths of its sockets must fit, and the user's alone.
    folder = Path(tempfile.mkdtemp(prefix="distsgd-node-", dir="/tmp"))
    node = replace(wanted, folder=str(folder))
    before = token_file().read_text() if token_file().is_file() else None
    _write(token_file(), secret)
    _write(_note(), json.dumps(asdict(node)))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={node.node_ip}",
        f"--temp-dir={folder}/ray", f"--object-store-memory={_STORE_BYTES}",
        # Another Ray of this machine may have its usual port, and jobs need it.
        f"--dashboard-agent-listen-port={free_port(node.node_ip)}",
        "--disable-usage-stats", *arguments, *([] if cpus is None else [f"--num-cpus={cpus}"]),
    ]  # fmt: skip
    if (why := _trouble(command, _environment(node))) is None:
        return node
    clear_session(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _note().unlink(missing_ok=True)
    if before is not None:  # of a cluster that may live
        _write(token_file(), before)
    raise RuntimeFailure(
        f"Ray did not start: {why}", "Look whether the port is free and the disk has room"
    )


def _environment(node: Node) -> dict[str, str]:
    """Of Ray's processes."""
    found = {**os.environ, **_SETTINGS, "RAY_AUTH_TOKEN_PATH": str(token_file())}
    # Jobs are begun by the name of "python": let it be this one.
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found.pop("RAY_AUTH_TOKEN", None)
    found[MARK] = node.folder
    if is_loopback(node.node_ip):
        found[LOOPBACK] = "0"
    return found


def _trouble(command: list[str], environment: dict[str, str]) -> str | None:
    """Carry it out; returns why it failed."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS_TO_START
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_SECONDS_TO_START} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
