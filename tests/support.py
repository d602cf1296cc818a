"""Helpers that several tests share."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from PIL import Image

if TYPE_CHECKING:
    from distsgd.config.settings import TrainConfig

PATIENCE = 300.0
"""Seconds to wait for what comes in the end. It says that something hangs, not how fast it is."""

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the command line with these arguments; see the fixtures `distsgd` and `distsgd_here`."""


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "distsgd", *map(str, arguments)]


def on_sample(**settings: Any) -> TrainConfig:
    """The settings of a training on the embedded images."""
    from distsgd.config.sources import config_from

    return config_from({"dataset": "sample", **settings})


def run_here(
    arguments: Sequence[str], folder: Path, environment: dict[str, str]
) -> tuple[int, str, str]:
    """Run the command line in this process; returns its exit code, stdout and stderr."""
    from distsgd.cli.start import main

    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as errors,
        Path(os.devnull).open() as nothing,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["distsgd", *arguments])
        for name, stream in (("stdin", nothing), ("stdout", out), ("stderr", errors)):
            patch.setattr(sys, name, stream)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            code = 1
            traceback.print_exc(file=errors)
        texts = [stream.seek(0) or stream.read() for stream in (out, errors)]
    assert isinstance(code, int)
    return code, *texts


def not_taken(items: Sequence[pytest.Item], folder: Path) -> Iterator[pytest.Item]:
    """The tests of modules that no other process takes, each taken when its first test is next.

    Args:
        items: tests in their order.
        folder: has an empty file for each module that is taken.
    """
    folder.mkdir(exist_ok=True)
    ours = set[str]()
    for item in items:
        module = item.nodeid.partition("::")[0]
        if module not in ours:
            try:
                (folder / module.replace("/", ".")).touch(exist_ok=False)
            except FileExistsError:
                continue
            ours.add(module)
        yield item


def image_format(path: Path) -> str:
    """The format of an image file by its content: "SVG" if it is one, else what Pillow reads."""
    content = path.read_bytes()
    if content.startswith((b"<?xml", b"<svg")):
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        return "SVG"
    with Image.open(io.BytesIO(content)) as image:
        assert min(image.size) > 100 and image.format is not None
        return image.format


def processes_with(text: str) -> Sequence[int]:
    """Processes that have ``text`` on their command line or in the name of an open file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            names = [os.fsdecode((process / "cmdline").read_bytes()), *_open_files(process)]
            if int(process.name) != os.getpid() and any(text in name for name in names):
                found.append(int(process.name))
    return found


def _open_files(process: Path) -> list[str]:
    found = []
    for link in (process / "fd").iterdir():
        with suppress(OSError):  # closed by now
            found.append(str(link.readlink()))
    return found


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Poll until a condition holds; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not so after {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - began


def all_processes() -> set[int]:
    return {int(path.name) for path in Path("/proc").glob("[0-9]*")}


def end_new_processes_of(folder: Path, before: set[int]) -> None:
    """Kill the processes that name a folder in their environment or on their command line.

    The folder is that of a test: DISTSGD_HOME is inside, so all that the test starts inherits it.

    Args:
        folder: of the test.
        before: processes that were running before the test.
    """
    name = os.fsencode(folder)
    while True:
        found = [
            pid for pid in all_processes() - before
            if pid != os.getpid() and _mentions(Path("/proc", str(pid)), name)
        ]  # fmt: skip
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _mentions(process: Path, name: bytes) -> bool:
    for file in ("environ", "cmdline"):
        with suppress(OSError):  # it has ended
            if name in (process / file).read_bytes():
                return True
    return False


@contextmanager
def short_temporary_folder() -> Iterator[str]:
    """A temporary folder in which the sockets of Ray fit; processes that use it end with it."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:
            end_processes_with(folder)


def end_processes_with(text: str) -> None:
    """Kill what `processes_with` finds, and wait until it has ended."""

    def none_left() -> bool:
        found = processes_with(text)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_for(none_left)
