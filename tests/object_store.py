"""A small object store in a process of its own: the reading half of S3, with troubles to order.

``python object_store.py FOLDER ADDRESS`` serves the folders within FOLDER as buckets, prints its
port, and ends with its standard input. ``POST /-/troubles`` orders troubles for the next answers,
``GET /-/log`` tells what was read by whom.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

KEY = "AKIAEXAMPLE"
LOCK = threading.Lock()
TROUBLES: list[dict[str, Any]] = []
LOG: list[tuple[str, str, int]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root: Path

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with LOCK:
            TROUBLES[:] = json.loads(content)
            LOG.clear()
        self.answer(200, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path == "/-/log":
            with LOCK:
                content = json.dumps(LOG).encode()
            return self.answer(200, content)
        file = self.root / path.lstrip("/")
        trouble = self.trouble(path)
        time.sleep(trouble.get("wait", 0))
        # Anybody may read from the bucket called open, by plain HTTP too.
        if not path.startswith("/open/") and f"Credential={KEY}/" not in self.headers.get(
            "Authorization", ""
        ):
            return self.refuse(403, "AccessDenied")
        if trouble.get("status"):
            return self.refuse(trouble["status"], "SlowDown")
        if not file.is_file():
            return self.refuse(404, "NoSuchKey")
        return self.send(file, path, trouble)

    def trouble(self, path: str) -> dict[str, Any]:
        """What was ordered for this answer, if anything."""
        with LOCK:
            for trouble in TROUBLES:
                fits = re.search(trouble.get("path", ""), path)
                if fits and trouble.get("method", "GET") == self.command and trouble["times"] > 0:
                    trouble["times"] -= 1
                    return trouble
        return {}

    def send(self, file: Path, path: str, trouble: dict[str, Any]) -> None:
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        low = int(asked[1]) if asked else 0
        high = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        if low >= size > 0:
            return self.refuse(416, "InvalidRange")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(high - low))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if asked:
            self.send_header("Content-Range", f"bytes {low}-{high - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.wfile.flush()
        end = min(high, low + trouble["cut"]) if "cut" in trouble else high
        with LOCK:
            LOG.append((self.client_address[0], path, end - low))
        with file.open("rb") as content:
            # A byte at so many seconds, until other troubles are ordered.
            while low < end and "drip" in trouble and any(one is trouble for one in TROUBLES):
                time.sleep(trouble["drip"])
                self.wfile.write(os.pread(content.fileno(), 1, low))
                low += 1
            while low < end:
                low += os.sendfile(self.connection.fileno(), content.fileno(), low, end - low)
        if "cut" in trouble:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        return None

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def serve(arguments: Sequence[str]) -> None:
    Handler.root = Path(arguments[0])
    server = ThreadingHTTPServer((arguments[1], 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1:])
