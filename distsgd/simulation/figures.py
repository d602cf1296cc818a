"""Figures of simulations; matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distsgd.figures.drawn import new_figure
from distsgd.simulation.results import SimulationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves"]


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
