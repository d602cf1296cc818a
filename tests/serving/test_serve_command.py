"""`distsgd serve` as a process: how it begins, how it ends, and that it writes nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_client import png
from support import PATIENCE, Run, command_line

import distsgd
from distsgd.data.dataset import Dataset
from distsgd.errors import RunError, UsageError
from distsgd.runs.checkpoint import checkpoint_path
from distsgd.serving.limits import Limits
from distsgd.serving.listener import listen, serve_token_file
from distsgd.serving.live_model import LiveModel


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    distsgd.train(dataset="sample", workers=0, epochs=2, validation=0.1, run_dir=folder)
    return folder


@contextmanager
def serving(*arguments: object, **more: Any) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A server, and what it prints when it is ready."""
    command = command_line("serve", "--json", "--port", 0, *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more) as process:
        text = ""
        try:
            assert process.stdout is not None
            for line in process.stdout:
                text += line
                if line == "}\n":
                    break
            yield process, json.loads(text)
        finally:
            process.kill()


def ask(about: Any, body: bytes) -> Any:
    token = Path(about["token_file"]).read_text().strip()
    request = urllib.request.Request(
        f"{about['url']}/predict?top=10", body,
        {"Authorization": f"Bearer {token}", "Content-Type": "image/png"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def nothing_can_be_written() -> None:
    """As on a full disk, for this process: every write to a file fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_it_answers_on_a_full_disk_and_ends_in_order(run: Path, sample: Dataset) -> None:
    (pixels, _) = next(sample.test.batches())
    one = distsgd.predict(run, np.array(pixels[:1]), top=10)[0]
    path = serve_token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret\n")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with serving(run, preexec_fn=nothing_can_be_written, env=environment) as (process, about):
        assert about["model"] == "run" and about["process"] == process.pid
        for _ in range(20):
            content = ask(about, png(np.array(pixels[0])))
            assert content["predictions"][0]["probabilities"] == [*one.probabilities]
            assert content["weights_sha256"] == about["weights_sha256"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_reload_on_a_full_disk_under_load_fails_no_request(run: Path, sample: Dataset) -> None:
    pixels = np.array(next(sample.test.batches())[0][:1])
    live = distsgd.load(run)
    first, last = live.checkpoints[-2:]
    expected = {
        version: sorted(live.predictor(version).probabilities(pixels)[0].tolist(), reverse=True)
        for version in (first, last)
    }
    assert expected[first] != expected[last]
    newest = checkpoint_path(run / "checkpoints", last)
    newest.rename(away := run / "later")
    path = serve_token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret\n")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        serving(run, preexec_fn=nothing_can_be_written, env=environment) as (_, about),
        ThreadPoolExecutor(4) as clients,
    ):
        seen: list[int] = []
        give_up = time.monotonic() + PATIENCE

        def ask_again_and_again() -> None:
            while seen.count(last) < 40:
                content = ask(about, png(pixels[0]))  # raises for any answer but 200
                version = content["version"]
                assert content["predictions"][0]["probabilities"] == expected[version]
                seen.append(version)
                if seen.count(first) >= 40:
                    with suppress(FileNotFoundError):
                        away.rename(newest)
                assert time.monotonic() < give_up

        for asking in [clients.submit(ask_again_and_again) for _ in range(4)]:
            asking.result()
    assert set(seen) == {first, last}


@pytest.mark.ray
def test_ray_serve_gives_the_same_answers(run: Path, sample: Dataset) -> None:
    pytest.importorskip("starlette", reason="needs ray[serve]")
    pytest.importorskip("uvicorn", reason="needs ray[serve]")
    (pixels, _) = next(sample.test.batches())
    one = distsgd.predict(run, np.array(pixels[:1]), top=10)[0]
    with serving(run, "--ray", "--replicas", 1) as (process, about):
        content = ask(about, png(np.array(pixels[0])))
        assert content["predictions"][0]["probabilities"] == [*one.probabilities]
        assert content["weights_sha256"] == about["weights_sha256"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{about['url']}/model", timeout=PATIENCE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_what_cannot_be_served_is_refused(run: Path, distsgd_here: Run) -> None:
    for arguments, says in (
        (("nowhere",), "no run nowhere"),
        ((run, "--checkpoint", "newest"), "--checkpoint cannot be newest"),
        ((run, "--checkpoint", 99999), "has no update 99999"),
        ((run, "--limit", "speed=1"), "no limit speed"),
        ((run, "--limit", "rows=none"), "the limit rows cannot be none"),
        ((run, "--host", "192.0.2.1"), "192.0.2.1:8000 cannot be used"),
        ((run, "--address", "auto"), "--address is of a cluster that serves"),
    ):
        done = distsgd_here("serve", *arguments)
        assert done.returncode in (1, 2) and says in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_limits_are_given_by_name() -> None:
    found = Limits().changed(["rows=10", "seconds=2.5", "delay=0"])
    assert (found.rows, found.seconds, found.delay, found.body) == (10, 2.5, 0, Limits().body)
    for wrong in ("rows=1.5", "rows=-1", "rows=", "seconds=nan", "body=0"):
        with pytest.raises(UsageError, match="the limit"):
            Limits().changed([wrong])


def test_a_port_is_taken() -> None:
    with listen(0) as first:
        with pytest.raises(UsageError, match="cannot be used"):
            listen(first.getsockname()[1])
        with pytest.raises(UsageError, match="cannot be used"):
            listen(99_999)


def test_the_best_checkpoint_is_followed(run: Path, tmp_path: Path) -> None:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    epochs = [json.loads(line) for line in lines if json.loads(line)["kind"] == "epoch"]
    first = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "epoch")
    best = distsgd.load(run).predictor("best").version
    metrics.write_text("".join(lines[: first + 1]))
    live = LiveModel(run, "best")
    assert live.current.version == epochs[0]["version"] and live.follows
    assert not live.refresh()
    metrics.write_text("".join(lines))
    live.refresh()
    assert live.current.version == best
    metrics.write_text("damaged\n")
    assert not live.refresh() and live.failed == 1 and live.current.version == best
    fixed = LiveModel(run, 0)
    assert not fixed.follows and not fixed.refresh() and fixed.current.version == 0


def test_a_run_without_rows_held_out_has_no_best(tmp_path: Path) -> None:
    distsgd.train(dataset="sample", workers=0, epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="without rows held out"):
        LiveModel(tmp_path / "run", "best")
