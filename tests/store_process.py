"""The object store of `object_store`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from object_store import KEY

SECRETS = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}


class StoreProcess:
    """A running store; see `object_store`."""

    def __init__(self, address: str, ask_through: Sequence[str]) -> None:
        self.address, self._ask_through = address, ask_through

    def s3(self, path: str) -> str:
        """A folder for whoever has the keys."""
        return f"s3://{path}?endpoint_override={self.address}&scheme=http"

    def open(self, path: str) -> str:
        """A folder for everybody."""
        return self.s3(f"open/{path}") + "&anonymous=true"

    def order(self, *troubles: dict[str, Any]) -> None:
        """Order troubles, and forget what was read."""
        self._ask("/-/troubles", json.dumps([{"times": 1, **trouble} for trouble in troubles]))

    def log(self) -> list[tuple[str, str, int]]:
        """(reader's address, path, bytes) of every answer with content."""
        return [(who, path, size) for who, path, size in json.loads(self._ask("/-/log"))]

    def _ask(self, path: str, content: str = "") -> str:
        command = [*self._ask_through, sys.executable, "-c", _ASK]
        done = subprocess.run(
            [*command, f"http://{self.address}{path}", content], capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return done.stdout


_ASK = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], sys.argv[2].encode() or None, 10).read().decode())
"""


@contextmanager
def object_store(
    folder: Path, host: str = "127.0.0.1", ask_through: Sequence[str] = ()
) -> Iterator[StoreProcess]:
    """A store of the buckets in ``folder``; ``ask_through`` comes before its command line."""
    command = [*ask_through, sys.executable, str(Path(__file__).parent / "object_store.py")]
    process = subprocess.Popen(
        [*command, str(folder), host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield StoreProcess(f"{host}:{process.stdout.readline().strip()}", ask_through)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
