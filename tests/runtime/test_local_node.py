"""Who may begin a head, and what becomes of the token of a cluster that is there."""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from distsgd.errors import RuntimeFailure, UsageError
from distsgd.runtime import local_node, node_guard
from distsgd.runtime.cluster_token import known_token, token_file
from distsgd.runtime.joined_cluster import address_of
from distsgd.runtime.node_note import Node


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

    def fails(command: list[str], environment: dict[str, str]) -> str:
        seen.append(token_file().read_text())
        return "it does not start"

    monkeypatch.setattr(local_node, "_trouble", fails)
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
    monkeypatch.setattr("distsgd.runtime.joined_cluster.read_node", lambda: node)
    assert address_of("auto") == "10.0.0.1:6379"
    with pytest.raises(UsageError, match="HOST:PORT"):
        address_of("http://10.0.0.1:8265")


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
