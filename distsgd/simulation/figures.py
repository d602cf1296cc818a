"""Figures of simulations; matplotlib is loaded when one is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from distsgd.data.atomic import replace_file
from distsgd.errors import UsageError, storage_error
from distsgd.simulation.results import SimulationResult
from distsgd.spelling import spelled

__all__ = ["check_plot", "plot_curves"]

_FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Refuse a figure that could not be drawn, before anything is computed for it.

    Raises:
        UsageError: the file cannot be of this kind or at this place.
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


def plot_curves(path: Path, runs: Sequence[SimulationResult]) -> None:
    """Draw training loss and test accuracy against virtual seconds.

    One colour for each policy, one line for each run; dashed lines are targets.

    Args:
        path: a file ending in .png or .svg; overwritten.
        runs: what to draw.

    Raises:
        UsageError: see `check_plot`.
        StorageError: the file cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
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
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower()[1:], dpi=150)
    try:
        replace_file(path, content.getvalue(), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None
