"""The figures of runs, each built from what their folders say.

A builder takes runs and the x axis. Of one run, curves show minibatches, training and test set, and
its events; of several, those that differ in the seed alone are one curve with a band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distsgd.errors import UsageError
from distsgd.figures.charts import (
    PALETTE_SIZE,
    Chart,
    Figure,
    Line,
    Mark,
    Matrix,
    Row,
    Tile,
    Tiles,
    Timeline,
)
from distsgd.figures.comparing import Group, band, groups
from distsgd.runs import Model
from distsgd.runs.history import History
from distsgd.runs.templates import template_names, templates, templates_of
from distsgd.runs.trunk import Columns, joined

__all__ = ["AXES", "FIGURES", "available", "build"]

AXES = {"epoch": "epoch", "update": "update", "seconds": "seconds of training"}
"""x axis -> its label."""

_DOINGS = {"computing": 0, "pushing": 4, "waiting": 6}
_FAINT, _TRAIN, _TEST = 6, 0, 1
_MOST_AGES, _MOST_TWICE, _WIDE = 16, 6, 100.0
_MILLION = 1e6


Chosen = int | Model | None
"""The model of a figure: of a checkpoint, in memory, or of the newest checkpoint."""


@dataclass(frozen=True)
class _Known:
    """A figure.

    Attributes:
        build: makes it.
        title: what it shows.
        several: whether it can show several runs.
    """

    build: Callable[[Sequence[History], str, Chosen], Figure]
    title: str
    several: bool = True


def build(name: str, runs: Sequence[History], x: str = "epoch", version: Chosen = None) -> Figure:
    """A figure of runs.

    Args:
        name: one of `FIGURES`.
        runs: one or several.
        x: one of `AXES`.
        version: of the checkpoint, for templates, or a model; None for the newest.

    Raises:
        UsageError: the figure shows one run alone, or the runs have not recorded what it shows.
        RunError: a checkpoint is missing or damaged.
    """
    known = FIGURES[name]
    if len(runs) > 1 and not known.several:
        raise UsageError(f"the figure {name} shows one run, not {len(runs)}", "Name one run")
    figure = known.build(runs, x, version)
    if _is_empty(figure):
        names = ", ".join(run.name for run in runs)
        raise UsageError(
            f"there is nothing to draw of {known.title} in {names}",
            "It has not come so far, or was trained by a version that did not record it",
        )
    return figure


def available(runs: Sequence[History]) -> Iterator[str]:
    """The names of the figures that these runs have something for, without reading checkpoints."""
    for name, known in FIGURES.items():
        if len(runs) > 1 and not known.several:
            continue
        if name == "templates":
            shape = runs[0].dataset.get("shape") or []
            if runs[0].checkpoints and len(shape) == 3 and shape[0] in (1, 3):
                yield name
        elif not _is_empty(known.build(runs, "epoch", None)):
            yield name


def _is_empty(figure: Figure) -> bool:
    if isinstance(figure, Chart):
        return not any(line.x for line in figure.lines)
    if isinstance(figure, Matrix):
        return not figure.counts
    return not (figure.tiles if isinstance(figure, Tiles) else figure.rows)


def _loss(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    lines = _curves(runs, x, "loss", 1.0)
    heights = [y for line in lines for y in line.y if y is not None and y > 0]
    wide = bool(heights) and max(heights) > _WIDE * min(heights)
    return _chart("loss", runs, x, "loss", lines, log_y=wide)


def _accuracy(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    return _chart("accuracy", runs, x, "accuracy, %", _curves(runs, x, "accuracy", 100.0))


def _learning_rate(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    lines = _of_progress(runs, x, "learning_rate", "learning rate", 1.0)
    return _chart("learning-rate", runs, x, "learning rate", lines, from_zero=True)


def _throughput(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    lines = _of_progress(runs, x, "images_per_second", "images", 1e-3)
    return _chart("throughput", runs, x, "thousand images/s", lines, from_zero=True)


def _bytes(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    lines = []
    for number, run in enumerate(runs):
        seconds = run.bytes.get("seconds", [])
        places = [_on_axis(run, second, x) for second in seconds]
        pushed = [n / _MILLION for n in run.bytes.get("pushed", [])]
        lines.append(_line("pushed", places, pushed, number, run=run.name if runs[1:] else ""))
    return _chart("bytes", runs, x, "gradients pushed, MB", tuple(lines), from_zero=True)


def _workers(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    (run,) = runs
    names = list(run.fleet)
    lines = tuple(
        Line(
            name=doing, x=tuple(float(i) for i in range(len(names))), colour=colour,
            y=tuple(sum(run.fleet[name][doing]) for name in names),
        )
        for doing, colour in _DOINGS.items()
    )  # fmt: skip
    return Chart(
        name="workers", title=f"Time of each worker, {run.name}", x_label="worker",
        y_label="seconds", lines=lines if names else (), form="stacked",
        categories=tuple(names), from_zero=True,
    )  # fmt: skip


def _staleness(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    every = groups(runs)
    counted = [_ages(group) for group in every]
    oldest = max((age for counts in counted for age in counts), default=0)
    ages = list(range(min(oldest, _MOST_AGES) + 1))
    lines = []
    for number, (group, counts) in enumerate(zip(every, counted, strict=True)):
        total = sum(counts.values())
        if not total:
            continue
        shares = [counts.get(age, 0) for age in ages]
        shares[-1] += sum(n for age, n in counts.items() if age > ages[-1])
        heights = tuple(100 * n / total for n in shares)
        name = group.name if every[1:] else "contributions"
        lines.append(
            Line(name=name, x=tuple(map(float, ages)), y=heights, colour=number % PALETTE_SIZE)
        )
    names = [str(age) for age in ages]
    if oldest > _MOST_AGES:
        names[-1] += "+"
    return Chart(
        name="staleness", title=_title("Age of gradients", runs), y_label="contributions, %",
        x_label="updates between reading W and being applied", lines=tuple(lines), form="bars",
        categories=tuple(names), from_zero=True,
    )  # fmt: skip


def _ages(group: Group) -> dict[int, int]:
    found: dict[int, int] = {}
    for run in group.runs:
        for age, count in run.staleness.items():
            found[int(age)] = found.get(int(age), 0) + count
    return found


def _classes(runs: Sequence[History], x: str, version: Chosen) -> Chart:
    names: list[str] = next(
        (run.classes["names"] for run in runs if run.classes.get("accuracy")), []
    )
    every = groups([run for run in runs if run.classes.get("accuracy")])
    places = tuple(float(i) for i in range(len(names)))
    lines = []
    for number, group in enumerate(every):
        last = [run.classes["accuracy"][-1] for run in group.runs]
        last = [shares for shares in last if len(shares) == len(names)]
        heights = [[100 * v for v in column if v is not None] for column in zip(*last, strict=True)]
        single = not group.runs[1:]
        lines.append(Line(
            name=group.name if every[1:] else "test", x=places, colour=number % PALETTE_SIZE,
            y=tuple(sum(v) / len(v) if v else None for v in heights),
            low=() if single else tuple(min(v, default=None) for v in heights),
            high=() if single else tuple(max(v, default=None) for v in heights),
        ))  # fmt: skip
    return Chart(
        name="classes", title=_title("Test accuracy of each class", runs), x_label="",
        y_label="accuracy, %", lines=tuple(lines), form="bars", categories=tuple(names),
        from_zero=True, note=_note(every),
    )  # fmt: skip


def _confusion(runs: Sequence[History], x: str, version: Chosen) -> Matrix:
    (run,) = runs
    names = tuple(run.classes.get("names", ()))
    after = f" after epoch {run.classes['epochs'][-1]}" if run.classes.get("epochs") else ""
    return Matrix(
        name="confusion", title=f"Test images{after}, {run.name}", x_label="classified as",
        y_label="class", columns=names, rows=names,
        counts=tuple(map(tuple, run.classes.get("confusion", ()))),
    )  # fmt: skip


def _templates(runs: Sequence[History], x: str, version: Chosen) -> Tiles:
    (run,) = runs
    chosen = run.checkpoints[-1]["version"] if version is None and run.checkpoints else version
    if isinstance(chosen, Model):
        found, chosen = templates_of(chosen), chosen.version
    else:
        found = None if chosen is None else templates(run.folder, chosen)
    model = str(run.settings.get("model", "linear"))
    names = template_names(
        model, run.dataset.get("classes", []), 0 if found is None else len(found)
    )
    what = "Templates" if model == "linear" else "Hidden units"
    epoch = {one["version"]: one["epoch"] for one in run.checkpoints}.get(chosen)
    where = f"update {chosen}" if epoch is None else f"epoch {epoch:.3g}"
    return Tiles(
        name="templates", title=f"{what} at {where}, {run.name}",
        tiles=() if found is None else tuple(map(Tile, names, found)),
        note="Each row of W as an image, from its least weight to its largest.",
    )  # fmt: skip


def _timeline(runs: Sequence[History], x: str, version: Chosen) -> Timeline:
    (run,) = runs
    rows = []
    for name, columns in run.fleet.items():
        ends = columns["seconds"]
        starts = [_start(run, "seconds"), *ends[:-1]]
        shares = {
            doing: tuple(
                min(1.0, max(0.0, spent / (end - start))) if end > start else 0.0
                for spent, start, end in zip(columns[doing], starts, ends, strict=True)
            )
            for doing in _DOINGS
        }
        rows.append(Row(name=name, state=columns["state"], starts=tuple(starts),
                        ends=tuple(ends), shares=shares))  # fmt: skip
    return Timeline(
        name="timeline", title=f"Workers, {run.name}", x_label=AXES["seconds"], rows=tuple(rows),
        doings=_DOINGS, marks=_marks(run, "seconds"),
    )  # fmt: skip


def _chart(
    name: str, runs: Sequence[History], x: str, y_label: str, lines: tuple[Line, ...],
    *, log_y: bool = False, from_zero: bool = False,
) -> Chart:  # fmt: skip
    return Chart(
        name=name, title=_title(FIGURES[name].title, runs), x_label=AXES[x], y_label=y_label,
        lines=lines, marks=_forks(runs, x) if runs[1:] else _marks(runs[0], x), log_y=log_y,
        from_zero=from_zero, note=_note(groups(runs)) if runs[1:] else "",
    )  # fmt: skip


def _title(title: str, runs: Sequence[History]) -> str:
    return f"{title}, {len(runs)} runs" if runs[1:] else f"{title}, {runs[0].name}"


def _note(every: Sequence[Group]) -> str:
    most = max((len(group.runs) for group in every), default=0)
    if most < 2:
        return ""
    return f"Mean over seeds (up to {most}); the band is from the lowest run to the highest."


def _curves(runs: Sequence[History], x: str, what: str, times: float) -> tuple[Line, ...]:
    """Loss or accuracy."""
    if not runs[1:]:
        (run,) = runs
        curves = (
            ("minibatches", "progress", what, _FAINT, "faint"),
            ("training", "epochs", f"train_{what}", _TRAIN, "solid"),
            ("test", "epochs", f"test_{what}", _TEST, "solid"),
        )
        every_line = (_single(run, *curve, x, times) for curve in curves)
        return tuple(line for line in every_line if line.x)
    every = groups(runs)
    twice = len(every) <= _MOST_TWICE
    splits = [("test", ""), *([("train", "training")] * twice)]
    lines: list[Line] = []
    for split, name in splits:
        lines += _trunks(runs, "epochs", f"{split}_{what}", x, times, name)
    for number, group in enumerate(every):
        for split, name in splits:
            lines.append(_mean(runs, group, "epochs", f"{split}_{what}", x, times, number, name))
    return tuple(line for line in lines if line.x)


def _of_progress(
    runs: Sequence[History], x: str, what: str, name: str, times: float
) -> tuple[Line, ...]:
    if not runs[1:]:
        return (_single(runs[0], name, "progress", what, 0, "solid", x, times),)
    return (
        *_trunks(runs, "progress", what, x, times, ""),
        *(
            _mean(runs, group, "progress", what, x, times, number, "")
            for number, group in enumerate(groups(runs))
        ),
    )


def _single(
    run: History, name: str, table: str, what: str, colour: int, style: str, x: str, times: float
) -> Line:
    """A curve of a run alone, with the part of its ancestors."""
    columns = joined(run.trunk, table, getattr(run, table))
    return Line(
        name=name, x=tuple(_places(columns, x)), y=tuple(_times(columns.get(what), times)),
        colour=colour, style=style, fork=_fork(run, x),
    )  # fmt: skip


def _trunks(
    runs: Sequence[History], table: str, what: str, x: str, times: float, split: str
) -> Iterator[Line]:
    """The parts of ancestors that are not among the runs themselves, each once."""
    longest: dict[str, tuple[int, History]] = {}
    for run in _unmixed(runs):
        for at, piece in enumerate(run.trunk):
            known = longest.get(piece["folder"])
            if known is None or known[1].trunk[known[0]]["update"] < piece["update"]:
                longest[piece["folder"]] = at, run
    for folder, (at, run) in longest.items():
        if folder in {one.folder for one in runs}:
            continue
        piece, before = run.trunk[at], run.trunk[:at]
        columns = joined(run.trunk[: at + 1], table, {n: [] for n in piece[table]})
        first = max(0, len(columns["step"]) - len(piece[table]["step"]) - 1) if before else 0
        name = f"{piece['name']}, {split}" if split else piece["name"]
        yield Line(
            name=name, x=tuple(_places(columns, x)[first:]), colour=_FAINT, run=piece["name"],
            y=tuple(_times(columns.get(what), times)[first:]),
            style="dashed" if split else "solid",
        )  # fmt: skip


def _unmixed(runs: Sequence[History]) -> list[History]:
    """The forks that are a curve of their own; those of a band have their trunk in it."""
    return [group.runs[0] for group in groups(runs) if not group.runs[1:]]


def _mean(
    runs: Sequence[History], group: Group, table: str, what: str, x: str, times: float,
    number: int, split: str,
) -> Line:  # fmt: skip
    """The mean of a group, and from its lowest to its highest run.

    Runs take their epochs at different seconds: there the mean is over equal epochs too.
    """
    along = "epoch" if x == "seconds" else x
    every = [joined(run.trunk, table, getattr(run, table)) for run in group.runs]
    curves = []
    for columns in every:
        pairs = [
            (place, height)
            for place, height in zip(
                _places(columns, along), _times(columns.get(what), times), strict=True
            )
            if height is not None
        ]
        curves.append(([p for p, _ in pairs], [h for _, h in pairs]))
    places, mean, low, high = band(curves)
    if x == "seconds" and places:
        seconds = [np.interp(places, one["epoch"], one["seconds"]) for one in every]
        places = np.mean(seconds, axis=0).tolist()
    single = not group.runs[1:]
    forks = [fork for run in group.runs if (fork := _fork(run, x)) is not None]
    there = {run.folder for run in runs}
    shown = single or all(run.trunk and run.trunk[-1]["folder"] in there for run in group.runs)
    return Line(
        name=f"{group.name}, {split}" if split else group.name, x=tuple(places), y=tuple(mean),
        low=() if single else tuple(low), high=() if single else tuple(high),
        colour=number % PALETTE_SIZE, run=group.name, style="dashed" if split else "solid",
        fork=max(forks, default=None), before="hidden" if shown else "pale",
    )  # fmt: skip


def _line(
    name: str, x: Sequence[float], y: Sequence[float | None], colour: int, *,
    style: str = "solid", run: str = "",
) -> Line:  # fmt: skip
    return Line(name=name, x=tuple(x), y=tuple(y), colour=colour % PALETTE_SIZE, style=style,
                run=run)  # fmt: skip


def _places(columns: Columns, x: str) -> list[float]:
    found: list[float] = columns.get("step" if x == "update" else x, [])
    return found


def _times(values: Sequence[float | None] | None, times: float) -> list[float | None]:
    return [
        None if value is None or not math.isfinite(value) else value * times
        for value in values or ()
    ]


def _fork(run: History, x: str) -> float | None:
    """Where on an axis a fork begins."""
    return None if run.parent is None else _start(run, x)


def _start(run: History, x: str) -> float:
    """Where on an axis a run begins."""
    return 0.0 if run.parent is None else float(run.parent[x])


def _forks(runs: Sequence[History], x: str) -> tuple[Mark, ...]:
    """Where runs were forked from others."""
    several = bool(runs[1:])
    return tuple(
        Mark(
            x=_start(run, x), kind="fork",
            text=f"{run.name}: {run.parent['words']}" if several
            else f"{run.parent['words']} of {Path(run.parent['path']).name}",
        )
        for run in runs
        if run.parent is not None
    )  # fmt: skip


def _marks(run: History, x: str) -> tuple[Mark, ...]:
    return _forks([run], x) + tuple(
        Mark(
            x=float(event["step"]) if x == "update" else _on_axis(run, event["seconds"], x),
            kind=event["kind"], text=event["text"],
        )
        for event in run.events
        if event["kind"] != "saved"
    )  # fmt: skip


def _on_axis(run: History, seconds: float, x: str) -> float:
    """Where on an axis the run was at a time."""
    if x == "seconds":
        return float(seconds)
    progress = run.progress
    places = _places(progress, x)
    times = [_start(run, "seconds"), *progress.get("seconds", [])]
    return float(np.interp(seconds, times, [_start(run, x), *places]))


FIGURES = {
    "loss": _Known(_loss, "Loss"),
    "accuracy": _Known(_accuracy, "Accuracy"),
    "learning-rate": _Known(_learning_rate, "Learning rate"),
    "throughput": _Known(_throughput, "Throughput"),
    "templates": _Known(_templates, "Templates", several=False),
    "confusion": _Known(_confusion, "Confusion matrix", several=False),
    "classes": _Known(_classes, "Accuracy of each class"),
    "timeline": _Known(_timeline, "What workers do", several=False),
    "workers": _Known(_workers, "Time of each worker", several=False),
    "staleness": _Known(_staleness, "Age of gradients"),
    "bytes": _Known(_bytes, "Bytes pushed"),
}
"""The figures by name."""
