"""`ray.init` without its side effects on the calling process and on the imports of its workers.

Ray installs a SIGTERM handler, turns `breakpoint()` into its debugger, enables faulthandler, draws
global random numbers; importing it sets variables and an excepthook. It also makes workers import
from the working folder and that of the script first: a `numpy.py` there would break them.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from distsgd.data.system import OWN_THREAD, pause
from distsgd.engine.core_type import chosen
from distsgd.errors import RuntimeFailure
from distsgd.on_ray.private import (
    BY_PROCESSOR,
    WORKER_LOGGER,
    init_code,
    installed_only,
    is_own_excepthook,
    replaced_init,
    set_auto_init,
    without_sigterm_handler,
)
from distsgd.transport.ray_variables import JOB_CONFIG

__all__ = [
    "check_working_folder", "import_ray", "init_ray", "no_auto_init", "same_random_numbers",
    "set_variables", "wait_for_other_threads",
]  # fmt: skip

_SET_BY_RAY = re.compile(r"RAY_.*|PYTHONBREAKPOINT|KMP_DUPLICATE_LIB_OK|OMP_NUM_THREADS")


_DRAW_NONE = ("ray_", "PythonGCThread", OWN_THREAD)
"""Prefixes of the names of threads, Ray's and ours, that draw no random numbers."""

_POLL_SECONDS = 0.05

_lock = threading.RLock()
_without_auto_init = 0
_auto_init = True


def import_ray() -> Any:
    """Import Ray with no effect on this process, except on `sys.path`."""
    with _leaving_process_alone():
        import ray
    return ray


def init_ray(variables: Mapping[str, str], **settings: Any) -> None:
    """Connect this process to Ray.

    Args:
        variables: environment of the processes that Ray starts now, not of this one.
        **settings: arguments of `ray.init`.

    Raises:
        RuntimeFailure: the working folder has been deleted, or another thread has connected this
            process to Ray.
        Exception: whatever `ray.init` raises.
    """
    check_working_folder()
    with _leaving_process_alone():
        import ray

        # In a job, workers import from the folder that was submitted with it.
        if JOB_CONFIG not in os.environ:
            metadata = {} if chosen() is None else BY_PROCESSOR
            settings["job_config"] = installed_only(_extra_folders(), metadata)
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            with _other_threads_waiting():
                ray.init(**settings)
        finally:
            set_variables(before)


def _in_init() -> bool:
    """Whether another thread is inside `ray.init`, which takes seconds and has no lock."""
    code, own = init_code(), threading.get_ident()
    frames: list[FrameType | None] = [
        frame for thread, frame in sys._current_frames().items() if thread != own
    ]
    while frames:
        frame = frames.pop()
        while frame is not None:
            if frame.f_code is code:
                return True
            frame = frame.f_back
    return False


def wait_for_other_threads() -> None:
    """Wait until no other thread is connecting this process to Ray."""
    import_ray()
    while _in_init():
        pause(_POLL_SECONDS)


@contextmanager
def _other_threads_waiting() -> Iterator[None]:
    """While entered, other threads that call `ray.init` wait until this is exited.

    Two calls at once would both start a Ray, and lose one or both.

    Raises:
        RuntimeFailure: another thread was first.
    """
    import ray

    ended, own = threading.Event(), threading.get_ident()

    def waiting(init: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(init)
        def wait_and_init(*arguments: Any, **settings: Any) -> Any:
            if threading.get_ident() != own:
                ended.wait()
            return init(*arguments, **settings)

        return wait_and_init

    try:
        with replaced_init(waiting):
            if _in_init() or ray.is_initialized():
                raise RuntimeFailure(
                    "another thread of this process is connecting to Ray at the same time",
                    "Call ray.init before the training begins, which then uses that Ray",
                )
            yield
    finally:
        ended.set()


@contextmanager
def no_auto_init() -> Iterator[None]:
    """While entered, a call to a Ray that has ended fails instead of starting another one."""
    global _without_auto_init, _auto_init
    with _lock:
        if _without_auto_init == 0:
            _auto_init = set_auto_init(False)
        _without_auto_init += 1
    try:
        yield
    finally:
        with _lock:
            _without_auto_init -= 1
            if _without_auto_init == 0:
                set_auto_init(_auto_init)


def check_working_folder() -> None:
    """Check that the working folder exists, which Ray and its processes need.

    Raises:
        RuntimeFailure: it has been deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise RuntimeFailure(
            "the working folder has been deleted", "Change to one that exists, such as: cd ~"
        ) from None


@contextmanager
def _leaving_process_alone() -> Iterator[None]:
    """Undo what importing and starting Ray changes in this process, except `sys.path`.

    Ray finds its own packages there, and would not add them again.
    """
    variables, hook = _variables(), sys.excepthook
    faults, handler = faulthandler.is_enabled(), signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger(WORKER_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with without_sigterm_handler(), same_random_numbers():
            yield
    finally:
        # In case Ray installs one elsewhere.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        logger.setLevel(level)
        if not faults:
            faulthandler.disable()
        if is_own_excepthook(sys.excepthook):
            sys.excepthook = hook
        set_variables({**dict.fromkeys(_variables()), **variables})


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore the state of the global random numbers afterwards.

    Not if another thread may have drawn some meanwhile: it would draw them a second time.
    """
    threads = [one for one in threading.enumerate() if not one.name.startswith(_DRAW_NONE)]
    numbers = random.getstate() if len(threads) == 1 else None
    try:
        yield
    finally:
        if numbers is not None:
            random.setstate(numbers)


def _variables() -> dict[str, str]:
    """The environment variables that Ray sets."""
    return {name: value for name, value in os.environ.items() if _SET_BY_RAY.fullmatch(name)}


def set_variables(values: Mapping[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _extra_folders() -> list[str]:
    """The folder of our package, if it is importable only as that of the script or the working one.

    Otherwise a new interpreter finds it by itself.
    """
    ours = str(Path(__file__).resolve().parents[2])
    first, *others = [os.path.realpath(path or os.curdir) for path in sys.path] or [""]
    return [ours] if first == ours and ours not in others else []
