"""The page beside a training: `distsgd watch` in a process of its own, for `train --watch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from distsgd.cli.output import say
from distsgd.config.settings import TrainConfig
from distsgd.data.system import python_module, whole_environment
from distsgd.training.results import Reporter

__all__ = ["Page"]

_SECONDS_TO_END = 5.0


class Page(Reporter):
    """Starts the page once the run folder exists; leaving it as a context ends the page.

    It is a process of its own, so that it takes nothing of the training's; it ends with this
    process, however that ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._url = ""

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """Start it; its link is shown as soon as it is ready."""
        if self._process is not None:
            return
        command = python_module(
            "distsgd", "watch", "--json", "--until", str(os.getpid()), "--", str(run_dir)
        )
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                start_new_session=True, env=whole_environment(),
            )  # fmt: skip
        except OSError as error:
            say(f"the page cannot be started: {error.strerror}")
            return
        threading.Thread(target=self._show, args=(self._process,), daemon=True).start()

    def _show(self, process: subprocess.Popen[str]) -> None:
        """Show the link; runs in a thread of its own."""
        assert process.stdout is not None
        text = ""
        with process.stdout:
            for line in process.stdout:
                text += line
                with suppress(ValueError):
                    self._url = str(json.loads(text)["url"])
                    say(f"watch it at {self._url}")
                    return

    def stay(self) -> None:
        """Keep the page until Ctrl-C, if somebody is there to press it."""
        there = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
        if self._process is None or self._process.poll() is not None or not there:
            return
        say(f"the page stays until Ctrl-C: {self._url}")
        with suppress(KeyboardInterrupt):
            self._process.wait()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
