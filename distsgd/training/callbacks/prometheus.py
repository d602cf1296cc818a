"""The metrics of a training for Prometheus, on a port of this machine.

The port is bound to loopback and wants a token, like every listener of distsgd: on a machine with
several users, loopback is open to all of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from distsgd.config.settings import TrainConfig
from distsgd.data.locations import home_folder
from distsgd.data.system import OWN_THREAD
from distsgd.data.token_file import bearer_matches, kept_token
from distsgd.engine.events import Progress
from distsgd.errors import DistsgdError, UsageError
from distsgd.runs.history import HistoryReader
from distsgd.spelling import spelling
from distsgd.training.callbacks.callback import Callback
from distsgd.training.results import EpochRow, TrainResult

__all__ = ["Prometheus", "metrics_token_file"]

_ADDRESS = "127.0.0.1"
_SECONDS = 5.0
"""For a request to come in and an answer to go out."""

_MOST_PORT = 65_535
_POINTS = 16
"""Of the series that a look at the run folder keeps."""


def metrics_token_file() -> Path:
    """The token of the metrics port, made when first needed, for this user's eyes only."""
    return home_folder() / "metrics-token"


class Prometheus(Callback):
    """Serves the metrics of a training at ``http://127.0.0.1:PORT/metrics``.

    A request wants the header ``Authorization: Bearer TOKEN`` with the token of
    `metrics_token_file`, which Prometheus reads as ``credentials_file``. The port is open from now
    until the training ends, or until `close`.

    Args:
        port: 0 for a free one.

    Attributes:
        port: that is served.

    Raises:
        UsageError: the port cannot be used.
        StorageError: the file of the token cannot be written.
    """

    def __init__(self, port: int = 0) -> None:
        given = spelling().given("metrics_port", port)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= _MOST_PORT:
            raise UsageError(f"{given} is no port", "Give one from 1 to 65535, or 0 for a free one")
        import prometheus_client.core

        self._client: Any = prometheus_client
        self._token = kept_token(metrics_token_file())
        self._numbers: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self._about: dict[str, str] = {}
        self._history: HistoryReader | None = None
        self._lock, self._looking = threading.Lock(), threading.Lock()
        registry = self._client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server = _Server(registry, self._token, self._client, port)
        except OSError as error:
            raise UsageError(
                f"{given} cannot be used: {os.strerror(error.errno or 0).lower()}",
                "Give another port, or 0 for a free one",
            ) from None
        self.port = int(self._server.server_address[1])
        threading.Thread(
            target=self._server.serve_forever, name=f"{OWN_THREAD}-metrics", daemon=True,
            kwargs={"poll_interval": 0.5},
        ).start()  # fmt: skip

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """Keep what the run is."""
        with self._lock:
            self._history = HistoryReader(run_dir, _POINTS)
            self._about = {
                "run": run_dir.name, "dataset": str(config.dataset), "model": config.model,
                "loss": config.loss, "consistency": config.consistency,
            }  # fmt: skip
            self._numbers.update(
                updates_planned=total_steps, workers=int(config.workers), servers=config.servers
            )

    def progress(self, progress: Progress) -> None:
        """Keep the newest record of the metrics."""
        with self._lock:
            self._numbers.update(
                updates=progress.step, examples=progress.examples_seen,
                learning_rate=progress.learning_rate, seconds=progress.seconds,
                images_per_second=progress.examples_per_second,
            )  # fmt: skip
            self._losses["minibatch"], self._shares["minibatch"] = progress.loss, progress.accuracy

    def epoch(self, row: EpochRow) -> None:
        """Keep the newest epoch."""
        with self._lock:
            self._numbers.update(epochs=row.epoch)
            self._losses.update(train=row.train_loss, test=row.test_loss)
            self._shares.update(train=row.train_accuracy, test=row.test_accuracy)

    def notice(self, text: str) -> None:
        """Count a notice."""
        with self._lock:
            self._numbers["notices"] = self._numbers.get("notices", 0) + 1

    def end(self, result: TrainResult | None, error: BaseException | None) -> None:
        """Close the port."""
        self.close()

    _HELP: ClassVar[dict[str, tuple[str, str]]] = {
        "updates": ("counter", "Updates applied to W."),
        "examples": ("counter", "Examples used in them."),
        "epochs": ("counter", "Epochs that have ended."),
        "notices": ("counter", "Notices, such as the death of a worker."),
        "seconds": ("counter", "Seconds spent on steps."),
        "updates_planned": ("gauge", "Updates of the whole run."),
        "workers": ("gauge", "Worker processes at the start; 0 without any."),
        "servers": ("gauge", "Parameter servers."),
        "learning_rate": ("gauge", "Of the newest update."),
        "images_per_second": ("gauge", "Over the steps of this session."),
    }

    def collect(self) -> Iterator[Any]:
        """The metrics as they are now, for the registry of prometheus_client."""
        core = self._client.core
        with self._lock:
            numbers, about = dict(self._numbers), dict(self._about)
            tables = {"loss": dict(self._losses), "accuracy": dict(self._shares)}
        if about:
            info = core.InfoMetricFamily("distsgd_run", "What is trained.")
            info.add_metric([], about)
            yield info
        for name, (kind, words) in self._HELP.items():
            if name in numbers:
                family = core.CounterMetricFamily if kind == "counter" else core.GaugeMetricFamily
                yield family(f"distsgd_{name}", words, value=numbers[name])
        for name, values in tables.items():
            table = core.GaugeMetricFamily(
                f"distsgd_{name}",
                f"The {name} of the newest record (minibatch) and of the newest epoch.",
                labels=["split"],
            )
            for split, value in values.items():
                table.add_metric([split], value)
            yield table
        yield from self._of_processes()

    def _of_processes(self) -> Iterator[Any]:
        """What workers and servers have done, from the run folder."""
        counter = self._client.core.CounterMetricFamily
        with self._looking:
            try:
                found = None if self._history is None else self._history.look()
            except DistsgdError:  # the folder has gone; the next request may find it
                found = None
        if found is None:
            return
        seconds = counter(
            "distsgd_worker_seconds", "Seconds of each worker, by what it did.",
            labels=["worker", "doing"],
        )  # fmt: skip
        images = counter("distsgd_worker_images", "Examples of each worker.", labels=["worker"])
        for worker, columns in found.fleet.items():
            images.add_metric([worker], sum(columns["images"]))
            for doing in ("computing", "pushing", "waiting"):
                seconds.add_metric([worker, doing], max(0.0, sum(columns[doing])))
        ages = counter("distsgd_gradients", "Gradients applied, by age.", labels=["age"])
        for age, times in found.staleness.items():
            ages.add_metric([age], times)
        yield from (seconds, images, ages)
        if pushed := found.bytes.get("pushed"):
            yield counter("distsgd_pushed_bytes", "Bytes pushed to servers.", value=pushed[-1])


class _Server(ThreadingHTTPServer):
    """Answers GET /metrics to those who know the token."""

    daemon_threads = True

    def __init__(self, registry: Any, token: str, client: Any, port: int) -> None:
        self.registry, self.token, self.client = registry, token, client
        super().__init__((_ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if not bearer_matches(self.server.token, self.headers.get("Authorization")):
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        content = self.server.client.generate_latest(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", self.server.client.CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a request is no news."""

    def version_string(self) -> str:
        """No versions for those who only knock."""
        return "distsgd"
