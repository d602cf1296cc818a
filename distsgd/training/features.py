"""The features that take part in a training if asked for: verification, a timeline, chaos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Ended, Event, UpdateSampled
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import VerificationError
from distsgd.proof.verifier import Verifier
from distsgd.runs import check_trace_file, write_trace_file
from distsgd.training.chaos import ChaosWatch, chaos_from
from distsgd.training.hooks import Context, Hook
from distsgd.training.measuring import Background

__all__ = ["features_of"]


def features_of(
    config: TrainConfig, trace: Path | None = None, chaos: str | None = None
) -> list[Hook]:
    """The hooks of a training.

    Args:
        config: its settings.
        trace: a file for a timeline of every process, or None.
        chaos: faults to cause, see `chaos_from`, or None.

    Raises:
        UsageError: the faults or the file cannot be used.
    """
    hooks: list[Hook] = []
    if chaos is not None:
        hooks.append(ChaosWatch(chaos_from(chaos, config.seed, config.workers)))
    if trace is not None:
        check_trace_file(trace)
        hooks.append(_Timeline(trace))
    if config.verify:
        hooks.append(_Verification(config))
    return hooks


class _Timeline(Hook):
    """Writes a timeline of every process to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self, job: Job, context: Context) -> Job:
        return replace(job, trace=True)

    def ended(self, ended: Ended) -> None:
        write_trace_file(self._path, ended.tracks)


class _Verification(Hook):
    """Recomputes sampled updates independently; one that does not hold ends the training."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def prepare(self, job: Job, context: Context) -> Job:
        self._context, self._background = context, Background()
        self._verifier = Verifier(self._config, context.run.dataset, job)
        return job

    def event(self, event: Event) -> None:
        if not isinstance(event, UpdateSampled):
            return
        try:
            self._background.run(lambda: self._verifier.check(event))
        except VerificationError:
            sampled = event.sampled  # W before the wrong update is worth keeping
            before = Snapshot(sampled.update.version - 1, sampled.before, sampled.state)
            self._context.save(before)
            raise

    def restarted(self) -> None:
        self._verifier.went_back()

    def close(self) -> None:
        self._background.close()

    def result(self, ended: Ended) -> dict[str, Any]:
        return {"verified": self._verifier.summary(ended.statistics.let_pass)}
