"""The figure of a search: accuracy over epochs of all trials, and accuracy over each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distsgd.figures.charts import LIGHT
from distsgd.figures.drawn import as_text, new_figure
from distsgd.tuning.tune_results import EpochRecord, TrialResult, TuneResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_search"]

_COLUMNS, _WIDTH, _HEIGHT = 3, 3.4, 3.0
_FAINT, _BEST, _OTHER = LIGHT.lines[6], LIGHT.lines[1], LIGHT.lines[0]


def draw_search(result: TuneResult, epochs: Sequence[EpochRecord], log: Sequence[str]) -> Figure:
    """Draw a search, to be called and saved within `distsgd.figures.drawn.look`.

    Args:
        result: of the search.
        epochs: of all trials.
        log: searched settings whose range is even in the logarithm.
    """
    panels = 1 + len(result.searched)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    figure = new_figure(_WIDTH * columns, _HEIGHT * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for one in axes[2:panels]:  # after few epochs accuracies are far apart, at the end they are not
        one.sharey(axes[1])
    _over_epochs(axes[0], result, epochs)
    for name, one in zip(result.searched, axes[1:], strict=False):
        _over_setting(one, name, result.trials, result.best, log=name in log)
    for one in axes[panels:]:
        one.remove()
    for place, one in enumerate(axes[:panels]):
        one.grid(axis="both")
        if place % columns == 0:
            one.set_ylabel("validation accuracy, %")
    best = "" if result.best is None else f"; best: {result.best.name}"
    figure.suptitle(as_text(f"{len(result.trials)} trials, {result.method}{best}"))
    return figure


def _over_epochs(axes: Axes, result: TuneResult, epochs: Sequence[EpochRecord]) -> None:
    best = result.best.number if result.best else 0
    for trial in sorted(result.trials, key=lambda one: one.number == best):
        points = [
            (one.epoch, 100 * one.validation_accuracy)
            for one in epochs
            if one.trial == trial.number and one.validation_accuracy is not None
        ]
        is_best = trial.number == best
        axes.plot(
            [x for x, _ in points], [y for _, y in points], "o-" if is_best else ".-",
            color=_BEST if is_best else _FAINT, alpha=1.0 if is_best else 0.5,
            zorder=3 if is_best else 2,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)


def _over_setting(
    axes: Axes, name: str, trials: Sequence[TrialResult], best: TrialResult | None, *, log: bool
) -> None:
    shown = [t for t in trials if t.validation_accuracy is not None and name in t.settings]
    values: list[Any] = [trial.settings[name] for trial in shown]
    words = not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if words:
        known = list(dict.fromkeys(map(str, values)))
        places = [known.index(str(value)) for value in values]
        axes.set_xticks(range(len(known)), [as_text(one) for one in known])
    else:
        places = values
    for trial, x in zip(shown, places, strict=True):
        assert trial.validation_accuracy is not None
        is_best = best is not None and trial.number == best.number
        whole = trial.status == "finished"
        axes.plot(
            [x], [100 * trial.validation_accuracy], "o",
            color=_BEST if is_best else _OTHER, fillstyle="full" if whole else "none",
            zorder=3 if is_best else 2,
        )  # fmt: skip
    if log and not words:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(as_text(name))
