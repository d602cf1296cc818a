"""As many sessions start at a time as there are cores; the others wait, and say so."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from support import wait_for

from distsgd.on_ray import session as start_queue
from distsgd.on_ray.session import starting


def test_one_more_than_there_are_cores_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(start_queue, "_QUIET_SECONDS", 0.0)
    began = threading.Event()

    def third() -> None:
        with starting(tmp_path):
            began.set()

    with starting(tmp_path):
        with starting(tmp_path), caplog.at_level(logging.WARNING, "distsgd"):
            thread = threading.Thread(target=third)
            thread.start()
            wait_for(lambda: "waiting for other trainings" in caplog.text)
            assert not began.is_set()
        thread.join()
        assert began.is_set()
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_of_ours_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it, and what a link leads to stays as it was."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (tmp_path / f"distsgd-start-{os.getuid()}-0.lock").symlink_to(tmp_path / "else")
    with starting(tmp_path), starting(tmp_path), starting(tmp_path / "nowhere"):
        assert not (tmp_path / "else").exists()


def test_a_start_that_does_not_end_is_waited_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(start_queue, "_PATIENCE_SECONDS", 0.05)
    with starting(tmp_path):
        began = time.monotonic()
        with starting(tmp_path):
            assert time.monotonic() - began >= 0.05
