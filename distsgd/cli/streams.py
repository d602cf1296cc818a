"""Standard streams of a process that was started without them, as by ``2>&-`` or some daemons."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["open_missing_streams"]

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_missing_streams() -> None:
    """Open /dev/null in place of each standard stream that is missing.

    To be called before a file is opened: the next file would take the number of the stream, and
    what a library prints would go into a journal. Python has None for such a stream, so that what
    is printed to stderr goes to stdout.
    """
    for number in range(len(_STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # by processes that are started from here
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8", errors="replace"))  # noqa: SIM115
