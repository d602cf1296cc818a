"""Start this machine as the head or a member of a Ray cluster, and keep a member joined."""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from distsgd.cluster.access import cluster_home, token_file
from distsgd.cluster.node import (
    PORT,
    Node,
    alone,
    answers,
    check_address,
    check_head,
    check_port,
    free_port,
    last_node,
    note_file,
    other_notes,
    stop_node,
    way_to,
)
from distsgd.data.folder_files import SMALL, read_inside, replace_inside
from distsgd.data.system import pause, python_module
from distsgd.errors import (
    DistsgdError,
    NotPlainFile,
    RuntimeFailure,
    UsageError,
    machine_trouble,
    storage_error,
)
from distsgd.on_ray.session import is_loopback
from distsgd.on_ray.session_guard import NODE_MARK, clear_session, mark_folder
from distsgd.spelling import spelled
from distsgd.transport.ray_variables import LOOPBACK, TLS_FILES, TOKEN, TOKEN_PATH, settings

__all__ = ["JOBS_PORT", "start_head", "start_member"]


JOBS_PORT = 8265
_STORE_BYTES = 200 * 2**20
_SECONDS_TO_START = 60
_TEMPORARY = "tmp"
_PATHS = ("PYTHONPATH", *TLS_FILES)
"""Variables that name files: made absolute, as a node does not run in the working folder."""

_MOST_CPUS = 10_000


def start_head(
    node_ip: str = "127.0.0.1",
    port: int = PORT,
    cpus: int | None = None,
    jobs_port: int = JOBS_PORT,
    token: Path | None = None,
    autoscaling: Path | None = None,
) -> Node:
    """Start this machine as the head of a new cluster, with a new token.

    Args:
        node_ip: address to listen at; a head at 127.0.0.1 can be reached only from here.
        port: port of the head.
        cpus: CPUs that the node offers; None for all.
        jobs_port: port at which it accepts jobs (`distsgd submit`), at the same address.
        token: a file with the token to use; None for a new one.
        autoscaling: the file by which Ray's cluster launcher describes the other machines.

    Raises:
        UsageError: the address is not of this machine, or a node is running already.
        RuntimeFailure: Ray did not start.
    """
    _check_cpus(cpus)
    with alone():
        _check_free(node_ip)
        _check_head(node_ip, port, jobs_port, autoscaling)
        secret = secrets.token_hex(32) if token is None else _secret_in(token)
        arguments = [
            "--head", f"--port={port}", "--include-dashboard=true", f"--dashboard-host={node_ip}",
            f"--dashboard-port={jobs_port}",
        ]  # fmt: skip
        if autoscaling is not None:
            arguments.append(f"--autoscaling-config={autoscaling.absolute()}")
        else:
            arguments.append("--no-monitor")  # of the autoscaler
        node = Node(address=f"{node_ip}:{port}", node_ip=node_ip, head=True, folder="",
                    jobs_port=jobs_port)  # fmt: skip
        return _started(node, arguments, cpus, secret)


def _check_head(node_ip: str, port: int, jobs_port: int, autoscaling: Path | None) -> None:
    for name, number in (("port", port), ("jobs_port", jobs_port)):
        if not 0 < number < 65_536:
            raise UsageError(f"{spelled(name)} cannot be {number}", "Give a number from 1 to 65535")
        check_port(node_ip, name, number)
    if autoscaling is not None and not autoscaling.is_file():
        raise UsageError(
            f"{spelled('autoscaling_config')}: there is no file {autoscaling}",
            "`ray up` puts it on the head",
        )
    _check_no_other_head()


