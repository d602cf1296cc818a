"""The run folder and its files: everything about a run can be read from it.

`opened_run` and `journal_check` combine these files with the dataset; they are imported by name, as
they load Arrow.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distsgd.runs.checkpoint import (
    Model,
    Place,
    checkpoint_path,
    checkpoint_versions,
    read_if_kept,
    read_newest,
    read_place,
    remove_checkpoints,
    shaped,
    superfluous,
    wanted,
    weights_sha256,
    write_checkpoint,
)
from distsgd.runs.folder import (
    RunFolder,
    WantedWorkers,
    add_kernel,
    clean_up,
    find_run,
    handle,
    note_kernel,
    other_kernels,
    want_workers,
)
from distsgd.runs.journal import (
    JOURNAL,
    Entry,
    Forked,
    JournalWriter,
    Mark,
    MarkMissing,
    Record,
    Resized,
    Resumed,
    check_digest,
    recorded_journal,
)
from distsgd.runs.line_file import LineFile
from distsgd.runs.metrics import (
    Best,
    MetricsWriter,
    best_epoch,
    check_trace_file,
    score_of,
    seconds_of_steps,
    write_trace_file,
)
from distsgd.runs.residual_file import remove_residuals, write_residuals

if TYPE_CHECKING:
    from distsgd.runs.listing import RunSummary

__all__ = [
    "JOURNAL",
    "Best",
    "Entry",
    "Forked",
    "JournalWriter",
    "LineFile",
    "Mark",
    "MarkMissing",
    "MetricsWriter",
    "Model",
    "Place",
    "Record",
    "Resized",
    "Resumed",
    "RunFolder",
    "WantedWorkers",
    "add_kernel",
    "best_epoch",
    "check_digest",
    "check_trace_file",
    "checkpoint_path",
    "checkpoint_versions",
    "clean_up",
    "find_run",
    "handle",
    "note_kernel",
    "other_kernels",
    "read_if_kept",
    "read_newest",
    "read_place",
    "recorded_journal",
    "remove_checkpoints",
    "remove_residuals",
    "score_of",
    "seconds_of_steps",
    "shaped",
    "superfluous",
    "want_workers",
    "wanted",
    "weights_sha256",
    "write_checkpoint",
    "write_residuals",
    "write_trace_file",
]


class _Callable(ModuleType):
    """`distsgd.runs()` lists runs: Python binds a package's name to it, so it is called itself."""

    def __call__(self, **asked: Any) -> list[RunSummary]:
        """See `distsgd.runs.listing.find_runs`."""
        from distsgd.runs.listing import find_runs

        return find_runs(**asked)


sys.modules[__name__].__class__ = _Callable
