"""A live display of a training in a notebook: a bar, the loss as a curve, the last epochs."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from html import escape
from pathlib import Path
from time import monotonic
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress
from distsgd.training.callbacks.lines import PrintedProgress, title_line
from distsgd.training.results import EpochRow, Reporter

__all__ = ["NotebookProgress", "sparkline", "verbose_reporter"]

_EVERY_SECONDS = 0.25
_MOST_POINTS = 200
_MOST_ROWS = 10
_MOST_NOTICES = 5


def verbose_reporter() -> Reporter:
    """What `verbose` shows: a live display in a notebook, lines elsewhere."""
    return NotebookProgress() if _in_notebook() else PrintedProgress()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def sparkline(values: Sequence[float], width: int = 360, height: int = 60) -> str:
    """A curve as SVG without axes, in the colour of the text; empty for fewer than two values.

    Args:
        values: finite numbers, at equal distances.
        width: of the picture, in pixels.
        height: likewise.
    """
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    across, down = (width - 4) / (len(values) - 1), (height - 4) / ((high - low) or 1.0)
    points = " ".join(
        f"{2 + i * across:.1f},{2 + (high - value) * down:.1f}" for i, value in enumerate(values)
    )
    label = f"loss from {values[0]:.4g} to {values[-1]:.4g}"
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><polyline points="{points}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg>'
    )


class NotebookProgress(Reporter):
    """Shows the progress of a training in the output of a notebook's cell, four times a second."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._next = 0.0
        self._losses: list[float] = []
        self._rows: deque[EpochRow] = deque(maxlen=_MOST_ROWS)
        self._notices: deque[str] = deque(maxlen=_MOST_NOTICES)
        self._title, self._line, self._steps, self._total = "", "", 0, 1

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """Show what is trained."""
        self._title, self._total, self._epochs = title_line(config), total_steps, config.epochs
        self._begun: tuple[int, float] | None = None
        self._show(now=True)

    def progress(self, progress: Progress) -> None:
        """Move the bar and the curve."""
        if len(self._losses) >= _MOST_POINTS:
            self._losses = self._losses[::2]
        if abs(progress.loss) < float("inf"):
            self._losses.append(progress.loss)
        self._steps = progress.step
        if self._begun is None:
            self._begun = progress.step, progress.seconds
        self._line = (
            f"epoch {progress.epoch + 1} of {self._epochs} · step {progress.step:,} of "
            f"{self._total:,} · loss {progress.loss:.4f} · "
            f"{progress.examples_per_second:,.0f} images/s{self._left(progress)}"
        )
        self._show()

    def _left(self, progress: Progress) -> str:
        """The time left, by the pace of this session."""
        assert self._begun is not None
        steps, seconds = progress.step - self._begun[0], progress.seconds - self._begun[1]
        if steps <= 0 or seconds <= 0:
            return ""
        return f" · {(self._total - progress.step) * seconds / steps:,.0f} s left"

    def epoch(self, row: EpochRow) -> None:
        """Add a row."""
        self._rows.append(row)
        self._show()

    def notice(self, text: str) -> None:
        """Add a line."""
        self._notices.append(text)
        self._show(now=True)

    def ended(self) -> None:
        """Show the last state."""
        self._line = f"step {self._steps:,} of {self._total:,}"
        self._show(now=True)

    def _show(self, now: bool = False) -> None:
        if not now and monotonic() < self._next:
            return
        self._next = monotonic() + _EVERY_SECONDS
        from IPython.display import HTML, display

        shown = HTML(self.html())
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def html(self) -> str:
        """The display as it is now."""
        rows = "".join(
            f"<tr><td>{row.epoch}</td><td>{row.train_loss:.4f}</td><td>{row.train_accuracy:.1%}</td>"
            f"<td>{row.test_accuracy:.1%}</td><td>{row.seconds:.2f}</td></tr>"
            for row in self._rows
        )
        head = "<tr><th>epoch</th><th>loss</th><th>train</th><th>test</th><th>seconds</th></tr>"
        notices = "".join(f"<div>{escape(text)}</div>" for text in self._notices)
        return (
            f"<div><strong>{escape(self._title)}</strong></div>"
            f'<progress max="{self._total}" value="{self._steps}" style="width:360px"></progress>'
            f"<div>{escape(self._line)}</div>{sparkline(self._losses)}"
            + (f"<table>{head}{rows}</table>" if rows else "")
            + notices
        )
