"""Who may begin a head, and what becomes of the token of a cluster that is there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distsgd.cluster import local_node
from distsgd.cluster import local_node as node_guard
from distsgd.cluster.access import known_token, token_file
from distsgd.cluster.connection import address_of, check_cluster
from distsgd.cluster.node import Node, alone, note_file
from distsgd.errors import RuntimeFailure, StorageError, UsageError
from distsgd.on_ray.session_guard import clear_session


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the cluster, with a token in it."""
    monkeypatch.setenv("DISTSGD_CLUSTER_HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    token_file().write_text("of a cluster")
    return tmp_path


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_folder_that_machines_share_has_one_head(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        node = Node(address=address, node_ip="10.0.0.9", head=True, folder="/nowhere")
        (home / "node-another.json").write_text(json.dumps(asdict(node)))
        with pytest.raises(UsageError, match="DISTSGD_CLUSTER_HOME"):
            local_node.start_head(port=free(), jobs_port=free())
    assert token_file().read_text() == "of a cluster"


def test_a_head_that_does_not_start_leaves_the_token(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fails(command: list[str], environment: dict[str, str], folder: Path) -> str:
        seen.append(token_file().read_text())
        return "it does not start"

    monkeypatch.setattr(local_node, "_run", fails)
    with pytest.raises(RuntimeFailure, match="it does not start"):
        local_node.start_head(port=free(), jobs_port=free())
    assert len(seen[0]) == 64 and token_file().read_text() == "of a cluster"
    assert not list(home.glob("node-*.json"))


def test_only_addresses_of_version_4(home: Path) -> None:
    with pytest.raises(UsageError, match="version 6"):
        local_node.start_head("::1")


def test_the_file_is_taken_unless_a_token_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file())}
    assert known_token() == ours
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert known_token() == ours
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert known_token() == {}


def test_auto_is_what_was_started_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UsageError, match="no cluster is known"):
        address_of("auto")
    node = Node(address="10.0.0.1:6379", node_ip="10.0.0.1", head=True, folder="/nowhere")
    (home / f"node-{socket.gethostname()}.json").write_text(json.dumps(asdict(node)))
    with pytest.raises(UsageError, match=r"start --head --node-ip 10\.0\.0\.1 --port 6379"):
        address_of("auto")
    monkeypatch.setattr("distsgd.cluster.connection.read_node", lambda: node)
    assert address_of("auto") == "10.0.0.1:6379"
    with pytest.raises(UsageError, match="HOST:PORT"):
        address_of("http://10.0.0.1:8265")


@contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """Somebody who is no head of Ray: says this to each connection; yields its HOST:PORT."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = door.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{door.getsockname()[1]}"
        door.shutdown(socket.SHUT_RDWR)
    thread.join()


def joins(address: str) -> None:
    local_node.start_member(address)


@pytest.mark.parametrize("wants", [check_cluster, joins])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            b"HTTP/1.1 200 OK\r\n\r\n",
            r"it serves web pages and jobs\. Give HOST:PORT of the head: 127\.0\.0\.1:6379",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"not the head of a Ray cluster"),
    ],
)
def test_what_is_no_head_is_not_left_to_ray(
    wants: Callable[[str], object], answer: bytes, message: str, home: Path
) -> None:
    """Ray would try for half a minute and end the process."""
    with listening(answer) as address, pytest.raises(RuntimeFailure, match=message):
        wants(address)


def test_the_head_of_this_machines_jobs_port_is_named(home: Path) -> None:
    with listening(b"HTTP/1.1 200 OK\r\n\r\n") as address:
        jobs_port = int(address.rpartition(":")[2])
        node = Node(address="127.0.0.1:26379", node_ip="127.0.0.1", head=True, folder="/nowhere",
                    jobs_port=jobs_port)  # fmt: skip
        (home / f"node-{socket.gethostname()}.json").write_text(json.dumps(asdict(node)))
        with pytest.raises(RuntimeFailure, match=r"of the head: 127\.0\.0\.1:26379"):
            check_cluster(address)


def test_a_proxy_is_not_asked_for_a_head(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with (
        listening(b"SSH-2.0-OpenSSH_9.2\r\n") as address,
        pytest.raises(RuntimeFailure, match=f"{address} is not the head"),
    ):
        check_cluster(address)


def test_a_node_runs_in_its_own_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its processes import nothing of the user's; what names files names them as before."""
    found: dict[str, Any] = {}

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        found.update(settings)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}")
    node = local_node.start_head(port=free(), jobs_port=free())
    assert str(found["cwd"]) == node.folder
    assert found["env"]["PYTHONPATH"] == str(Path("here").absolute())
    assert found["env"]["TMPDIR"].startswith(node.folder)
    clear_session(Path(node.folder))
    assert not Path(node.folder).exists()


def test_a_guard_ends_its_node_when_asked_and_has_no_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signals are the command's: it says whether to stop."""
    node = Node(address="10.0.0.9:6379", node_ip="10.0.0.9", head=True, folder="/nowhere")
    ended, seen, handlers = list[str](), list[object](), current_handlers()

    def stop() -> bool:
        seen.append(current_handlers())
        return True

    monkeypatch.setattr(node_guard, "stop_node", ended.append)
    node_guard.guard_node(node, stop)
    assert ended == ["/nowhere"]
    assert seen and all(found == handlers for found in seen)


def current_handlers() -> object:
    return [signal.getsignal(number) for number in signal.valid_signals()]


def test_the_token_lies_where_nobody_else_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("DISTSGD_CLUSTER_HOME", str(shared))
    with pytest.raises(UsageError, match="others may write to"):
        local_node._write(token_file(), "secret")
    assert list(shared.iterdir()) == []
    shared.chmod(0o700)
    (shared / "token").symlink_to(tmp_path / "elsewhere")
    local_node._write(token_file(), "secret")
    assert (shared / "token").read_text() == "secret" and not (tmp_path / "elsewhere").exists()
    (lock := note_file().with_suffix(".lock")).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=f"{lock.name}: it is a symbolic link"), alone():
        pass
    assert not (tmp_path / "elsewhere").exists()
