"""A head that takes jobs no longer, and one that never says anything."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import requests

from distsgd.cluster import jobs as job_api
from distsgd.cluster.jobs import JobApi, jobs_address
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.private import JOB_LOGGERS


def test_who_is_connected_to_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "_PATIENCE", (1.0, 0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RuntimeFailure, match="nothing accepts jobs"), job_api.job_api(address):
            pass


class Gone:
    """A client whose head lost its power: the stream of the log just stays silent."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "the first line"
        await asyncio.Event().wait()

    asked = 0

    def get_job_info(self, job: str) -> Any:
        self.asked += 1
        raise requests.ConnectionError("no route to host")


def test_a_package_may_take_its_time_on_a_slow_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for a connection is one for all that is sent, too."""
    asked: list[tuple[str, tuple[float, float]]] = []

    def request(method: str, url: str, **named: Any) -> requests.Response:
        asked.append((method, named["timeout"]))
        answer = requests.Response()
        answer.status_code, answer._content = 200, b'{"ray_version": "2.60.0"}'
        return answer

    monkeypatch.setattr(requests, "request", request)
    with job_api.job_api("http://head:8265") as api:
        api._client._do_request("PUT", "/package", data=bytes(10))
    assert {method for method, _ in asked[:-1]} == {"GET"} and asked[-1][0] == "PUT"
    assert asked[0][1][0] <= 5 and asked[-1][1][0] >= 60


def test_following_ends_when_the_head_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "_SECONDS_UNSEEN", 0.05)
    monkeypatch.setattr(job_api, "_SECONDS_GONE", 0.3)
    client: Any = Gone()
    shown: list[str] = []
    with pytest.raises(RuntimeFailure, match="nothing accepts jobs at http://head:8265"):
        JobApi(client, "http://head:8265").follow("job", shown.append)
    assert shown == ["the first line"] and client.asked > 1


def test_the_address_that_rays_own_commands_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    assert jobs_address("auto") == "http://10.0.0.1:8265"


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody answers at, in the environment."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")


def test_no_proxy_is_asked_for_a_head_nearby(dead_proxy: None) -> None:
    """Loopback and private addresses are reached without one, wherever http_proxy leads."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=answer_all, args=(door, requests), daemon=True).start()
        with job_api.job_api(f"http://127.0.0.1:{door.getsockname()[1]}"):
            assert requests and all(one.startswith(b"GET /api/version ") for one in requests)
        door.shutdown(socket.SHUT_RDWR)


def answer_all(door: socket.socket, requests: list[bytes]) -> None:
    """A head that records each request and answers with its version, until the door is closed."""
    body = b'{"ray_version": "2.60.0"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with suppress(OSError):
        while True:
            connection, _ = door.accept()
            with connection:
                requests.append(connection.recv(10_000))
                connection.sendall(head.encode() + body)


def test_a_dead_proxy_is_named(dead_proxy: None) -> None:
    address = "http://1.1.1.1:8265"
    with (
        pytest.raises(RuntimeFailure, match=r"proxy that http_proxy .*no_proxy=1\.1\.1\.1"),
        job_api.job_api(address),
    ):
        pass


def test_the_loggers_of_rays_client_are_as_before() -> None:
    logger = logging.getLogger(JOB_LOGGERS[0])
    before = logger.level
    with pytest.raises(RuntimeFailure), job_api.job_api("http://127.0.0.1:1"):
        pass
    assert logger.level == before
