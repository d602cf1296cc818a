"""Nodes that join a cluster and leave it, and too few of them; and a fleet that is resized."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from steered import Steered, check_bits, crew_of, stop, train_until_stopped, updates
from support import PATIENCE, short_temporary_folder

from distsgd.training.training import scale

pytestmark = pytest.mark.ray


@pytest.mark.thorough
def test_on_a_cluster(tmp_path: Path) -> None:
    """See `cluster_runs.py`."""
    with short_temporary_folder() as folder:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("cluster_runs.py"), tmp_path],
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
                 "RAY_TMPDIR": folder, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
                 "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                 "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True, text=True, timeout=2 * PATIENCE,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_from_1_worker_to_4_to_2(tmp_path: Path, shared_ray: None) -> None:
    run = tmp_path / "run"
    steered = Steered(
        run,
        (updates(10), lambda: scale(run, 4)),
        (crew_of(4), lambda: scale(run, 2)),
        (crew_of(2), stop),
    )
    train_until_stopped(steered, workers=1)
    resized = [text for text in steered.notices if "from here on" in text]
    assert [text.split()[0] for text in resized] == ["4", "2"]
    check_bits(run)
