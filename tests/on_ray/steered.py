"""A training that is steered by what its journal says, and compared with one in peace."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from support import PATIENCE

from distsgd.engine.events import Progress
from distsgd.proof.audit import audit
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions, read_checkpoint
from distsgd.training import train
from distsgd.training.results import Reporter

UPDATES_OF_AN_EPOCH = 6
TAIL_BYTES = 4096
SLOW: dict[str, Any] = {
    "dataset": "sample", "schedule": "constant", "slot_size": 2, "dtype": "float64",
    "log_every": 1, "keep_checkpoints": 3,
}  # fmt: skip

Condition = Callable[["Steered"], bool]


class Steered(Reporter):
    """Does one thing after the other, each when its condition holds; then Ctrl-C.

    Args:
        run: the run folder.
        steps: conditions, and what to do. All in one thread that stays, as a process that Ray
            starts is ended with the thread that has started it.
    """

    def __init__(self, run: Path, *steps: tuple[Condition, Callable[[], object]]) -> None:
        self.run, self._steps = run, list(steps)
        self.updates, self.since = 0, 0
        self._until = time.monotonic() + PATIENCE
        self.notices = list[str]()
        self._hand = ThreadPoolExecutor(1)
        self._done = list[Future[object]]()

    def progress(self, progress: Progress) -> None:
        self.updates = progress.step
        self._turn()

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self._turn()

    def _turn(self) -> None:
        for future in self._done:
            if future.done():
                future.result()  # what went wrong there ends the training
        assert time.monotonic() < self._until, "a step is overdue; the training ends with this"
        if self._steps and self._steps[0][0](self):
            self.since = self.updates
            self._until = time.monotonic() + PATIENCE
            _, action = self._steps.pop(0)
            self._done.append(self._hand.submit(action))

    def crew(self) -> int:
        """How many workers had a part in one of the last updates."""
        with (self.run / "journal.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()[1:]
        for line in reversed(lines):
            with suppress(ValueError, KeyError):  # the last may not be whole
                return len({worker for worker, *_ in json.loads(line)["c"]})
        return 0


def crew_of(number: int) -> Condition:
    return lambda steered: steered.updates > steered.since + 5 and steered.crew() == number


def updates(number: int) -> Condition:
    return lambda steered: steered.updates >= steered.since + number


def said(text: str, times: int = 1) -> Condition:
    return lambda steered: sum(text in notice for notice in steered.notices) >= times


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def train_until_stopped(steered: Steered, **settings: Any) -> None:
    with suppress(KeyboardInterrupt):
        train(**SLOW, **settings, epochs=100_000, run_dir=steered.run, reporter=steered)
        raise AssertionError("it came to its end")


def check_bits(run: Path) -> None:
    """What there is of a run that was cut short is what one process would have computed."""
    found = audit(run)
    epochs = found.updates // UPDATES_OF_AN_EPOCH
    assert found.epochs == epochs > 0, "each example of each epoch, exactly once"
    peace = run.parent / "peace"
    train(**{**SLOW, "keep_checkpoints": 0}, workers=0, epochs=epochs, run_dir=peace)
    # Not every epoch has one: they are short.
    there = [checkpoint_versions(folder / "checkpoints") for folder in (run, peace)]
    version = max(set.intersection(*map(set, there)))
    assert version > 0
    ours, peaceful = (
        read_checkpoint(checkpoint_path(folder / "checkpoints", version)) for folder in (run, peace)
    )
    assert np.array_equal(ours.weights, peaceful.weights)
