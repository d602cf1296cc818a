"""The curve of the live view, in Braille and in ASCII."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from distsgd.cli.curve import SmallCurve, text_curve
from distsgd.cli.train_reporter import _LiveReporter


def test_of_braille() -> None:
    lines = text_curve([4.0, 3.0, 2.0, 1.0], 20, "utf-8")
    assert [line[:9].strip() for line in lines] == ["4", "", "1"]
    dots = "".join(line[11:] for line in lines)
    assert all(0x2800 <= ord(one) <= 0x28FF for one in dots)
    assert lines[0][11:13] == "⠑⠢" and lines[2].endswith("⠢⢄")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", None, "nosuch"])
def test_of_ascii(encoding: str | None) -> None:
    lines = text_curve([3.0, 2.0, 1.0], 20, encoding)
    assert "".join(lines).isascii()
    assert [line[11:] for line in lines] == ["'-.", "   '-.", "      '-."]


def test_a_falling_curve_falls_without_gaps() -> None:
    values = [1 / (1 + i) for i in range(300)]
    lines = text_curve(values, 70, "utf-8", rows=4)
    assert len(lines) == 4 and all(len(line) <= 70 for line in lines)
    columns = [
        [line[11 + i] for line in lines if len(line) > 11 + i and line[11 + i] != "\u2800"]
        for i in range(59)
    ]
    assert all(columns)


def test_too_little_is_no_curve() -> None:
    assert text_curve([1.0], 80, "utf-8") == text_curve([1.0, 2.0], 12, "utf-8") == []
    assert len(text_curve([2.0, 2.0], 80, "utf-8")) == 3


def test_values_are_kept_in_bounded_number() -> None:
    curve = SmallCurve()
    for i in range(100_000):
        curve.add(float("nan") if i % 7 == 0 else 1.0 / (i + 1))
    assert 200 < len(curve._values) < 512
    first, *_, last = curve.lines(70, "utf-8")
    assert float(first[:9]) > float(last[:9]) > 0


@pytest.mark.parametrize(("width", "shown"), [(59, False), (60, True), (120, True)])
def test_the_live_view_has_it_from_60_columns_on(width: int, shown: bool) -> None:
    from pathlib import Path

    from distsgd.config.settings import TrainConfig
    from distsgd.engine.events import Progress

    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    console = Console(file=stream, force_terminal=True, width=width)
    reporter = _LiveReporter(console)
    reporter.started(TrainConfig(dataset="sample", workers=0), Path("run"), 60)
    for step in range(1, 11):
        reporter.progress(Progress(step, 0, 2.5 - step / 10, 0.5, 0.01, step * 256, step * 0.1))
    shown_now = reporter._render()
    reporter.ended()
    with console.capture() as captured:
        console.print(shown_now)
    lines = captured.get().splitlines()
    assert any("\u2800" <= one <= "\u28ff" for line in lines for one in line) is shown
    assert "loss 1.5000" in lines[-1] and len(lines) == (4 if shown else 1)
