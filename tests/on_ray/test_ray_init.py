"""Starting Ray changes nothing in the process, and its workers import nothing of the user's."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import command_line

from distsgd.errors import RuntimeFailure
from distsgd.on_ray import init as ray_init
from distsgd.on_ray import session as ray_session
from distsgd.on_ray.init import init_ray, no_auto_init, same_random_numbers
from distsgd.on_ray.private import quiet_output
from distsgd.training.measuring import Background


def state() -> dict[str, Any]:
    """What `ray.init` has been seen to change."""
    return {
        "environment": dict(os.environ), "SIGTERM": signal.getsignal(signal.SIGTERM),
        "excepthook": sys.excepthook, "breakpointhook": sys.breakpointhook,
        "faulthandler": faulthandler.is_enabled(), "random": random.getstate(),
        "logging": (logging.root.level, list(logging.root.handlers)),
    }  # fmt: skip


def test_the_process_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    given: dict[str, Any] = {}

    def init(**settings: Any) -> None:
        given.update(settings, marked=os.environ["MARK"])
        os.environ["PYTHONBREAKPOINT"] = "ray.util.rpdb._driver_set_trace"
        os.environ["RAY_CLIENT_MODE"] = "0"
        ray._private.utils.set_sigterm_handler(lambda *_: None)
        sys.excepthook = ray._private.worker.custom_excepthook
        faulthandler.enable()
        random.random()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    before = state()
    init_ray({"MARK": "here"}, num_cpus=3)
    after = state()
    if was_enabled:
        faulthandler.enable()
    assert after == before
    assert given["num_cpus"] == 3 and given["marked"] == "here"


def test_numbers_come_as_before_beside_threads_of_rays_and_of_ours() -> None:
    stay, background = threading.Event(), Background()
    background.run(lambda: None)
    others = [
        threading.Thread(target=stay.wait, name=name)
        for name in ("ray_listen_error_messages", "PythonGCThread")
    ]
    for other in others:
        other.start()
    before = random.getstate()
    with same_random_numbers():
        random.random()
    stay.set()
    background.close()
    assert random.getstate() == before


def test_another_thread_that_calls_init_meanwhile_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    calls: list[str] = []
    thread = threading.Thread(target=lambda: ray.init(who="another"))

    def init(who: str, **_: Any) -> None:
        calls.append(f"{who} begins")
        if who == "ours":
            thread.start()
            calls.append(str(calls))
        calls.append(f"{who} ends")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    init_ray({}, who="ours")
    thread.join()
    order = [call for call in calls if not call.startswith("[")]
    assert order == ["ours begins", "ours ends", "another begins", "another ends"]


def test_a_thread_that_is_inside_init_already_is_not_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    inside, leave = threading.Event(), threading.Event()

    def init(**settings: Any) -> None:
        assert not settings
        inside.set()
        leave.wait()

    monkeypatch.setattr(ray, "init", init)
    thread = threading.Thread(target=init)
    thread.start()
    inside.wait()
    try:
        with pytest.raises(RuntimeFailure, match="another thread of this process"):
            init_ray({})
        monkeypatch.setattr(ray_init, "pause", lambda _: leave.set() or thread.join())
        ray_init.wait_for_other_threads()
        assert not thread.is_alive()
    finally:
        leave.set()


def test_a_call_to_a_ray_that_has_ended_starts_no_other() -> None:
    from ray._private import auto_init_hook

    def allowed() -> bool:
        return auto_init_hook.enable_auto_connect

    assert allowed()
    with no_auto_init():
        with no_auto_init():
            pass
        assert not allowed()
    assert allowed()


def test_the_token_of_a_session_is_not_inherited_and_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also not when the process has asked another cluster for its jobs in between."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    def read() -> str:
        return str(AuthenticationTokenLoader.instance().get_raw_token())

    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the caller")
    with ray_session.ray_environment(RAY_AUTH_MODE="token"), ray_session._own_token() as token:
        assert len(token) == 64
        ray_session._read_token(token)
        assert read() == token and os.environ["RAY_AUTH_TOKEN"] == "of the caller"
        with ray_session.ray_environment(RAY_AUTH_TOKEN="of another"):
            assert read() == "of another"
        assert read() == token and os.environ["RAY_AUTH_TOKEN"] == "of the caller"


def test_numbers_that_another_thread_draws_do_not_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()] * 2)
    with same_random_numbers():
        number = random.random()
    assert random.random() != number


def test_workers_import_from_neither_the_working_folder_nor_the_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For what Ray then imports, see `tests.on_ray.test_private`."""
    ours = str(Path(ray_init.__file__).parents[2])
    for path, folders in ((["/script", ours], []), ([ours, "/else"], [ours]), (["/bin"], [])):
        monkeypatch.setattr(sys, "path", path)
        assert ray_init._extra_folders() == folders


def test_a_deleted_working_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(RuntimeFailure, match="working folder has been deleted"):
        init_ray({})


def test_every_command_says_so(tmp_path: Path) -> None:
    script = f"rmdir {tmp_path}/gone; exec {' '.join(command_line('predict', 'x', 'a.png'))}"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path / "gone", capture_output=True, text=True
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "The working folder has been deleted" in done.stderr


def test_the_callers_ray_shows_the_output_of_its_workers_afterwards() -> None:
    from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator

    before = stdout_deduplicator.skip_re, stderr_deduplicator.skip_re
    with quiet_output(also_stderr=True):
        assert stdout_deduplicator.skip_re.search("anything")
        assert stderr_deduplicator.skip_re.search("anything")
    assert (stdout_deduplicator.skip_re, stderr_deduplicator.skip_re) == before
