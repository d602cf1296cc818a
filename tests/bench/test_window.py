"""Throughput between two reports of progress."""

from __future__ import annotations

import pytest

from distsgd.bench.ours import Window
from distsgd.errors import RuntimeFailure


def test_the_warm_up_does_not_count() -> None:
    window = Window(2.0)
    for seconds, images in ((0.1, 10), (0.5, 40), (1.5, 140)):
        window.add(seconds, images)
        assert not window.over()
    window.add(2.6, 250)
    assert window.over()
    assert window.rate() == pytest.approx(210 / 2.1)


def test_too_little_is_no_figure() -> None:
    window = Window(2.0)
    window.add(0.7, 100)
    with pytest.raises(RuntimeFailure):
        window.rate()