def start_member(
    address: str, node_ip: str | None = None, token: Path | None = None, cpus: int | None = None
) -> Node:
    """Join this machine to a cluster.

    Args:
        address: HOST:PORT of its head.
        node_ip: address to listen at; None for the one from which the head is reached.
        token: a file with the head's token, which is copied; None for the one that is here.
        cpus: that the node offers; None for all.

    Raises:
        UsageError: there is no token, or as `start_head`.
        RuntimeFailure: the head cannot be reached, or Ray did not start.
    """
    _check_cpus(cpus)
    own = node_ip or way_to(address)
    with alone():
        _check_free(own)
        secret = _secret_in(token or token_file())
        check_head(address, {TOKEN: secret})
        node = Node(address=address, node_ip=own, head=False, folder="")
        return _started(node, [f"--address={address}"], cpus, secret)


def _check_cpus(cpus: int | None) -> None:
    if cpus is not None and not 0 <= cpus <= _MOST_CPUS:
        raise UsageError(
            f"{spelled('cpus')} cannot be {cpus}", f"Give a whole number from 0 to {_MOST_CPUS:,}"
        )


def _check_no_other_head() -> None:
    """Machines may share the folder, but there is one token in it."""
    for other in other_notes():
        if other.head and not is_loopback(other.node_ip) and answers(other.address):
            raise UsageError(
                f"the token of the cluster at {other.address} lies in {cluster_home()}, which that "
                "machine shares",
                "Name another folder for this one: DISTSGD_CLUSTER_HOME",
            )


def _secret_in(file: Path) -> str:
    try:
        if secret := file.read_text(encoding="utf-8").strip():
            return secret
    except (OSError, UnicodeDecodeError) as error:
        if trouble := machine_trouble(error, file):
            raise trouble from None
    raise UsageError(
        f"there is no token of the cluster in {file}",
        f"Copy the head's, which is {token_file()} there, and name it with {spelled('token_file')}",
    )


def _check_free(node_ip: str) -> None:
    if (node := last_node()) is not None:
        if node.lives:
            raise UsageError(
                f"this machine is a node of the cluster at {node.address} already",
                "`distsgd cluster stop` ends it",
            )
        clear_session(Path(node.folder))  # what is left of one that has died
    check_address(node_ip)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = path.parent.stat()
        if folder.st_uid not in (os.geteuid(), 0) or folder.st_mode & stat.S_IWOTH:
            raise UsageError(
                f"others may write to {path.parent}, where the token of the cluster is to lie",
                "Name a folder of your own: DISTSGD_CLUSTER_HOME",
            )
        replace_inside(path, content.encode())
    except OSError as error:
        raise storage_error(error, path) from None


def _started(wanted: Node, arguments: list[str], cpus: int | None, secret: str) -> Node:
    """Run `ray start`, whose processes stay, and remember them."""
    # Short, as the paths of its sockets must fit, and the user's alone.
    folder = Path(tempfile.mkdtemp(prefix="distsgd-node-", dir="/tmp"))
    os.close(mark_folder(folder))
    (folder / _TEMPORARY).mkdir(mode=0o700)
    node = replace(wanted, folder=str(folder))
    command = python_module(
        "distsgd.on_ray.private", f"--node-ip-address={node.node_ip}",
        f"--temp-dir={folder}/ray", f"--object-store-memory={_STORE_BYTES}",
        # Another Ray of this machine may have its usual port, and jobs need it.
        f"--dashboard-agent-listen-port={free_port(node.node_ip)}",
        "--disable-usage-stats", *arguments, *([] if cpus is None else [f"--num-cpus={cpus}"]),
    )  # fmt: skip
    before = {file: _content(file) for file in (token_file(), note_file())}
    _write(token_file(), secret)
    _write(note_file(), json.dumps(asdict(node)))
    if (why := _run(command, _environment(node), folder)) is None:
        return node
    clear_session(folder)
    for file, content in before.items():  # the token may be that of a cluster that lives
        if content is not None:
            _write(file, content)
        elif file == note_file():
            file.unlink(missing_ok=True)
    raise RuntimeFailure(
        f"Ray did not start: {why}", "Look whether the port is free and the disk has room"
    )


def _content(file: Path) -> str | None:
    with suppress(FileNotFoundError, NotPlainFile):
        return read_inside(file, most=SMALL).decode()
    return None


