"""Figures without a screen, and those of simulations; matplotlib is loaded when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.data.atomic import replace_file
from distsgd.errors import UsageError, storage_error
from distsgd.simulation.results import SimulationResult
from distsgd.spelling import spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_plot", "draw_curves", "new_figure", "save_figure"]

_FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Check that a figure can be written to a file, before anything is computed for it.

    Raises:
        UsageError: the name has another ending, or its folder does not exist.
        ModuleNotFoundError: matplotlib is missing.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"{spelled('plot')} cannot be {path}", "Give a file that ends in .png or .svg"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"{spelled('plot')}: there is no folder {path.absolute().parent}", "Make it first"
        )
    import matplotlib.figure  # noqa: F401


def new_figure(width: float = 7, height: float = 4) -> Figure:
    """An empty figure without a window.

    Args:
        width: inches; text has 10 points, so that 7 are readable on a narrow screen too.
        height: inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file ending in .png or .svg, whole or not at all.

    Raises:
        UsageError: see `check_plot`.
        StorageError: the file cannot be written.
    """
    check_plot(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    try:
        replace_file(path, content.getvalue(), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None


def draw_curves(runs: Sequence[SimulationResult]) -> Figure:
    """Training loss and test accuracy against virtual seconds.

    One colour for each policy, one line for each run; dashed lines are targets.
    """
    figure = new_figure(11, 4.5)
    loss, accuracy = figure.subplots(1, 2)
    colours = {run.policy: f"C{i}" for i, run in enumerate({r.policy: r for r in runs}.values())}
    labelled: set[str] = set()
    for run in runs:
        seconds = [point.seconds for point in run.curve]
        style = {"color": colours[run.policy], "linewidth": 1.2}
        label = None if run.policy in labelled else run.policy
        labelled.add(run.policy)
        loss.plot(seconds, [point.train_loss for point in run.curve], label=label, **style)
        accuracy.plot(seconds, [100 * point.test_accuracy for point in run.curve], **style)
    for axes, name, target in (
        (loss, "training loss", runs[0].target_loss),
        (accuracy, "test accuracy, %", (runs[0].target_accuracy or 0) * 100),
    ):
        axes.set(xlabel="virtual seconds", ylabel=name)
        axes.grid(alpha=0.3)
        if target:
            axes.axhline(target, color="grey", linestyle="--", linewidth=0.8)
    loss.legend()
    return figure
