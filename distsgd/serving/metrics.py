"""What a server of predictions counts, for Prometheus."""

from __future__ import annotations

from typing import Any

import prometheus_client

from distsgd.serving.live_model import LiveModel

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        client: Any = prometheus_client
        self._client = client
        registry = self._registry = client.CollectorRegistry(auto_describe=True)
        self._requests = client.Counter(
            "distsgd_serve_requests", "Requests answered, by path and status.",
            ["path", "status"], registry=registry,
        )  # fmt: skip
        self._seconds = client.Histogram(
            "distsgd_serve_seconds", "Seconds from the head of a request to its answer.",
            ["path"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._rows = client.Counter(
            "distsgd_serve_rows", "Rows and images classified.", registry=registry
        )
        self._batch = client.Histogram(
            "distsgd_serve_batch_rows", "Rows computed together.", buckets=_ROWS, registry=registry
        )
        self._gauges = {
            name: client.Gauge(f"distsgd_serve_{name}", words, registry=registry)
            for name, words in (
                ("waiting_rows", "Rows that wait to be computed."),
                ("connections", "Open connections."),
                ("version", "Updates applied to the W that answers."),
                ("reloads", "Checkpoints that have replaced another since the start."),
                ("failed_reloads", "Checkpoints that could not be read since the start."),
            )
        }
        self._about = client.Info("distsgd_serve_model", "What is served.", registry=registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def rows(self, count: int) -> None:
        """Rows have been classified."""
        self._rows.inc(count)

    def batch(self, rows: int) -> None:
        """A batch is computed."""
        self._batch.observe(rows)

    def connections(self, change: int) -> None:
        """A connection was opened (1) or closed (-1)."""
        self._gauges["connections"].inc(change)

    def text(self, live: LiveModel, waiting: int) -> tuple[bytes, str]:
        """All metrics as they are now, and their type of content."""
        one = live.current
        for name, value in (
            ("waiting_rows", waiting), ("version", one.version),
            ("reloads", live.replaced), ("failed_reloads", live.failed),
        ):  # fmt: skip
            self._gauges[name].set(value)
        self._about.info({"run": one.run, "weights_sha256": one.weights_sha256})
        return self._client.generate_latest(self._registry), self._client.CONTENT_TYPE_LATEST
