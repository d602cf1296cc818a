"""`ray.init` without what it changes in the process that calls it, and in what its workers import.

It installs a handler of SIGTERM, turns `breakpoint()` into Ray's debugger, enables faulthandler,
draws from the global random numbers; importing Ray sets variables and an excepthook. It also has
workers import from the working folder and from the script's, before all others: a `numpy.py` or
`queue.py` there would end them.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsgd.errors import RuntimeFailure

__all__ = ["check_working_folder", "import_ray", "init_ray", "same_random_numbers"]

_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a job: its settings, which say what its workers import."""

_SET_BY_RAY = re.compile(r"RAY_.*|PYTHONBREAKPOINT|KMP_DUPLICATE_LIB_OK|OMP_NUM_THREADS")


def import_ray() -> Any:
    """The package, imported without a change to this process but for `sys.path`."""
    with _leaving_process_alone():
        import ray
    return ray


def init_ray(variables: Mapping[str, str], **settings: Any) -> None:
    """Connect this process to Ray.

    Args:
        variables: in the environment of the processes that Ray starts now, not of this one.
        **settings: of `ray.init`.

    Raises:
        RuntimeFailure: the working folder has been deleted.
        Exception: whatever `ray.init` raises.
    """
    check_working_folder()
    with _leaving_process_alone():
        import ray

        # Not in a job, whose workers import from the folder that was sent with it.
        if _IN_JOB not in os.environ:
            settings["job_config"] = _job_config()
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            ray.init(**settings)
        finally:
            _set_variables(before)


def check_working_folder() -> None:
    """See that the working folder exists, which Ray and its processes need.

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
    """Undo what importing and starting Ray change in this process, but for `sys.path`.

    Its own packages are found there; another `import ray` would not add them again.
    """
    variables, hook = _variables(), sys.excepthook
    faults, handler = faulthandler.is_enabled(), signal.getsignal(signal.SIGTERM)
    import ray

    logger = logging.getLogger("ray._private.worker")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a thread that can install no handler
    # Private: another version may have no such thing.
    place: Any = getattr(ray._private, "utils", None)
    install = getattr(place, "set_sigterm_handler", None)
    if install is not None:
        place.set_sigterm_handler = lambda handler: None
    try:
        with same_random_numbers():
            yield
    finally:
        if install is not None:
            place.set_sigterm_handler = install
        # Wherever else Ray may do so.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        logger.setLevel(level)
        if not faults:
            faulthandler.disable()
        if sys.excepthook is getattr(ray._private.worker, "custom_excepthook", None):
            sys.excepthook = hook
        _set_variables({**dict.fromkeys(_variables()), **variables})


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Let the caller draw the global random numbers that it would have drawn without Ray.

    Not where another thread may draw some meanwhile, which would come a second time.
    """
    threads = [one for one in threading.enumerate() if not one.name.startswith("ray_")]
    numbers = random.getstate() if len(threads) == 1 else None
    try:
        yield
    finally:
        if numbers is not None:
            random.setstate(numbers)


def _variables() -> dict[str, str]:
    """Those of the environment that Ray sets."""
    return {name: value for name, value in os.environ.items() if _SET_BY_RAY.fullmatch(name)}


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _job_config() -> Any:
    """Workers import what is installed, and our own package wherever it was imported from."""
    from ray.job_config import JobConfig

    class OnlyInstalled(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            """As if they had a folder of their own: then Ray adds neither of those two."""
            return True

    return OnlyInstalled(_py_driver_sys_path=_extra_folders())


def _extra_folders() -> list[str]:
    """Where workers find our package, if that is only the folder of the script, or the working one.

    Otherwise a fresh interpreter finds it by itself.
    """
    ours = str(Path(__file__).resolve().parents[2])
    first, *others = [os.path.realpath(path or os.curdir) for path in sys.path] or [""]
    return [ours] if first == ours and ours not in others else []
