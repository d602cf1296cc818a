"""Callbacks follow a training, and can neither stop nor delay it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, on_sample

import distsgd
from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.errors import DivergedError, UsageError
from distsgd.training.callbacks import callback as callbacks
from distsgd.training.callbacks.callback import Followers
from distsgd.training.callbacks.notebook import NotebookProgress, sparkline
from distsgd.training.results import EpochRow, Reporter


class Log(distsgd.Callback):
    """Remembers its calls, and the thread they came from."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        self.calls.append(("started", total_steps))
        self.thread = threading.current_thread()

    def progress(self, progress: Progress) -> None:
        self.calls.append(("progress", progress.step))

    def epoch(self, row: EpochRow) -> None:
        self.calls.append(("epoch", row.epoch))

    def notice(self, text: str) -> None:
        self.calls.append(("notice", text))

    def end(self, result: distsgd.TrainResult | None, error: BaseException | None) -> None:
        self.calls.append(("end", error if result is None else result.test_accuracy))


class Notices(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def progress(step: int) -> Progress:
    return Progress(step, 0, 1.0, 0.5, 0.01, step * 10, 1.0)


def test_events_come_in_order_from_another_thread() -> None:
    log = Log()
    result = distsgd.train(config=on_sample(workers=0, epochs=2, log_every=3), callbacks=[log])
    names = [name for name, _ in log.calls]
    assert names[0] == "started" and names.count("epoch") == 2
    assert [step for name, step in log.calls if name == "progress"] == [3, 6, 9, 12]
    assert log.calls[-1] == ("end", result.test_accuracy)
    assert log.thread is not threading.current_thread() and not log.thread.is_alive()
    again = distsgd.resume(result.run_dir, epochs=3, callbacks=log)  # type: ignore[arg-type]
    assert log.calls[-1] == ("end", again.test_accuracy) and ("epoch", 3) in log.calls


def test_an_error_is_reported_once_and_the_training_goes_on() -> None:
    class Broken(Log):
        def epoch(self, row: EpochRow) -> None:
            super().epoch(row)
            raise SystemExit("no more")

    broken, log, notices = Broken(), Log(), Notices()
    config = on_sample(workers=0, epochs=3)
    result = distsgd.train(config=config, callbacks=[broken, log], reporter=notices)
    plain = distsgd.train(config=config)
    assert result.weights_sha256 == plain.weights_sha256 and result.status == "finished"
    (text,) = notices.texts
    assert "callback Broken has failed in epoch" in text and "SystemExit: no more" in text
    assert [call for call in broken.calls if call[0] in ("epoch", "end")] == [("epoch", 1)]
    assert log.calls[-1][0] == "end"


def test_a_slow_one_loses_progress_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_MOST_WAITING", 4)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Log):
        def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
            begun.set()
            assert go_on.wait(PATIENCE)

    slow, notices = Slow(), Notices()
    with Followers([notices], [slow]) as followers:
        followers.started(TrainConfig(), Path("run"), 100)
        assert begun.wait(PATIENCE)
        for step in range(1, 101):
            followers.progress(progress(step))
        followers.notice("something")
        go_on.set()
    assert slow.calls == [
        ("progress", 98), ("progress", 99), ("progress", 100), ("notice", "something"),
        ("end", None),
    ] or slow.calls[-2:] == [("notice", "something"), ("end", None)]  # fmt: skip
    assert "Slow was too slow: it did not get" in notices.texts[-1]


def test_one_that_never_ends_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_LAST_SECONDS", 0.05)
    go_on = threading.Event()

    class Stuck(Log):
        def end(self, result: Any, error: BaseException | None) -> None:
            go_on.wait(PATIENCE)

    notices = Notices()
    with Followers([notices], [Stuck()]):
        pass
    go_on.set()
    assert "Stuck is still at work after 0.05 s" in notices.texts[-1]


def test_the_end_has_the_error() -> None:
    log = Log()
    config = on_sample(workers=0, epochs=2, learning_rate=1e9, pixel_scale=1e-6)
    with pytest.raises(DivergedError):
        distsgd.train(config=config, callbacks=[log])
    assert isinstance(log.calls[-1][1], DivergedError)


@pytest.mark.parametrize("given", [Log, [Log], [object()], "log"])
def test_what_is_no_callback_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="callback"):
        distsgd.train("sample", workers=0, callbacks=given)


def test_verbose_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    distsgd.train("sample", workers=0, epochs=2)
    assert capsys.readouterr().out == ""
    result = distsgd.train("sample", workers=0, epochs=2, verbose=True)
    title, heading, _, last = capsys.readouterr().out.splitlines()
    assert title.startswith("softmax on sample: one process") and "epoch" in heading
    assert f"{result.test_accuracy:.1%}".replace("%", " %") in last
    with pytest.raises(UsageError, match="verbose cannot be 'yes'"):
        distsgd.train("sample", workers=0, verbose="yes")  # type: ignore[arg-type]


def test_the_display_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = NotebookProgress()
    monkeypatch.setattr(shown, "_show", lambda now=False: None)
    shown.started(TrainConfig(dataset="<b>data</b>"), Path("run"), 1000)
    for step in range(1, 1001):
        shown.progress(progress(step))
    shown.epoch(EpochRow(epoch=1, train_loss=1.5, train_accuracy=0.4, test_loss=1.6,
                         test_accuracy=0.35, seconds=2.0))  # fmt: skip
    shown.notice("<script>alert()</script>")
    html = shown.html()
    assert "<b>" not in html and "<script>" not in html and "&lt;b&gt;data" in html
    assert 'value="1000"' in html and "35.0%" in html and html.count("<polyline") == 1
    assert html.count(",", html.index("points="), html.index("fill=")) <= 201
    assert sparkline([1.0]) == "" and "nan" not in sparkline([2.0, 2.0])
