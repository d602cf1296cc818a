"""What a training reports while it runs, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from distsgd.config.settings import TrainConfig
from distsgd.engine.events import Progress

if TYPE_CHECKING:
    from distsgd.runs.history import History

__all__ = ["ChaosReport", "EpochRow", "Reporter", "Stages", "TrainResult", "result_from"]


@dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """The faults caused in a training, and their cost. There is a report only if the audit passes.

    Attributes:
        asked: the request.
        seed: of the random choices.
        faults: fault -> how often it was caused.
        stalled_seconds: total of all pauses between updates of more than half a second.
        answers_in_vain: gradients that were computed and not used: their push was dropped or came
            late, or the update was lost with its server and recomputed.
        slots_in_vain: slots in them.
        audited_updates: updates in the journal, by which each example was applied exactly once.
    """

    asked: str
    seed: int
    faults: dict[str, int]
    stalled_seconds: float
    answers_in_vain: int
    slots_in_vain: int
    audited_updates: int


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """The metrics at the end of an epoch; losses include the L2 penalty.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch's minibatches, each before its update.
        train_accuracy: likewise.
        test_loss: of W at the end of the epoch.
        test_accuracy: likewise.
        seconds: spent on steps so far, in all parts of a run that was resumed.
        validation_loss: as test_loss, of the rows held out; None without any.
        validation_accuracy: likewise.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a run. Losses are the objective: mean L_i plus the L2 penalty.

    Attributes:
        run_dir: the run folder.
        status: "finished" or "interrupted".
        dataset: as it was given.
        loss: "softmax" or "svm".
        model: "linear" or "mlp:HIDDEN".
        workers: worker processes.
        servers: parameter servers.
        channel: how gradients travelled: "inline", "shm", "tcp", "ray", or several with "+"; "none"
            if training was stopped before the workers were connected.
        batch_size: examples of a minibatch.
        epochs: epochs asked for.
        seed: seed of the run.
        sampling: how minibatches were chosen.
        consistency: the policy.
        staleness: of a gradient, in updates -> contributions with it.
        dropped: pushes that were not used.
        requeued: slots deferred to a later update.
        waiting_seconds: worker -> seconds it waited for work. These, staleness, dropped,
            requeued, bytes and busy share are of the steps since the processes were last started.
        answering_seconds: worker -> seconds from getting work to its answer's arrival: computing,
            and the way there and back; empty without Ray.
        bytes_per_update: bytes of gradients pushed to the server, for each update.
        server_busy_share: part of the time of these steps that the (first) server spent on pushes
            and pulls; 0 without Ray.
        steps: updates applied.
        examples_seen: examples used in them.
        train_loss: of the final W over all rows that were trained on.
        train_accuracy: likewise.
        test_loss: of the final W over the test set.
        test_accuracy: likewise.
        train_seconds: spent on steps, in all parts of a run that was resumed, without start-up and
            evaluation.
        wall_seconds: from the call, or the start of the command, to the result.
        startup_seconds: of wall_seconds, until steps began: opening the data, starting processes.
        startup_stages: stage -> its share of startup_seconds, see `Reporter.stage`; "load" is the
            time before the first, in which a command line imports what it needs.
        step_seconds: of wall_seconds, spent on steps; train_seconds without that of earlier parts.
        step_examples: of examples_seen, used in these seconds.
        examples_per_second: step_examples / step_seconds; 0 if there were none.
        weights_sha256: SHA-256 of W, float32, C order, shape (classes, features + 1); with two
            layers, of W1 and then W2.
        journal_head: digest of the last line of the journal. A copy kept elsewhere tells
            later whether the journal is still the same: ``audit(run, expect=...)``.
        chaos: the faults caused on purpose, and their cost; None without any.
        verified: what `TrainConfig.verify` found: the share, how many updates were recomputed and
            how many let pass, the largest difference of a gradient and the largest tolerance
            (both relative to its largest value), which part of a tolerance was used at most, and
            what was not compared; None if it is off.
        validation_loss: of the final W over the rows held out; None without any.
        validation_accuracy: likewise.
        reason: why a finished run has fewer epochs than were asked for: it was stopped early; None
            if it has all of them.
    """

    run_dir: str
    status: str
    dataset: str
    loss: str
    workers: int
    servers: int
    channel: str
    batch_size: int
    epochs: int
    seed: int
    sampling: str
    consistency: str
    staleness: dict[str, int]
    dropped: int
    requeued: int
    waiting_seconds: dict[str, float]
    bytes_per_update: float
    server_busy_share: float
    steps: int
    examples_seen: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    train_seconds: float
    wall_seconds: float
    examples_per_second: float
    weights_sha256: str
    chaos: ChaosReport | None = None
    model: str = "linear"
    verified: dict[str, object] | None = None
    answering_seconds: dict[str, float] = field(default_factory=dict)
    journal_head: str = ""
    startup_seconds: float = 0.0
    step_seconds: float = 0.0
    step_examples: int = 0
    startup_stages: dict[str, float] = field(default_factory=dict)
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.chaos, dict):  # as it is read from a file
            object.__setattr__(self, "chaos", ChaosReport(**self.chaos))

    @property
    def history(self) -> History:
        """The run as its folder has it: metrics, workers, events, and more, in bounded size.

        Raises:
            RunError: the run folder has gone.
        """
        from distsgd.runs.history import HistoryReader

        return HistoryReader(self.run_dir).look()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from distsgd.figures.html import run_html

        return run_html(self.run_dir)


def result_from(content: dict[str, Any]) -> TrainResult:
    """The result in the report of a run.

    Raises:
        TypeError: the report holds something else.
    """
    found = TrainResult(**content)
    for checked in (found, found.chaos) if found.chaos is not None else (found,):
        for one in fields(checked):
            if not _KINDS[str(one.type)](getattr(checked, one.name)):
                raise TypeError(f"its {one.name} is not of type {one.type}")
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_table(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


_KINDS: dict[str, Callable[[object], bool]] = {
    "int": _is_whole,
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "str": _is_text,
    "str | None": lambda value: value is None or _is_text(value),
    "dict[str, int]": _is_table(_is_whole),
    "dict[str, float]": _is_table(_is_number),
    "dict[str, object] | None": lambda value: value is None or isinstance(value, dict),
    "ChaosReport | None": lambda value: value is None or isinstance(value, ChaosReport),
}


class Reporter:
    """Receives the progress of a training. Every method does nothing; override what you need."""

    def stage(self, name: str) -> None:
        """The training has come to a stage of its start.

        Args:
            name: "dataset" (it is opened and checked), "ray" (Ray starts) or "workers" (their
                processes start, open the dataset and connect); without workers, the first only.
        """

    def started(self, config: TrainConfig, run_dir: Path, total_steps: int) -> None:
        """The run folder exists, and training starts."""

    def progress(self, progress: Progress) -> None:
        """Some updates were applied."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch has ended."""

    def notice(self, text: str) -> None:
        """Something happened that does not end the training, such as the death of a server."""

    def ended(self) -> None:
        """All steps are done; the final evaluation follows."""


class Stages:
    """The stages of a start, one after the other, until steps begin.

    Args:
        began: when the first began, by `time.perf_counter`.
        reporter: notified of each.

    Attributes:
        began: as given.
        seconds: stage -> how long it took.
    """

    def __init__(self, began: float, reporter: Reporter) -> None:
        self.began, self._reporter = began, reporter
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "load", began

    def enter(self, name: str) -> None:
        """The next stage begins."""
        self.end()
        self._stage = name
        told: Callable[[str], None] | None = getattr(self._reporter, "stage", None)
        if told is not None:  # a reporter may have been written before there were stages
            told(name)

    def end(self) -> None:
        """Steps begin, if they have not begun before."""
        now = perf_counter()
        if self._stage:
            self.seconds[self._stage] = now - self._since
        self._stage, self._since = "", now
