"""What surrounds this process: locale, umask, home and working folder, clock."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from distsgd.advice.health.finding import Finding, ok, problem, warning
from distsgd.data.system import pause

__all__ = ["clock", "is_synchronised", "surroundings"]

_OWNER, _OTHERS = 0o700, 0o022
_LOOKS, _LOOK_SECONDS, _JUMP_SECONDS = 20, 0.005, 0.5
_RELEASED = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""No clock that is right shows an earlier time."""

_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""


def surroundings() -> Iterator[Finding]:
    """Locale, umask, home and working folder."""
    found = [*_encoding(), *_umask(), *_home(), *_working_folder()]
    yield from found
    if not found:
        yield ok(
            "process", f"{sys.getfilesystemencoding()}, umask {_mask():03o}, home {Path.home()}"
        )


def _encoding() -> Iterator[Finding]:
    encoding = sys.getfilesystemencoding()
    if encoding.replace("-", "").lower() != "utf8":
        yield warning(
            "process",
            f"names of files are written in {encoding}: other letters cannot be",
            "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1",
        )


def _mask() -> int:
    """The umask, as the system tells it: asking by `os.umask` would change it for a moment."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _umask() -> Iterator[Finding]:
    mask = _mask()
    if mask & _OWNER:
        yield problem(
            "process",
            f"the umask {mask:03o} keeps you from your own new files and folders",
            "Set a usual one: umask 022",
        )
    elif not mask & _OTHERS:
        yield warning(
            "process",
            f"the umask {mask:03o} lets every user change your new files; runs and tokens are "
            "private all the same",
            "Set a usual one: umask 022",
        )


def _home() -> Iterator[Finding]:
    try:
        home = Path.home()
    except RuntimeError:
        yield problem(
            "process",
            "HOME is not set, and this user has no home folder: there is no place for runs, "
            "datasets and tokens",
            "Set HOME, or DISTSGD_HOME and DISTSGD_CACHE",
        )
        return
    if not home.is_dir():
        yield problem(
            "process", f"the home folder {home} does not exist", "Set HOME to a folder of yours"
        )


def _working_folder() -> Iterator[Finding]:
    try:
        Path.cwd()
    except FileNotFoundError:
        yield problem(
            "process", "the working folder has been deleted",
            "Change to one that exists, such as: cd ~",
        )  # fmt: skip


def clock() -> Iterator[Finding]:
    """Whether the clock shows a time that can be, and does not jump or run backwards."""
    now = time.time()
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if not _RELEASED < now < _LATEST:
        yield problem(
            "clock",
            f"it shows {shown} UTC: certificates and signed requests to stores are refused",
            "Set it: timedatectl set-ntp true",
        )
        return
    jump = _jump()
    if abs(jump) > _JUMP_SECONDS:
        way = "backwards" if jump < 0 else "ahead"
        yield problem(
            "clock",
            f"it was set by {abs(jump):.1f} s {way} while it was watched; times in logs mislead",
            "Look for two programs that set it, such as chronyd beside the tools of a virtual "
            "machine",
        )
        return
    synchronised = is_synchronised()
    how = {True: ", synchronised", False: ", not synchronised (as a cluster needs)", None: ""}
    yield ok("clock", f"{shown} UTC{how[synchronised]}")


def _jump() -> float:
    """By how much the clock was set while it was watched, in seconds; the largest step."""
    steps = []
    before = time.time(), time.monotonic()
    for _ in range(_LOOKS):
        pause(_LOOK_SECONDS)
        after = time.time(), time.monotonic()
        steps.append((after[0] - before[0]) - (after[1] - before[1]))
        before = after
    return max(steps, key=abs)


class _Timex(ctypes.Structure):
    """struct timex of Linux; of which only ``modes`` = 0 is used: read, and set nothing."""

    _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 252))


def is_synchronised() -> bool | None:
    """Whether the kernel says that its clock follows others; None if it says nothing."""
    with suppress(OSError, AttributeError):
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(_Timex()))
        return None if state < 0 else state != _UNSYNCHRONISED
    return None
