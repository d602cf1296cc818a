"""The run folder: creating, finding and listing runs, and their small JSON files.

config.json             settings, dataset, versions of packages and system
journal.jsonl           one line for each update; see `distsgd.runs.journal`
metrics.jsonl           one line each logging interval and each epoch
checkpoints/*.npz       W and the state of the optimiser
checkpoints/*.bin       residuals of error feedback, beside the newest of them
snapshots/              a cache of such files of other updates; see `distsgd.runs.snapshots`
report.json             the result, once the run has ended
workers.json            the number of workers that `distsgd scale` asks for
kernels.json            BLAS kernels that computed parts of the run, if they differ from the first
tags.json               the words that the user has given it, if there are any
parent/                 of a fork: the run that it was forked from up to there, if it was copied
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.core.model import EXACT, LINEAR, SMALL_PRODUCTS, WHOLE_PRODUCTS
from distsgd.data.folder_files import (
    SMALL,
    names_inside,
    read_inside,
    remove_inside,
    replace_inside,
    stat_inside,
)
from distsgd.data.locations import RUN_NAME, expanded, home_folder
from distsgd.data.lock_file import LockFile, is_locked
from distsgd.data.system import pause
from distsgd.data.text_files import parse_json
from distsgd.engine.blas import SAME_BLAS, best_products, blas_kernel
from distsgd.errors import (
    RunError,
    StorageError,
    UsageError,
    in_short,
    machine_trouble,
    storage_error,
)
from distsgd.spelling import Spelling, spelling, written
from distsgd.version import __version__

__all__ = [
    "RunFolder", "WantedWorkers", "add_kernel", "clean_up", "create_run", "find_run", "handle",
    "kernels_of", "list_runs", "note_kernel", "other_kernels", "products_of", "runs_home",
    "versions", "want_workers",
]  # fmt: skip


_LOCK = ".running"
_KINDS: dict[str, type] = {
    "settings": dict, "dataset": object, "versions": dict, "created": str, "status": str,
    "problem": str, "weights_sha256": str, "kernels": list, "parent": dict,
}  # fmt: skip
"""Types of some entries in the JSON files of a run."""

_PATIENCE = 5.0
"""Seconds that `RunFolder.hold` waits for processes that only check whether the run is running."""


def runs_home() -> Path:
    """The folder of runs without a folder of their own: the user's, or ``$DISTSGD_HOME/runs``."""
    return home_folder() / "runs"


