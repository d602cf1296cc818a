"""Two hosts on this machine with a Ray cluster of distsgd over both; see `tests/cluster/hosts.py`.

Needs root, for network namespaces. The link of the second host is all that connects them, so the
kernel's counters of that link count every byte between them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.processes import Failure

_TESTS = Path(__file__).parents[2] / "tests"


@dataclass(frozen=True)
class TwoHosts:
    """The hosts, `tests/cluster/hosts.Host` each; the first is the head, with the server."""

    first: Any
    second: Any

    def trained(self, *arguments: object, seconds: float = 300) -> dict[str, Any]:
        """The result of a training on two workers of each host, started on the first."""
        given = ("train", "--address", "auto", "--workers", "4", "--json", *arguments)
        done = self.first.distsgd(*given, timeout=seconds)
        if done.returncode:
            raise Failure((done.stderr or done.stdout or "nothing").strip().splitlines()[-1])
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def bytes_between(self) -> int:
        """All bytes that have passed between the hosts so far, both ways, headers and all."""
        counters = Path("/sys/class/net", self.second.link, "statistics")
        return sum(int((counters / f"{way}_bytes").read_text()) for way in ("rx", "tx"))


def why_not() -> str:
    """What is missing to make hosts here; "" if nothing is."""
    return _hosts().possible() or ""


def _hosts() -> Any:
    for folder in (_TESTS, _TESTS / "cluster"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    import hosts

    return hosts


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """A server and two workers have room on the first, two workers on the second.

    Raises:
        Failure: the cluster does not start.
    """
    with _hosts().hosts(2) as (first, second):
        started = False
        try:
            _run(first, "cluster", "start", "--head", "--node-ip", first.ip, "--cpus", 3)
            started = True
            token = second.folder / "token"
            shutil.copy(first.folder / "home" / "cluster" / "token", token)
            _run(second, "cluster", "start", "--join", f"{first.ip}:6379",
                 "--token-file", token, "--cpus", 2)  # fmt: skip
            yield TwoHosts(first, second)
        finally:
            if started:
                for host in (second, first):
                    host.distsgd("cluster", "stop")


def _run(host: Any, *arguments: object) -> None:
    done = host.distsgd(*arguments)
    if done.returncode:
        raise Failure((done.stderr or done.stdout or "nothing").strip().splitlines()[-1])