def _environment(node: Node) -> dict[str, str]:
    """Environment of Ray's processes."""
    found = {**os.environ, **settings("node"), TOKEN_PATH: str(token_file().absolute())}
    for name in _PATHS:
        if name in found:
            paths = filter(None, found[name].split(os.pathsep))
            found[name] = os.pathsep.join(map(os.path.abspath, paths))
    # Jobs start "python" by name: make it this interpreter.
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found.pop(TOKEN, None)
    found[NODE_MARK] = node.folder
    # What Ray's processes leave there is removed with the node.
    found["TMPDIR"] = str(Path(node.folder, _TEMPORARY))
    if is_loopback(node.node_ip):
        found[LOOPBACK] = "0"
    return found


def _run(command: list[str], environment: dict[str, str], folder: Path) -> str | None:
    """Run a command in a folder, so that Ray imports nothing from ours; returns why it failed."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True,
            encoding="utf-8", errors="backslashreplace", timeout=_SECONDS_TO_START,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_SECONDS_TO_START} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]


_SECONDS_TO_RETURN = 600.0
_MOST_DROPS = 5
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
_log = logging.getLogger("distsgd")


def guard_node(
    node: Node,
    stop: Callable[[], bool],
    join: Callable[[], Node] | None = None,
    seconds: float = _SECONDS_TO_RETURN,
) -> None:
    """Keep a node running until asked to stop it, or until `stop_node` does.

    Ray declares a node dead that is cut off for a few seconds, and ends it when it is back.

    Args:
        node: the node of this machine.
        stop: asked twice a second whether to stop the node.
        join: joins it to its cluster again when it has ended by itself; None for a head, whose
            cluster has ended with it.
        seconds: for how long to try to join again.

    Raises:
        DistsgdError: it has ended by itself, and cannot be joined again.
    """
    drops: deque[float] = deque(maxlen=_MOST_DROPS)
    found: Node | None = node
    while found is not None:
        node = found
        _watch(node, stop)
        if stop() or not _is_last(node):
            break
        drops.append(time.monotonic())
        try:
            _check_rejoin(node, join, drops, seconds)
            assert join is not None
            found = _joined(node, join, stop, seconds)
        except DistsgdError:
            stop_node(node.folder)
            raise
    stop_node(node.folder)


def _check_rejoin(
    node: Node, join: Callable[[], Node] | None, drops: deque[float], seconds: float
) -> None:
    """Raise an error if joining again is pointless."""
    if join is None:
        raise RuntimeFailure(f"the head {node.node_ip} has ended by itself", "Start it again")
    if len(drops) == _MOST_DROPS and drops[-1] - drops[0] < seconds:
        raise RuntimeFailure(
            f"the node {node.node_ip} has dropped out of its cluster {_MOST_DROPS} times",
            "Look at the machine and at its network",
        )


def _watch(node: Node, stop: Callable[[], bool]) -> None:
    """Return when the node is found dead twice in a row, or a stop is requested."""
    missed = 0
    while missed < 2 and not stop():
        pause(_POLL_SECONDS)
        missed = 0 if node.lives else missed + 1


def _is_last(node: Node) -> bool:
    """Whether nobody has stopped it; waits for a command that is doing so."""
    with alone():
        return last_node() == node


def _joined(
    node: Node, join: Callable[[], Node], stop: Callable[[], bool], seconds: float
) -> Node | None:
    """Join again until the head accepts the node; None if it is to be stopped instead."""
    _log.warning("the node %s has dropped out of its cluster; joining again", node.node_ip)
    until = time.monotonic() + seconds
    while not stop():
        try:
            with alone():  # a `cluster stop` at the same time runs before or after
                if last_node() != node:
                    return None
                found = join()
            _log.warning("the node %s is back", node.node_ip)
            return found
        except DistsgdError:
            if time.monotonic() > until:
                raise
        pause(_PAUSE_SECONDS)
    return None
