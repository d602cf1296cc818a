"""The timeline of a run: every process on it, and nothing but its own time."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from distsgd.errors import UsageError
from distsgd.training import train


def tracks_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of a process -> its spans, checked to follow one another."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            spans = tracks[names[event["pid"]]]
            # Half a nanosecond is what is lost in microseconds.
            assert not spans or event["ts"] >= spans[-1]["ts"] + spans[-1]["dur"] - 1e-3
            spans.append(event)
    return tracks


def test_one_process(tmp_path: Path) -> None:
    result = train("sample", workers=0, epochs=2, trace=tmp_path / "trace.json")
    (spans,) = tracks_of(tmp_path / "trace.json").values()
    assert sum(span["name"] == "update" for span in spans) == result.steps
    assert {span["name"] for span in spans} == {"gather", "compute", "sum", "update"}
    assert result.weights_sha256 == train("sample", workers=0, epochs=2).weights_sha256


@pytest.mark.ray
def test_workers_and_servers(tmp_path: Path, shared_ray: None) -> None:
    began = time.perf_counter()
    result = train("sample", workers=2, servers=2, epochs=2, trace=tmp_path / "trace.json")
    took = time.perf_counter() - began
    tracks = tracks_of(tmp_path / "trace.json")
    for spans in tracks.values():  # none is from before the training
        assert (spans[-1]["ts"] + spans[-1]["dur"] - spans[0]["ts"]) / 1e6 < took
    assert list(tracks) == ["server 0", "server 1", "worker 0", "worker 1"]
    counts = {name: [span["name"] for span in spans] for name, spans in tracks.items()}
    assert counts["server 0"].count("update") == counts["server 1"].count("applied") == result.steps
    for worker in ("worker 0", "worker 1"):
        assert {"gather", "compute", "sum", "push", "wait"} == set(counts[worker])
    assert 0 < result.server_busy_share < 1


def test_a_file_that_cannot_be_is_refused_before_the_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "trace.json"):
        with pytest.raises(UsageError, match="trace="):
            train("sample", workers=0, epochs=1, trace=path, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