def versions() -> dict[str, str]:
    """Versions of everything that the bits of a run may depend on."""
    found = {"distsgd": __version__, "python": platform.python_version()}
    for package in ("ray", "numpy", "pyarrow"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    machine = {"machine": platform.machine(), "system": platform.platform()}
    return {**found, "blas": blas_kernel(), "products": best_products(), **machine}


class RunFolder:
    """An existing run folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = LockFile(path / _LOCK)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """The folder of the cache of snapshots."""
        return self.path / "snapshots"

    def hold(self) -> None:
        """Mark the run as running for as long as this process lives, or until `release`.

        Raises:
            RunError: it is running already.
            StorageError: the folder cannot be written.
        """
        give_up = time.monotonic() + _PATIENCE
        try:
            while not self._lock.acquire(wait=False):
                if self._is_held() or time.monotonic() > give_up:
                    raise RunError(f"{self.path} is running", "Wait for its end, or stop it first")
                pause(0.001)
        except OSError as error:
            raise storage_error(error, self.path / _LOCK) from None

    def _is_held(self) -> bool:
        return is_locked(self.path / _LOCK)

    def others(self) -> str:
        """A remark if another user can change the run while it trains, else "".

        Members of a group do not count: a folder that a group can write to is meant to be shared.
        """
        try:
            found = self.path.stat()
        except OSError:
            return ""
        if found.st_uid not in (os.geteuid(), 0):
            return f"{self.path} belongs to another user, who can change it while it trains"
        if found.st_mode & stat.S_IWOTH:
            return f"every user may write to {self.path}, and change it while it trains"
        return ""

    def release(self) -> None:
        """Mark the run as no longer running."""
        self._lock.release()

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, checked against its digest.

        Raises:
            RunError: it is missing or damaged.
            StorageError: the machine cannot read it.
        """
        path = self.path / name
        try:
            content = parse_json(read_inside(path, most=SMALL))
        except FileNotFoundError:
            raise RunError(f"{path} is missing", "Is this a run folder?") from None
        except (OSError, ValueError, RecursionError) as error:
            raise machine_trouble(error, path) or RunError(
                f"{path} is damaged: {in_short(error)}", "Train again"
            ) from None
        if not isinstance(content, dict):
            raise RunError(f"{path} is damaged: it is not a JSON object", "Train again")
        try:
            holds = content.pop("digest", None) == _digest(name, content)
        except RecursionError:
            holds = False
        if not holds:
            raise RunError(f"{path} is damaged: it does not match its own checksum", "Train again")
        for key, kind in _KINDS.items():
            if not isinstance(content.get(key, kind()), kind):
                raise RunError(
                    f"{path} is damaged: its {key} is not a {kind.__name__}", "Train again"
                )
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        path = self.path / name
        content = {**content, "digest": _digest(name, content)}
        try:
            replace_inside(path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise storage_error(error, path) from None

    def remove(self, name: str) -> None:
        """Remove a file of the run, if it is there."""
        remove_inside(self.path / name)

    def settings(self) -> TrainConfig:
        """The settings of the run.

        Raises:
            RunError: config.json is missing or damaged.
        """
        try:
            settings = self.read("config.json")["settings"]
            known = {field.name for field in fields(TrainConfig)}
            if strange := sorted(set(settings) - known):
                raise RunError(
                    f"{self.path / 'config.json'} has settings that this version does not know: "
                    + ", ".join(strange),
                    "Use the version of distsgd that made the run, or a later one",
                )
            origins = dict.fromkeys(settings, "config.json")
            with written(lambda: Spelling(origins=origins)):
                return TrainConfig(**settings)
        except (KeyError, TypeError, UsageError) as error:
            raise RunError(
                f"{self.path / 'config.json'} is damaged: {in_short(error)}", "Train again"
            ) from None

    def report(self) -> dict[str, Any]:
        """The content of report.json; empty if it is missing or cannot be read."""
        with suppress(RunError, StorageError):
            return self.read("report.json")
        return {}

    def status(self) -> str:
        """ "running", "finished", "interrupted", "diverged", "failed" or "dead" (killed)."""
        for _ in range(2):  # it may end, or be resumed, between the two looks
            if self._is_held():
                return "running"
            if report := self.report():
                return str(report.get("status", "failed"))
        return "dead"


def _digest(name: str, content: dict[str, Any]) -> str:
    """The digest of a file and its name, so that no file can replace another."""
    return hashlib.sha256(json.dumps([name, content], sort_keys=True).encode()).hexdigest()


def create_run(
    path: Path | None,
    config: TrainConfig,
    dataset: dict[str, Any],
    chaos: str | None = None,
    origin: dict[str, Any] | None = None,
) -> RunFolder:
    """Make a new run folder with its config.json; existing files are never overwritten.

    Args:
        path: the folder; None for a new one in `runs_home`.
        config: the settings, complete.
        dataset: what is trained on.
        chaos: the faults that were requested. They are no setting: a resume, or a repetition from
            this config, causes none.
        origin: where the training comes from: fields of `distsgd.runs.origin.Origin`.

    Raises:
        RunError: ``path`` exists and is not empty.
        StorageError: it cannot be made.
    """
    now = datetime.now(UTC)
    kind = config.loss if config.model == LINEAR else f"{config.model}-{config.loss}"
    if path:
        chosen = expanded(path).absolute()
    elif name := Path(os.environ.get(RUN_NAME, "")).name:
        chosen = runs_home() / name
    else:
        chosen = _unused(f"{now:%Y%m%d-%H%M%S}-{kind.replace(':', '')}")
    try:
        taken = chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir()))
        if taken:
            raise RunError(
                f"{chosen} exists already and is not empty",
                f"Choose another {spelling().setting('run_dir')}; a run is never overwritten",
            )
        chosen.mkdir(parents=True, mode=0o700, exist_ok=True)
        chosen.chmod(0o700)
        (chosen / "checkpoints").mkdir(mode=0o700)
    except OSError as error:
        ours = path is None and error.errno != errno.ENOSPC
        hint = ""
        if ours:
            chosen_by = spelling().setting("run_dir")
            hint = f"Choose another folder with {chosen_by}, or set DISTSGD_HOME to one"
        raise storage_error(error, chosen, hint) from None
    run = RunFolder(chosen)
    run.hold()  # before config.json makes it a run, so that it never looks dead
    try:
        run.write(
            "config.json",
            {
                "created": now.isoformat(timespec="milliseconds"),
                "settings": asdict(config),
                "dataset": dataset,
                "versions": versions(),
                **(origin or {}),
                **({"chaos": chaos} if chaos else {}),
            },
        )
    except BaseException:
        run.release()
        raise
    if path:
        _register(chosen)
    return run


def _unused(name: str) -> Path:
    """A new folder in `runs_home`; several runs may start within a second."""
    while (path := runs_home() / f"{name}-{secrets.token_hex(2)}").exists():
        pass
    return path


def _register(path: Path) -> None:
    """Leave a link in `runs_home`, so that `runs list` shows a run in another folder."""
    with suppress(OSError, StorageError):
        home = runs_home()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / f"{path.name}-{secrets.token_hex(2)}").symlink_to(path, target_is_directory=True)


def list_runs() -> Iterator[RunFolder]:
    """All runs that can be found, oldest first; links to removed folders are deleted."""
    found: dict[Path, RunFolder] = {}
    try:
        home = runs_home()
    except StorageError:
        return
    for entry in home.iterdir() if home.is_dir() else ():
        with suppress(OSError):  # a folder that this user may not look into
            if entry.is_symlink() and not entry.exists():
                entry.unlink()
            elif (entry / "config.json").is_file():
                found[entry.resolve()] = RunFolder(entry.resolve())
    yield from sorted(found.values(), key=lambda run: (_created(run), str(run.path)))


