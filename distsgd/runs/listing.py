"""Runs in one line each: found, filtered, sorted, and told apart by the settings that differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distsgd.config.sources import check_name
from distsgd.errors import DistsgdError, RunError, StorageError, UsageError
from distsgd.runs.branch import Branch, branch_of
from distsgd.runs.folder import RunFolder, handle, list_runs
from distsgd.runs.recorded import Recorded
from distsgd.spelling import spelling

__all__ = [
    "ORDERS",
    "STATES",
    "RunSummary",
    "differing",
    "differing_settings",
    "find_runs",
    "forks_of",
    "summaries",
    "summarise",
    "tree",
]

_POINTS = 16
"""Of each series that is read."""

STATES = ("running", "finished", "interrupted", "failed", "dead", "diverged")


@dataclass(frozen=True, kw_only=True)
class RunSummary(os.PathLike[str]):
    """One run of a list; a path of its folder, so that `load`, `predict` and others take it.

    Attributes:
        name: by which commands find it, or its path.
        run_dir: its folder.
        state: one of "running", "finished", "interrupted", "failed", "dead" (killed) or "diverged".
        created: date and time, ISO 8601 in UTC.
        settings: all settings; empty if they cannot be read.
        tags: as the user gave them.
        epochs: epochs that have ended.
        seconds: spent on steps; None before the first record.
        test_accuracy: of the last epoch, or of the result; None before one.
        best_accuracy: the largest on the rows held out, of all epochs; None without any.
        train_loss: as test_accuracy.
        test_loss: likewise.
        parent: name of the run it was forked from; None if it is no fork.
        forked_at: the update after which the fork begins.
        changed: settings that differ from the parent's -> both values.
        parent_gone: whether the parent is no longer there.
    """

    name: str
    run_dir: str
    state: str
    created: str
    settings: dict[str, Any] = field(repr=False)
    tags: tuple[str, ...] = ()
    epochs: int = 0
    seconds: float | None = None
    test_accuracy: float | None = None
    best_accuracy: float | None = None
    train_loss: float | None = None
    test_loss: float | None = None
    parent: str | None = None
    forked_at: int | None = None
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)
    parent_gone: bool = False

    def __fspath__(self) -> str:
        return self.run_dir


def summarise(run: RunFolder) -> RunSummary:
    """The summary of a run; what is missing or damaged is left out."""
    config: dict[str, Any] = {}
    with suppress(RunError, StorageError):
        config = run.read("config.json")
    recorded = Recorded(run.path / "metrics.jsonl", _POINTS)
    with suppress(RunError, StorageError, OSError):
        recorded.look()
    epochs, points = list(recorded.epochs.values()), recorded.progress.points()
    times = [row["seconds"] for row in (*epochs[-1:], *points[-1:], recorded.last) if row]
    tags: Any = None
    if (run.path / "tags.json").is_file():
        with suppress(RunError, StorageError):
            tags = run.read("tags.json").get("tags")
    state, report = run.status(), run.report()
    last = epochs[-1] if epochs else {}
    parent = branch_of(run, config)

    def measured(name: str) -> float | None:
        value = report.get(name, last.get(name))
        return None if value is None else float(value)

    return RunSummary(
        name=handle(run),
        run_dir=str(run.path),
        state=state,
        created=str(config.get("created", "")),
        settings=dict(config.get("settings", {})),
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
        epochs=int(last.get("epoch", 0)),
        seconds=report.get("train_seconds", max(times, default=None)),
        test_accuracy=measured("test_accuracy"),
        best_accuracy=recorded.best_accuracy,
        train_loss=measured("train_loss"),
        test_loss=measured("test_loss"),
        **_forked(parent),
    )


def _forked(parent: Branch | None) -> dict[str, Any]:
    if parent is None:
        return {}
    return {"parent": parent.name, "forked_at": parent.update, "changed": parent.changed,
            "parent_gone": parent.gone}  # fmt: skip


def forks_of(run: RunFolder) -> list[tuple[str, Branch]]:
    """The forks of a run among all that can be found, oldest first: names, and where they begin."""
    found = []
    for other in list_runs():
        with suppress(RunError, StorageError):
            parent = branch_of(other, other.read("config.json"))
            if parent is not None and parent.path == run.path:
                found.append((handle(other), parent))
    return found


def tree(runs: Sequence[RunSummary]) -> list[tuple[str, RunSummary]]:
    """The runs with forks below their parents, in the order given, each after the branch it is on.

    Args:
        runs: the runs; one whose parent is not among them stands alone.

    Returns:
        the branch, such as "│  └─ ", and the run.
    """
    names = {run.name for run in runs}
    below: dict[str | None, list[RunSummary]] = {}
    for run in runs:
        there = run.parent in names and run.parent != run.name
        below.setdefault(run.parent if there else None, []).append(run)
    found: dict[str, tuple[str, RunSummary]] = {}

    def add(run: RunSummary, branch: str, indent: str) -> None:
        if run.name in found:  # parents in a circle are no tree
            return
        found[run.name] = branch, run
        forks = below.get(run.name, [])
        for fork in forks:
            last = fork is forks[-1]
            add(fork, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "))

    for run in (*below.get(None, []), *runs):
        add(run, "", "")
    return list(found.values())


def summaries() -> list[RunSummary]:
    """All runs that can be found, oldest first."""
    return [summarise(run) for run in list_runs()]


_UP, _DOWN = False, True

ORDERS: dict[str, tuple[Callable[[RunSummary], Any], bool]] = {
    "created": (lambda run: run.created, _UP),
    "name": (lambda run: run.name, _UP),
    "accuracy": (lambda run: run.test_accuracy, _DOWN),
    "validation": (lambda run: run.best_accuracy, _DOWN),
    "loss": (lambda run: run.test_loss, _UP),
    "train-loss": (lambda run: run.train_loss, _UP),
    "time": (lambda run: run.seconds, _UP),
    "epochs": (lambda run: run.epochs, _DOWN),
}
"""What runs are sorted by, and whether the largest comes first. A setting sorts by its value."""


def find_runs(
    among: Iterable[RunSummary] | None = None,
    *,
    sort: str = "created",
    reverse: bool = False,
    where: Sequence[str] = (),
    state: str | None = None,
    tag: str | None = None,
) -> list[RunSummary]:
    """All runs that can be found, or some of them, oldest first; called as `distsgd.runs()`.

    Args:
        among: only some of these; None for any.
        sort: "created", "name", "accuracy" (of the test set, largest first), "validation" (of the
            best epoch), "loss", "train-loss", "time", "epochs", or a setting. Runs without a value
            come last.
        reverse: the other way round.
        where: texts such as "loss=svm", or "parent=NAME" for the forks of a run; all must hold.
        state: only runs in this state.
        tag: only runs with this tag.

    Raises:
        UsageError: one of these names nothing.
    """
    if state is not None and state not in STATES:
        raise UsageError(
            f"{spelling().setting('state')} cannot be {state}", f"Give one of {', '.join(STATES)}"
        )
    tests = [_condition(text) for text in where]
    found = [
        run
        for run in (summaries() if among is None else among)
        if (state is None or run.state == state)
        and (tag is None or tag in run.tags)
        and all(test(run) for test in tests)
    ]
    value, down = ORDERS.get(sort) or (_setting(sort), _UP)
    known = [run for run in found if value(run) is not None]
    with_value = sorted(known, key=lambda run: _comparable(value(run)), reverse=down != reverse)
    return [*with_value, *(run for run in found if value(run) is None)]


def _setting(name: str) -> Callable[[RunSummary], Any]:
    key = name.replace("-", "_")
    try:
        check_name(key, None, spelling())
    except DistsgdError:
        raise UsageError(
            f"{spelling().setting('sort')} cannot be {name}",
            f"Give one of {', '.join(ORDERS)}, or a setting",
        ) from None
    return lambda run: run.settings.get(key)


def _comparable(value: Any) -> tuple[int, float, str]:
    """Numbers before texts; so any two values can be compared."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def _condition(text: str) -> Callable[[RunSummary], bool]:
    name, equals, wanted = (part.strip() for part in text.partition("="))
    key = name.replace("-", "_")
    if not equals:
        raise UsageError(f"{text} has no value", "Write it as --where setting=value")
    if key == "parent":
        return lambda run: run.parent is not None and wanted in (run.parent, Path(run.parent).name)
    check_name(key, wanted, spelling())
    return lambda run: key in run.settings and _is(run.settings[key], wanted)


def _is(value: Any, text: str) -> bool:
    """Whether a setting has the value that a text says: 0.01 is 1e-2, and true is True."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() == text.lower()
    if isinstance(value, int | float):
        with suppress(ValueError):
            return float(text) == value
        return False
    return str(value) == text


def differing(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Settings whose values are not the same in all runs, with the value of each run."""
    return differing_settings([run.settings for run in runs])


def differing_settings(every: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The same of runs by their settings; one without any, as of a damaged run, differs in none."""
    readable = [settings for settings in every if settings]
    names = dict.fromkeys(name for settings in readable for name in settings)
    return {
        name: [settings.get(name) for settings in every]
        for name in names
        if any(settings.get(name) != readable[0].get(name) for settings in readable)
    }
