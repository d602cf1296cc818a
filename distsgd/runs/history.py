"""Everything about one run that is shown anywhere, read from its folder alone.

The page, the report, the terminal and Python all read a run through `HistoryReader`. What a run did
not record, as one of an older version, is empty. A `History` has a bounded size, whatever the
length of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.config.settings import chosen_settings
from distsgd.data.folder_files import stat_inside
from distsgd.errors import RunError, StorageError
from distsgd.runs.branch import Branch, branch_of
from distsgd.runs.checkpoint import checkpoint_path, checkpoint_versions, read_description
from distsgd.runs.folder import RunFolder
from distsgd.runs.followed_file import FollowedFile
from distsgd.runs.journal import JOURNAL
from distsgd.runs.recorded import EVENT_KINDS, MOST_MISTAKES, Recorded
from distsgd.runs.thinning import thinned
from distsgd.runs.trunk import START, Columns, Place, cut, joined, place_at

__all__ = [
    "EVENT_KINDS",
    "MOST_MISTAKES",
    "STATES",
    "History",
    "HistoryReader",
    "filled_settings",
    "plain",
]

STATES = ("running", "finished", "interrupted", "crashed", "diverged", "empty")
"""What a run is doing, or how it ended; "empty" has ended before its first update."""

_LONGEST_LINE = 1 << 23
_MOST_ANCESTORS = 100
_STATES = {"failed": "crashed", "dead": "crashed"}


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """A run as it is now. Columns are dicts of lists of one length, an entry for each point.

    Attributes:
        name: of the run.
        folder: its folder.
        state: one of `STATES`.
        error: what ended it, if it was an error.
        reason: why it has fewer epochs than were asked for, if it was stopped early.
        settings: all settings.
        chosen: those that differ from the recipe.
        command: the command line that started it; None if it was not started by one.
        git: commit of the working directory at the start; None outside a repository.
        host: name of the machine that started it.
        user_tags: words that the user has given it.
        versions: of packages and system, by name.
        dataset: name, digest, number of train and test examples, names of the classes, and shape.
        started: when, in seconds since 1970.
        seconds: spent on steps.
        updates: applied so far.
        examples: used in them.
        updates_planned: of the whole run; 0 if unknown.
        progress: step, epoch (with its fraction), seconds, loss, accuracy, learning_rate and
            images_per_second since the point before.
        epochs: epoch, step, seconds, train_loss, train_accuracy, test_loss, test_accuracy; with
            rows held out, validation_loss and validation_accuracy.
        fleet: worker -> columns seconds, images, computing, pushing and waiting (seconds, since
            the point before), and its last known state.
        staleness: age of a gradient in updates -> contributions of that age.
        bytes: seconds, and bytes pushed until then.
        events: each a dict of seconds, step, kind (one of `EVENT_KINDS`) and text.
        classes: names; epochs, and for each of them accuracy, a list with an entry for each class;
            confusion, the matrix of the last epoch, rows the true class; surest_wrong, mistakes of
            that epoch, the surest first: index in the test split, label, predicted, probability.
        checkpoints: each a dict of version, epoch (with its fraction) and seconds.
        best: version of the checkpoint of the best epoch by the rows held out, if there is one.
        journal: digest of its last line (head), lines, bytes.
        parent: of a fork, the run it was forked from: name, path, update, epoch (with its
            fraction), seconds and examples there, changed (setting -> both values), gone (whether
            it is no longer there), words; None of a run that is no fork. The curves of a fork
            begin there, and its seconds and examples go on from its parent's.
        trunk: the parts of its ancestors, oldest first; see `distsgd.runs.trunk`.
    """

    name: str
    folder: str
    state: str
    error: str | None = None
    reason: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    command: list[str] | None = None
    git: str | None = None
    host: str | None = None
    user_tags: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    seconds: float = 0.0
    updates: int = 0
    examples: int = 0
    updates_planned: int = 0
    progress: Columns = field(default_factory=dict)
    epochs: Columns = field(default_factory=dict)
    fleet: dict[str, dict[str, Any]] = field(default_factory=dict)
    staleness: dict[str, int] = field(default_factory=dict)
    bytes: Columns = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    journal: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] | None = None
    trunk: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; None for numbers that are not finite."""
        return {one.name: plain(getattr(self, one.name)) for one in fields(self)}


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class HistoryReader:
    """Reads a run, and again what has been added since, also while it trains.

    Args:
        folder: the run folder.
        most: points of a series.
        forks: how many forks of forks have been followed to this run.
    """

    def __init__(self, folder: Path | str | RunFolder, most: int = 1000, forks: int = 0) -> None:
        self._forks = forks
        self._ancestor: HistoryReader | None = None
        self._parent: Branch | None = None
        self._run = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
        self._most = most
        self._recorded = Recorded(self._run.path / "metrics.jsonl", most)
        self._journal = _Journal(self._run.path)
        self._config: dict[str, Any] | None = None
        self._dataset: dict[str, Any] = {}
        self._small: dict[str, tuple[int, dict[str, Any]]] = {}

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.path

    def look(self) -> History:
        """The run as it is now.

        Raises:
            RunError: it is no run folder, or its config.json is damaged.
            StorageError: the machine cannot read it.
        """
        status = self._run.status()  # first: what is read later is at least as new
        config = self._configuration()
        self._recorded.look()
        self._journal.look()
        report = self._read_small("report.json")
        settings = config["settings"]
        recorded, dataset = self._recorded, self._described(config)
        shared = self._shared(settings, dataset)
        progress = self._progress(dataset, shared)
        epochs = _columns(
            list(recorded.epochs.values()),
            ("epoch", "version", "seconds", "train_loss", "train_accuracy", "test_loss",
             "test_accuracy", *_validation(recorded.epochs)), self._most,
        )  # fmt: skip
        epochs = {"step" if name == "version" else name: c for name, c in epochs.items()}
        last = self._last(report)
        fleet, pushed = self._fleet(), self._bytes()
        if shared.later:
            for columns in (progress, epochs, pushed, *fleet.values()):
                columns["seconds"] = [one + shared.later for one in columns["seconds"]]
            last["seconds"] += shared.later
        sessions = recorded.sessions
        first: dict[str, Any] = sessions[0] if sessions else {}
        there = _versions(self._run)
        state = _STATES.get(status, status)
        if state == "crashed" and not last["updates"] and "problem" not in report:
            state = "empty"
        return History(
            name=self._run.path.name,
            folder=str(self._run.path),
            state=state if state in STATES else "crashed",
            error=None if report.get("problem") is None else str(report["problem"]),
            reason=_text(report.get("reason")),
            settings=settings,
            chosen=chosen_settings(settings, filled_settings(config)),
            command=_texts(config.get("command")),
            git=_text(config.get("git")),
            host=_text(config.get("host")),
            user_tags=_texts(self._read_small("tags.json").get("tags")) or [],
            versions={str(k): str(v) for k, v in config.get("versions", {}).items()},
            dataset=dataset,
            started=_when(first.get("started"), config.get("created")),
            **last,
            updates_planned=_planned(settings, dataset, sessions),
            progress=progress,
            epochs=epochs,
            fleet=fleet,
            staleness=recorded.ages or _counts(report.get("staleness")),
            bytes=pushed,
            events=self._events(report, last, progress, shared),
            classes=self._classes(dataset),
            checkpoints=_placed(there, progress, epochs, shared.place),
            best=recorded.best(there),
            journal=self._journal.found(),
            parent=shared.parent,
            trunk=shared.trunk,
        )

    def _shared(self, settings: dict[str, Any], dataset: dict[str, Any]) -> _Shared:
        """What the run shares with the one it was forked from."""
        parent = self._parent
        if parent is None:
            return _Shared()
        place: Place | None = None
        trunk: list[dict[str, Any]] = []
        if parent.folder is not None and self._forks < _MOST_ANCESTORS:
            self._ancestor = self._ancestor or HistoryReader(
                parent.folder, self._most, self._forks + 1
            )
            with suppress(RunError, StorageError, OSError):
                before = self._ancestor.look()
                place, trunk = _branched(before, parent)
        forked = self._recorded.forked
        own = float(forked.get("seconds", 0.0))
        if place is None:
            each = _updates_of_epoch(settings, dataset)
            place = Place(parent.update, parent.update / each if each else 0.0, own)
        train = _whole(dataset.get("trained")) or _whole(dataset.get("train"))
        content = {
            "name": parent.name, "path": str(parent.path), "update": parent.update,
            "epoch": place.epoch, "seconds": place.seconds,
            "examples": forked.get("examples_seen", round(place.epoch * train)),
            "changed": {name: list(values) for name, values in parent.changed.items()},
            "gone": parent.gone, "words": parent.words,
        }  # fmt: skip
        return _Shared(place, own, content, trunk)

    def _configuration(self) -> dict[str, Any]:
        if self._config is None:
            config = self._run.read("config.json")
            if "settings" not in config:
                raise RunError(f"{self._run.path / 'config.json'} has no settings", "Train again")
            self._config, self._parent = config, branch_of(self._run, config)
        return self._config

    def _read_small(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty if it is missing or cannot be read."""
        try:
            changed = stat_inside(self._run.path / name).st_mtime_ns
        except OSError:
            return {}
        known = self._small.get(name)
        if known is None or known[0] != changed:
            content: dict[str, Any] = {}
            with suppress(RunError, StorageError):
                content = self._run.read(name)
            known = self._small[name] = changed, content
        return known[1]

    def _described(self, config: dict[str, Any]) -> dict[str, Any]:
        """The dataset; of an older run, its classes and shape are in the checkpoints."""
        if self._dataset.get("classes"):
            return self._dataset
        known = config.get("dataset")
        found = {
            name: known.get(name) if isinstance(known, dict) else None
            for name in ("name", "digest", "train", "test", "trained", "classes", "shape")
        }
        if not found["classes"]:
            for version in reversed(_versions(self._run)):
                with suppress(RunError, StorageError):
                    path = checkpoint_path(self._run.checkpoints, version)
                    classes, shape = read_description(path)
                    found.update(classes=list(classes), shape=list(shape))
                    break
        self._dataset = {**found, "classes": found["classes"] or [], "shape": found["shape"] or []}
        return self._dataset

    def _progress(self, dataset: dict[str, Any], shared: _Shared) -> Columns:
        rows = self._recorded.progress.points()
        train = dataset.get("trained") or dataset.get("train")
        found = _columns(rows, ("step", "seconds", "loss", "accuracy", "learning_rate"), self._most)
        seen, rates = [row["examples_seen"] for row in rows], []
        before, since = shared.examples, shared.own
        for examples, seconds in zip(seen, found["seconds"], strict=True):
            spent = seconds - since
            rates.append((examples - before) / spent if spent > 0 else None)
            before, since = examples, seconds
        whole = type(train) is int and train > 0
        return {
            "step": found["step"],
            "epoch": [n / train if whole else row["epoch"]
                      for n, row in zip(seen, rows, strict=True)],
            **{name: found[name] for name in ("seconds", "loss", "accuracy", "learning_rate")},
            "images_per_second": rates,
        }  # fmt: skip

    def _last(self, report: dict[str, Any]) -> dict[str, Any]:
        """How far the run has come."""
        rows = [*self._recorded.progress.points()[-1:]]
        if ended := self._recorded.last:
            rows.append(ended)
        row: dict[str, Any] = max(rows, key=lambda row: int(row["step"]), default={})
        updates = max(int(row.get("step", 0)), _whole(report.get("steps")))
        return {
            "seconds": float(row.get("seconds", 0.0)),
            "updates": max(updates, *self._recorded_versions()),
            "examples": max(int(row.get("examples_seen", 0)), _whole(report.get("examples_seen"))),
        }

    def _recorded_versions(self) -> list[int]:
        return [0, 0, *(row["version"] for row in self._recorded.epochs.values())]

    def _fleet(self) -> dict[str, dict[str, Any]]:
        points = self._recorded.fleet.points()
        found: dict[str, dict[str, Any]] = {}
        for name in {name: None for point in points for name in point.workers}:
            columns: dict[str, Any] = {
                kind: [] for kind in ("seconds", "images", "computing", "pushing", "waiting")
            }
            before: tuple[float, ...] = (0, 0.0, 0.0, 0.0)
            for point in points:
                now = point.workers.get(name)
                if now is None:
                    continue
                columns["seconds"].append(point.seconds)
                for kind, a, b in zip(
                    ("images", "computing", "pushing", "waiting"), before, now, strict=True
                ):
                    # A wait is counted when it ends, and what it is reduced by before.
                    columns[kind].append(max(0, round(b - a, 6)))
                before = now
            columns["state"] = points[-1].states.get(name, "gone")
            found[name] = columns
        return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))

    def _bytes(self) -> Columns:
        points = self._recorded.fleet.points()
        return {
            "seconds": [point.seconds for point in points],
            "pushed": [point.pushed for point in points],
        }

    def _events(
        self, report: dict[str, Any], last: dict[str, Any], progress: Columns, shared: _Shared
    ) -> list[dict[str, Any]]:
        events = [
            {**event, "seconds": event["seconds"] + shared.later} for event in self._recorded.events
        ]
        if not self._recorded.sessions:  # an older version left them in the journal alone
            events += [
                {"seconds": _between(progress, "seconds", step), "step": step, "kind": kind,
                 "text": text}
                for step, kind, text in self._journal.events
            ]  # fmt: skip
        if (how := report.get("status")) in ("interrupted", "failed", "diverged"):
            text = str(report.get("problem") or how)
            events.append(
                {"seconds": last["seconds"], "step": last["updates"], "kind": "stopped",
                 "text": text}
            )  # fmt: skip
        if self._recorded.damaged:
            text = f"{self._recorded.damaged} lines of metrics.jsonl are damaged and left out"
            events.append({"seconds": last["seconds"], "step": last["updates"],
                           "kind": "notice", "text": text})  # fmt: skip
        return events

    def _classes(self, dataset: dict[str, Any]) -> dict[str, Any]:
        recorded = self._recorded
        accuracy = recorded.class_accuracy
        return {
            "names": dataset["classes"],
            "epochs": list(accuracy),
            "accuracy": list(accuracy.values()),
            "confusion": recorded.confusion,
            "surest_wrong": recorded.mistakes,
        }


@dataclass(frozen=True)
class _Shared:
    """What a run shares with its ancestors; of a run that is no fork, nothing.

    Attributes:
        place: where its own part begins.
        own: seconds that its metrics say there.
        parent: see `History`.
        trunk: likewise.
    """

    place: Place = START
    own: float = 0.0
    parent: dict[str, Any] | None = None
    trunk: list[dict[str, Any]] = field(default_factory=list)

    @property
    def later(self) -> float:
        """Seconds to be added to those of its metrics."""
        return self.place.seconds - self.own

    @property
    def examples(self) -> int:
        """Used before its own part."""
        return 0 if self.parent is None else int(self.parent["examples"])


def _branched(before: History, parent: Branch) -> tuple[Place, list[dict[str, Any]]]:
    """Where a fork begins, and the pieces of all runs before it."""
    own: dict[str, Any] = {
        "name": parent.path.name, "folder": str(parent.path), "update": parent.update,
        "progress": before.progress, "epochs": before.epochs,
    }  # fmt: skip
    start = START
    if before.parent is not None and not before.trunk:
        start = Place(*(before.parent[name] for name in ("update", "epoch", "seconds")))
    progress = joined(before.trunk, "progress", before.progress)
    epochs = joined(before.trunk, "epochs", before.epochs)
    (place,) = place_at(start, progress, epochs, [parent.update])
    # One that was forked from before its parent's own part has nothing of that part.
    earlier = [piece for piece in before.trunk if piece["update"] < parent.update]
    last = next((piece for piece in before.trunk if piece["update"] >= parent.update), own)
    end = {**last, "update": parent.update}
    end |= {table: cut(last[table], place) for table in ("progress", "epochs")}
    return place, [*earlier, end]


class _Journal:
    """The size of a journal, its last digest, and the resumes in it; its chain is not checked."""

    def __init__(self, folder: Path) -> None:
        self._file = FollowedFile(folder / JOURNAL, _LONGEST_LINE)
        self._start()

    def _start(self) -> None:
        self._lines, self._last = 0, b""
        self._version = 0
        self.events: list[tuple[int, str, str]] = []

    def look(self) -> None:
        over, pieces = self._file.look()
        if over:
            self._start()
        for lines in pieces:
            if lines and not self._lines and lines[0].startswith(b'{"o"'):
                self._lines = _loaded(lines[0]).get("l", 0) - 1
            for number, line in enumerate(lines):
                if line[:4] in (b'{"r"', b'{"w"'):
                    self._resized(_loaded(line), _loaded(lines[number - 1] if number else b""))
            self._lines += len(lines)
            if lines:
                self._last = lines[-1]

    def _resized(self, entry: dict[str, Any], before: dict[str, Any]) -> None:
        if "r" in entry:
            text = f"resumed after update {entry['r']}"
            self.events.append((_whole(entry["r"]), "resumed", text))
        else:
            text = f"{entry['w']} workers from here on"
            self.events.append((_whole(before.get("v")), "scaled", text))
        del self.events[1000:]

    def found(self) -> dict[str, Any]:
        head = _loaded(self._last).get("d")
        return {
            "head": head if isinstance(head, str) else None, "lines": self._lines,
            "bytes": self._file.size,
        }  # fmt: skip


def _loaded(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _columns(rows: Sequence[dict[str, Any]], names: Sequence[str], most: int) -> Columns:
    kept = thinned(rows, most)
    return {name: [row.get(name) for row in kept] for name in names}


def _validation(epochs: dict[int, dict[str, Any]]) -> tuple[str, ...]:
    """Columns that only runs with rows held out have."""
    names = ("validation_loss", "validation_accuracy")
    return names if any(names[0] in row for row in epochs.values()) else ()


def _versions(run: RunFolder) -> list[int]:
    with suppress(RunError, StorageError):
        return checkpoint_versions(run.checkpoints)
    return []


def filled_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the data gave."""
    dataset = config.get("dataset")
    found = dataset.get("recipe") if isinstance(dataset, dict) else None
    return found if isinstance(found, dict) else {}


def _placed(
    versions: Sequence[int], progress: Columns, epochs: Columns, start: Place
) -> list[dict[str, Any]]:
    """Where checkpoints are on the axes."""
    return [
        {"version": place.step, "epoch": place.epoch, "seconds": place.seconds}
        for place in place_at(start, progress, epochs, versions)
    ]


def _between(progress: Columns, name: str, step: int) -> float:
    """What a column has at a step."""
    return float(np.interp(step, [0, *progress["step"]], [0.0, *progress[name]]))


def _planned(
    settings: dict[str, Any], dataset: dict[str, Any], sessions: Sequence[dict[str, Any]]
) -> int:
    if sessions and (planned := _whole(sessions[-1].get("planned"))):
        return planned
    return _updates_of_epoch(settings, dataset) * _whole(settings.get("epochs"))


def _updates_of_epoch(settings: dict[str, Any], dataset: dict[str, Any]) -> int:
    """0 if it is unknown."""
    train, batch = _whole(dataset.get("train")), _whole(settings.get("batch_size"))
    return -(-train // batch) if batch else 0


def _whole(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _text(value: Any) -> str | None:
    return value[:1000] if isinstance(value, str) else None


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [one[:10_000] for one in value[:1000]]
    return None


def _counts(value: Any) -> dict[str, int]:
    found = value.items() if isinstance(value, dict) else ()
    return {str(name): n for name, n in found if type(n) is int}


def _when(seconds: Any, created: Any) -> float | None:
    if type(seconds) in (int, float) and math.isfinite(seconds):
        return float(seconds)
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(created).timestamp()
    return None
