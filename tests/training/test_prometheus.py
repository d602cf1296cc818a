"""What Prometheus' own parser finds at the port of a training, and who may ask."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from listening import listeners
from prometheus_client.parser import text_string_to_metric_families
from support import Run, on_sample, wait_for

import distsgd
from distsgd.errors import UsageError
from distsgd.runs.history import HistoryReader
from distsgd.training.callbacks.prometheus import metrics_token_file

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"


@pytest.fixture
def served() -> Iterator[distsgd.Prometheus]:
    found = distsgd.Prometheus()
    yield found
    found.close()


def get(port: int, path: str = "/metrics", token: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def samples(port: int) -> dict[str, float]:
    """Name of a metric, and of some of its labels -> value, by Prometheus' own parser."""
    status, text = get(port, token=metrics_token_file().read_text().strip())
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [sample.labels.get(key, "") for key in ("split", "worker", "doing", "age")]
            found[" ".join(filter(None, (sample.name, *labels)))] = sample.value
    return found


def test_read_back_by_prometheus(served: distsgd.Prometheus) -> None:
    seen: list[dict[str, float]] = []

    class Scrape(distsgd.Reporter):
        def ended(self) -> None:
            wait_for(lambda: "distsgd_updates_total" in samples(served.port))
            seen.append(samples(served.port))

    config = on_sample(workers=0, epochs=2, log_every=2)
    result = distsgd.train(config=config, callbacks=[served], reporter=Scrape())
    (found,) = seen
    assert found["distsgd_updates_total"] <= found["distsgd_updates_planned"] == result.steps
    assert found["distsgd_run_info"] == 1 and found["distsgd_workers"] == 0
    with pytest.raises(OSError):
        get(served.port)
    history = HistoryReader(result.run_dir).look()
    ended = distsgd.Prometheus()
    ended.started(config, Path(result.run_dir), result.steps)
    found = samples(ended.port)
    ended.close()
    assert found["distsgd_gradients_total 0"] == history.staleness["0"] > 0
    for worker, columns in history.fleet.items():
        spent = found[f"distsgd_worker_seconds_total {worker} computing"]
        assert spent == pytest.approx(sum(columns["computing"]))
        assert found[f"distsgd_worker_images_total {worker}"] == result.examples_seen


def test_the_numbers_are_those_of_the_training(served: distsgd.Prometheus) -> None:
    from distsgd.engine.events import Progress
    from distsgd.training.results import EpochRow

    assert samples(served.port) == {}
    served.progress(Progress(7, 0, 1.5, 0.25, 0.01, 1792, 2.0, 896.0))
    served.epoch(EpochRow(epoch=1, train_loss=1.25, train_accuracy=0.4, test_loss=1.75,
                          test_accuracy=0.375, seconds=2.0))  # fmt: skip
    served.notice("a worker died")
    expected = {
        "distsgd_updates_total": 7, "distsgd_examples_total": 1792, "distsgd_epochs_total": 1,
        "distsgd_notices_total": 1, "distsgd_seconds_total": 2.0, "distsgd_learning_rate": 0.01,
        "distsgd_images_per_second": 896.0, "distsgd_loss minibatch": 1.5,
        "distsgd_loss test": 1.75, "distsgd_loss train": 1.25, "distsgd_accuracy minibatch": 0.25,
        "distsgd_accuracy test": 0.375, "distsgd_accuracy train": 0.4,
    }  # fmt: skip
    assert samples(served.port) == expected


def test_nobody_without_the_token(served: distsgd.Prometheus) -> None:
    token = metrics_token_file().read_text().strip()
    assert stat.S_IMODE(metrics_token_file().stat().st_mode) == 0o600 and len(token) > 30
    for wrong in (None, "", "x", token[:-1], f"{token}x", "\xff"):
        assert get(served.port, token=wrong) == (401, "")
    assert get(served.port, "/other", token)[0] == 404
    own = [one for one in listeners([os.getpid()]) if one.port == served.port]
    assert [one.ip for one in own] == ["127.0.0.1"]
    second = distsgd.Prometheus()
    assert metrics_token_file().read_text().strip() == token and second.port != served.port
    second.close()


@pytest.mark.parametrize("port", [-1, 65_536, True, "80"])
def test_what_is_no_port_is_refused(port: object) -> None:
    with pytest.raises(UsageError, match="is no port"):
        distsgd.Prometheus(port)  # type: ignore[arg-type]


def test_by_the_command_line(distsgd_here: Run, tmp_path: Path) -> None:
    words = ("train", "--dataset", "sample", "--workers", 0, "--epochs", 1, "--json")
    done = distsgd_here(*words, "--metrics-port", 0)
    assert json.loads(done.stdout)["status"] == "finished"
    assert "metrics at http://127.0.0.1:" in done.stderr and "token in " in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = distsgd_here(*words, "--metrics-port", port)
    assert done.returncode == 2 and f"--metrics-port {port} cannot be used" in done.stderr


def test_the_dashboard_asks_for_metrics_that_are_there(served: distsgd.Prometheus) -> None:
    import re

    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    names = set(re.findall(r"distsgd_\w+", " ".join(asked)))
    known = {f"distsgd_{name}{'_total' * (kind == 'counter')}"
             for name, (kind, _) in served._HELP.items()}  # fmt: skip
    tables = {"loss", "accuracy", "worker_seconds_total", "worker_images_total", "gradients_total",
              "pushed_bytes_total", "run_info"}  # fmt: skip
    assert names and names <= known | {f"distsgd_{name}" for name in tables}
    page = (DASHBOARD.parents[1] / "distsgd" / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in known | {f"distsgd_{name}" for name in tables})
    scrape = yaml.safe_load((DASHBOARD.parent / "prometheus.yaml").read_text(encoding="utf-8"))
    assert scrape["scrape_configs"][0]["authorization"]["credentials_file"]
