"""Ctrl-C in a program that calls `distsgd.train`: its own handlers and clean-up stay its own."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from support import PATIENCE

import distsgd
from distsgd.engine.events import Progress
from distsgd.errors import TrainingInterrupted
from distsgd.runs.checkpoint import latest_checkpoint, read_checkpoint
from distsgd.runs.folder import RunFolder

SHORT = {"dataset": "sample", "workers": 0, "epochs": 3, "log_every": 1}


class Presses(distsgd.Reporter):
    """Ctrl-C after each of the first updates."""

    def __init__(self, times: int) -> None:
        self.times = times

    def progress(self, progress: Progress) -> None:
        if self.times:
            self.times -= 1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return distsgd.train(**SHORT, run_dir=run).weights_sha256


def test_the_first_ctrl_c_leaves_a_checkpoint_and_is_passed_on(
    undisturbed: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as caught:
        distsgd.train(**SHORT, run_dir=run, reporter=Presses(1))
    found = caught.value
    assert isinstance(found, TrainingInterrupted) and found.run_dir == str(run)
    assert read_checkpoint(latest_checkpoint(run / "checkpoints")).version == found.step == 2
    assert RunFolder(run).status() == "interrupted"
    with pytest.raises(TrainingInterrupted, match="after update 4"):
        distsgd.resume(run, reporter=Presses(1))
    assert distsgd.resume(run).weights_sha256 == undisturbed


def test_the_second_ctrl_c_ends_it_at_once_and_no_update_is_lost(
    undisturbed: str, tmp_path: Path
) -> None:
    run, cleaned = tmp_path / "run", False
    try:
        distsgd.train(**SHORT, run_dir=run, reporter=PressesTwice())
    except KeyboardInterrupt as error:
        found = error
    finally:
        cleaned = True
    assert cleaned and isinstance(found, TrainingInterrupted)
    assert (found.run_dir, found.step) == (str(run), None)
    assert RunFolder(run).status() == "interrupted"
    assert distsgd.resume(found.run_dir).weights_sha256 == undisturbed


class PressesTwice(distsgd.Reporter):
    def progress(self, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loop_over_trainings_ends() -> None:
    begun = 0
    with pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            begun += 1
            distsgd.train(**SHORT, reporter=Presses(1))
    assert begun == 1


def test_ctrl_c_after_the_last_update_is_passed_on_too(tmp_path: Path) -> None:
    class Late(distsgd.Reporter):
        def ended(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        distsgd.train(**SHORT, run_dir=tmp_path / "run", reporter=Late())
    assert RunFolder(tmp_path / "run").status() == "finished"


@pytest.mark.parametrize(("seconds", "measured"), [(60.0, [1]), (-1.0, [])])
def test_epochs_that_had_ended_are_not_measured_for_ever(
    seconds: float, measured: list[int], undisturbed: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A driver may be many epochs behind when Ctrl-C comes; its user waits for none of them."""
    monkeypatch.setattr("distsgd.training.session._MEASURING_SECONDS", seconds)
    seen = list[int]()

    class AtTheEnd(distsgd.Reporter):
        def progress(self, progress: Progress) -> None:
            if progress.step == 6:
                os.kill(os.getpid(), signal.SIGINT)

        def epoch(self, row: distsgd.EpochRow) -> None:
            seen.append(row.epoch)

    with pytest.raises(TrainingInterrupted, match="after update 7"):
        distsgd.train(**SHORT, run_dir=tmp_path / "run", reporter=AtTheEnd())
    assert seen == measured
    assert distsgd.resume(tmp_path / "run").weights_sha256 == undisturbed


def test_a_handler_of_the_callers_own_is_called() -> None:
    called = list[int]()

    def own(number: int, frame: FrameType | None) -> None:
        called.append(number)

    signal.signal(signal.SIGINT, own)
    try:
        assert distsgd.train(**SHORT, reporter=Presses(2)).status == "finished"
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert called == [signal.SIGINT] * 2


def test_no_other_signal_is_touched() -> None:
    seen = list[object]()

    class Looks(distsgd.Reporter):
        def progress(self, progress: Progress) -> None:
            seen.append(handlers())

    def handlers() -> object:
        others = signal.valid_signals() - {signal.SIGINT}
        return [signal.getsignal(number) for number in others]

    distsgd.train(**SHORT, reporter=Looks())
    assert seen and all(found == handlers() for found in seen)


def test_a_training_in_another_thread_leaves_ctrl_c_to_the_main_one() -> None:
    handlers = list[object]()

    class Looks(distsgd.Reporter):
        def ended(self) -> None:
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: distsgd.train(**SHORT, reporter=Looks()))
    thread.start()
    thread.join(PATIENCE)
    assert handlers == [signal.default_int_handler]


def test_the_error_goes_between_processes() -> None:
    found = pickle.loads(pickle.dumps(TrainingInterrupted("/runs/one", 7)))
    assert (found.run_dir, found.step) == ("/runs/one", 7)
    assert str(found) == (
        "training was interrupted after update 7; to resume: distsgd.resume('/runs/one')"
    )
