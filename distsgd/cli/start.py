"""What is checked before the command line is loaded: this Python, and its packages."""

from __future__ import annotations

import sys

from distsgd.cli.streams import open_missing_streams
from distsgd.errors import missing_package

__all__ = ["main"]


def main() -> None:
    """Run the command line, if this Python can."""
    open_missing_streams()
    if problem := _problem():
        sys.exit(f"error: {problem}")
    from distsgd.cli.main import main as run

    run()


def _problem() -> str:
    """Why not even the help can be shown; empty if it can."""
    if sys.flags.optimize > 1:
        return (
            "Python runs with -OO, which removes the texts that the help and Ray are made of. "
            "Leave out one O: python -O does no harm, nor does PYTHONOPTIMIZE=1."
        )
    try:
        import distsgd.cli.main  # noqa: F401
    except ImportError as error:
        if missing := missing_package(error):
            return str(missing)
        raise
    return ""
