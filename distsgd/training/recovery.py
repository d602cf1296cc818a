"""Where a session starts: a new run, or the newest usable checkpoint and the journal after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from distsgd.config.jobs import first_weights
from distsgd.config.settings import TrainConfig
from distsgd.core.messages import Lease
from distsgd.core.optim import Residual, Residuals
from distsgd.core.server import Ledger
from distsgd.engine.job import Snapshot
from distsgd.errors import JournalError, RunError
from distsgd.proof.replayer import Replayer, records_of, start_of
from distsgd.runs import Entry, Mark, MarkMissing, Model, other_kernels
from distsgd.runs.journal_check import Beginning, JournalCheck, beginning_of
from distsgd.runs.opened_run import OpenedRun
from distsgd.training.logbook import Start

__all__ = ["Stopped", "Tail", "find_tail", "first_start"]


def first_start(run: OpenedRun) -> Start:
    """The start of a new run: W as it is initialised, and an empty journal."""
    first = first_weights(run.origin, run.job(run.origin))
    return Start(Snapshot(0, first, {}), Ledger(), Mark(run.first))


@dataclass(frozen=True)
class Tail:
    """A checkpoint, and all lines of the journal after it.

    Attributes:
        model: the checkpoint.
        begin: where the lines begin.
        settings: the settings after the last of them.
        entries: the lines.
        ledger: what has been applied until the last of them.
        end: where the journal ends.
        residuals: of the workers, at the checkpoint.
        fleet: the most workers since the run started or resumed.
    """

    model: Model
    begin: Beginning
    settings: TrainConfig
    entries: list[Entry]
    ledger: Ledger
    end: Mark
    residuals: Residuals
    fleet: int

    def start(
        self,
        run: OpenedRun,
        stop: Callable[[], bool] = lambda: False,
        later: Sequence[Entry] = (),
    ) -> Start:
        """The state after the last update, which recomputes the updates after the checkpoint.

        Args:
            run: the run.
            stop: asked after every update whether to give up.
            later: lines that are to follow, whose older versions of W are kept for them.

        Raises:
            Stopped: it says so.
            JournalError: an update cannot be recomputed.
        """
        replayer = Replayer(
            self.begin.config, run.dataset, start_of(self.model, self.residuals), run.products,
            lambda error: _differs(run, error),
        )  # fmt: skip
        replayer.keep_for(later)
        for _ in replayer.versions(self.entries):
            if stop():
                job, ledger = run.job(self.begin.config), self.begin.ledger
                model = start_of(self.model, self.residuals)
                raise Stopped(replace(model, position=ledger.position(job.plan, job.policy)))
        job = run.job(self.settings)
        position = self.ledger.position(job.plan, job.policy)
        now = replace(replayer.snapshot(), position=position)
        return Start(now, self.ledger, self.end, self.fleet)


def _differs(run: OpenedRun, error: JournalError) -> None:
    """Refuse to continue a history that cannot be recomputed; of another kernel a notice tells."""
    if not other_kernels(run.folder):
        raise error


class Stopped(Exception):
    """A stop was asked for while the updates after a checkpoint were recomputed.

    Attributes:
        start: the server at that checkpoint.
    """

    def __init__(self, start: Snapshot) -> None:
        super().__init__("stopped")
        self.start = start


def find_tail(run: OpenedRun, notice: Callable[[str], None] = lambda text: None) -> Tail:
    """The newest checkpoint that a run can resume from, with all that comes after it.

    Args:
        run: the run.
        notice: called with a text about checkpoints whose residuals cannot be read.

    Raises:
        RunError: there is no such checkpoint.
        JournalError: the journal is invalid.
    """
    problem, without = "it has no checkpoint that can be read", ""
    for model in run.checkpoints():
        try:
            residuals = run.residuals(model)
        except RunError as error:
            problem = without = without or error.problem
            continue
        tail = _tail(run, model, residuals)
        if tail is not None and _is_sufficient(tail):
            if without:
                notice(f"{without}; all updates after update {model.version} are recomputed")
            return tail
        problem = without or "its checkpoints and its journal do not match"
    raise RunError(f"{run.folder.path} cannot be resumed: {problem}", "Train again")


def _tail(run: OpenedRun, model: Model, residuals: Residuals) -> Tail | None:
    """What follows a checkpoint; None if the journal has no such place."""
    try:
        begin = beginning_of(run, model)
    except RunError:
        return None
    try:
        check = JournalCheck(run, begin)
        lines = list(check.follow(run.entries(begin.mark)))
    except MarkMissing:
        return None
    return Tail(
        model=model,
        begin=begin,
        settings=check.config,
        entries=[entry for entry, _ in lines],
        ledger=check.updates.ledger,
        end=lines[-1][1] if lines else begin.mark,
        residuals=residuals,
        fleet=check.updates.workers,
    )


def _is_sufficient(tail: Tail) -> bool:
    """Whether all later updates can be recomputed from a checkpoint.

    It must hold every older version of W that they read, and the residuals that they start from.
    """
    model, before = tail.model, tail.begin.ledger.version
    records = records_of(tail.entries)
    later = records[model.version - before :]
    within = model.version <= before + len(records)
    leases = [answer for record in later for answer in record.contributions]
    reads = {lease.version for _, lease in leases}
    known = all(read >= model.version or read in model.reads for read in reads)
    return within and known and not any(_came_before(tail, *answer) for answer in leases)


def _came_before(tail: Tail, worker: int, lease: Lease) -> bool:
    """Whether a worker gave this answer before the ones that its residual includes."""
    known = tail.residuals.get(worker, Residual(0, None)).serial
    return lease.serial < known
