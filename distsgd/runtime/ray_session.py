"""A Ray of our own on this machine: private, quiet, on loopback, and gone afterwards.

Everything of it lies in one folder under the system's temporary folder. If the owner is killed,
a guard ends what is left of it. The folder is locked while its owner lives; folders whose owner
and guard are both gone are removed by the next session.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distsgd.errors import RuntimeFailure
from distsgd.runtime.session_guard import clear_session, guarded

__all__ = ["ray_session", "sweep_dead_sessions"]

_PREFIX = "distsgd-ray-"
_LOCK = "owner.lock"
_OBJECT_STORE_BYTES = 100 * 2**20
_SECONDS_TO_LEAVE = 10.0

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Under `uv run`, Ray would build the environment again and upload the working folder.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Workers do the work the user waits for: no reason to run behind other processes.
    "RAY_worker_niceness": "0",
    # A full disk of the user's is reported by us, where it matters, and not by Ray all the time.
    "RAY_local_fs_capacity_threshold": "1",
    # What calls nobody waits for say is known from the others.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Despite its name: take the loopback address for this node, whatever the system. Ray then
    # listens there alone; it would turn a 127.0.0.1 given to ray.init into an outer address.
    _LOOPBACK: "0",
}


def _root() -> Path:
    """A short path: the sockets of Ray must fit into 107 bytes."""
    chosen = Path(tempfile.gettempdir())
    return chosen if len(str(chosen)) <= 24 else Path("/tmp")


def sweep_dead_sessions() -> None:
    """End what is left of sessions whose owner was killed, and remove their folders."""
    for folder in _root().glob(f"{_PREFIX}*"):
        lock = FileLock(folder / _LOCK)
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            lock.acquire(timeout=0)
        except (OSError, Timeout):
            continue
        clear_session(folder)
        lock.release()


@contextmanager
def _environment(**settings: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _reread_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reread_environment()


def _reread_environment() -> None:
    """Make Ray read again what it reads once, when it is first imported.

    These are the authentication mode, the token (ours is another one for each session), and
    whether to stay on loopback. There is no public call for it, hence the guard.
    """
    try:
        from ray._private import ray_constants
        from ray._raylet import (  # type: ignore[attr-defined]
            AuthenticationTokenLoader,
            Config,
        )
    except ImportError:
        return
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(_LOOPBACK) != "0"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _keep_stdout() -> None:
    """Ray prints deaths of workers to stdout, where our results belong; we tell of them."""
    try:
        from ray._private.ray_logging import stdout_deduplicator
    except ImportError:
        return
    stdout_deduplicator.skip_re = re.compile("")


@contextmanager
def _session_folder() -> Iterator[Path]:
    sweep_dead_sessions()
    # It takes its final name when it is locked already: another sweep never sees it without.
    unlocked = Path(tempfile.mkdtemp(prefix=".distsgd-", dir=_root()))
    lock = FileLock(unlocked / _LOCK)
    lock.acquire()
    folder = unlocked.rename(_root() / f"{_PREFIX}{unlocked.name[9:]}")
    try:
        with guarded(folder):
            yield folder
    finally:
        clear_session(folder, _SECONDS_TO_LEAVE)
        lock.release()


@contextmanager
def ray_session(cpus: int) -> Iterator[None]:
    """Be connected to Ray: to the caller's, if there is one, else to one of our own.

    Args:
        cpus: logical CPUs of our own Ray; as many actors as are wanted fit.

    Raises:
        RuntimeFailure: Ray did not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    settings = {**_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _environment(**settings), _session_folder() as folder:
        try:
            _keep_stdout()
            _start(cpus, folder)
            yield
        finally:
            ray.shutdown()


def _start(cpus: int, folder: Path) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            # Within our folder, which is ours alone: Ray opens its own to everyone.
            _temp_dir=str(folder / "ray"),
            _node_ip_address="127.0.0.1",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RuntimeFailure(
            f"Ray did not start: {error}", "Train in this process instead: --workers 0"
        ) from error
    finally:
        # ray.init puts its own handler over the caller's.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
