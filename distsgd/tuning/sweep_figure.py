"""The figure of a sweep: a curve for each combination, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distsgd.errors import UsageError
from distsgd.figures.charts import Chart, Figure
from distsgd.figures.comparing import groups
from distsgd.figures.of_runs import FIGURES, build
from distsgd.runs.history import HistoryReader
from distsgd.spelling import spelling
from distsgd.tuning.sweep_results import FINISHED, SweepRun

__all__ = ["check_figure", "sweep_figure"]


def check_figure(name: str) -> None:
    """Check that there is such a figure of several runs, before anything is trained.

    Raises:
        UsageError: there is none.
    """
    known = [one for one, figure in FIGURES.items() if figure.several]
    if name not in known:
        raise UsageError(
            f"{spelling().setting('figure')} cannot be {name}", f"Give one of {', '.join(known)}"
        )


def sweep_figure(name: str, runs: Sequence[SweepRun]) -> Figure:
    """A figure of the trainings that have finished; curves have the names of their combinations.

    Args:
        name: of the figure, see `check_figure`.
        runs: the trainings.

    Raises:
        UsageError: there is nothing to draw.
    """
    done = [run for run in runs if run.status == FINISHED]
    if not done:
        raise UsageError("no training has finished", "See why in the table of runs")
    histories = [HistoryReader(Path(run.run_dir)).look() for run in done]
    figure = build(name, histories)
    if not isinstance(figure, Chart) or not histories[1:]:
        return figure
    combinations = {history.name: run.name for history, run in zip(histories, done, strict=True)}
    names = {one.name: combinations[one.runs[0].name] for one in groups(histories)}
    if len(set(names.values())) < len(names):
        return figure  # as where the data of a name has changed between
    lines = tuple(
        replace(line, name=line.name.replace(line.run, names[line.run], 1), run=names[line.run])
        if line.run in names
        else line
        for line in figure.lines
    )
    return replace(figure, lines=lines)