def _created(run: RunFolder) -> str:
    try:
        return str(run.read("config.json").get("created", ""))
    except (RunError, StorageError):
        return ""


def handle(run: RunFolder) -> str:
    """A name for a run that commands accept from any folder: its name, or its path."""
    return run.path.name if run.path.parent == runs_home().resolve() else str(run.path)


def find_run(name: str | Path) -> RunFolder:
    """Find a run by its path, by its name, or "latest".

    A relative path takes precedence over the name of a run in `runs_home`, and that over the name
    of a run in another folder.

    Raises:
        RunError: there is none, or several have this name.
    """
    if str(name) == "latest":
        runs = list(list_runs())
        if not runs:
            raise RunError("there are no runs yet", "Make one: `distsgd train`")
        return runs[-1]
    if not isinstance(name, str | os.PathLike):
        raise RunError(f"{name!r} is not a run", "Give its path, its name, or latest")
    places = [expanded(name)]
    with suppress(StorageError):
        places.append(runs_home() / name)
    with suppress(OSError, ValueError):  # an impossible path, for example a very long one
        for path in places:
            if (path / "config.json").is_file():
                return RunFolder(path.resolve())
    found = [run for run in list_runs() if run.path.name == str(name)]
    if len(found) > 1:
        paths = ", ".join(str(run.path) for run in found)
        raise RunError(f"there are {len(found)} runs {name}", f"Give the path of one: {paths}")
    if found:
        return found[0]
    raise RunError(f"there is no run {name}", "`distsgd runs list` shows all runs")


_WORKERS_FILE = "workers.json"


def want_workers(run: RunFolder, workers: int) -> None:
    """Ask the process that trains a run for another number of workers.

    Raises:
        StorageError: it cannot be written.
    """
    run.write(_WORKERS_FILE, {"workers": workers})


class WantedWorkers:
    """The number of workers that `want_workers` asks for, as the training process reads it.

    Args:
        run: the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._path = run, run.path / _WORKERS_FILE
        self._seen = 0

    def again(self) -> None:
        """Return the last request once more: the workers were restarted."""
        self._seen = 0

    def __call__(self) -> int | None:
        """The number of workers, if there is a new request."""
        try:
            now = stat_inside(self._path).st_mtime_ns
        except OSError:
            return None
        if now == self._seen:
            return None
        self._seen = now
        try:
            found = self._run.read(_WORKERS_FILE)["workers"]
        except (RunError, StorageError, KeyError):
            return None
        return found if isinstance(found, int) and found > 0 else None


_KERNELS_FILE = "kernels.json"


def kernels_of(run: RunFolder) -> list[str]:
    """The BLAS kernels of a run: the first, then those of workers and resumes that differ."""
    first = run.read("config.json")["versions"]["blas"]
    later = run.read(_KERNELS_FILE)["kernels"] if (run.path / _KERNELS_FILE).exists() else []
    return [first, *later]


def products_of(run: RunFolder) -> str:
    """How a run multiplies its slots, see `SMALL_PRODUCTS`; chosen when it began.

    Raises:
        RunError: config.json is missing or damaged.
    """
    found = run.read("config.json").get("versions", {}).get("products", SMALL_PRODUCTS)
    if found not in (SMALL_PRODUCTS, WHOLE_PRODUCTS):
        raise RunError(
            f"{run.path / 'config.json'} has products {found!r}, which this version does not know",
            "Use the version of distsgd that made the run, or a later one",
        )
    return str(found)


def add_kernel(run: RunFolder, kernel: str) -> None:
    """Remember a kernel of the run, unless it is known.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    known = kernels_of(run)
    if kernel not in known:
        run.write(_KERNELS_FILE, {"kernels": [*known[1:], kernel]})


def other_kernels(run: RunFolder) -> str:
    """A remark if parts of a run were computed by other kernels than this machine's, else ""."""
    known, here = kernels_of(run), blas_kernel()
    if set(known) <= {here} or run.settings().arithmetic == EXACT:
        return ""
    return (
        f"the run was computed by {' and '.join(known)}, and this machine has {here}, which rounds "
        f"differently; {SAME_BLAS}"
    )


def note_kernel(run: RunFolder) -> str:
    """Remember the kernel of this machine; returns the remark of `other_kernels`.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    if remark := other_kernels(run):
        add_kernel(run, blas_kernel())
    return remark


def clean_up(run: RunFolder) -> None:
    """Remove what earlier processes left behind: unfinished files, a request for workers."""
    for folder in (run.path, run.checkpoints):
        with suppress(OSError):
            for name in names_inside(folder, below=run.path):
                if name.startswith(".") and name.endswith(".tmp"):
                    with suppress(OSError):
                        remove_inside(folder / name, below=run.path)
    run.remove(_WORKERS_FILE)
