"""What is sent along with a job: our own code, and no more."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["package"]


@contextmanager
def package(files: Sequence[Path], *, sample: bool) -> Iterator[Path]:
    """A folder with our own code and what else is named; no data, no environment.

    Args:
        files: to be there by their names.
        sample: whether the embedded images are needed.
    """
    top = Path(__file__).parents[1]
    left_out = ["__pycache__"] if sample else ["__pycache__", "*.arrow"]
    with tempfile.TemporaryDirectory(prefix="distsgd-package-") as name:
        folder = Path(name)
        shutil.copytree(top, folder / "distsgd", ignore=shutil.ignore_patterns(*left_out))
        for path in files:
            shutil.copyfile(path, folder / path.name)
        yield folder
