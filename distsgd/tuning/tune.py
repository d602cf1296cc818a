"""A search for settings: trials trained together, chosen by rows held out of the training set.

Trials that use the same minibatches and model are trained in one pass (`distsgd.tuning.stacked`),
over the worker processes of a machine or a cluster (`distsgd.tuning.pool`). Each has the bits of
its own training. The test set is measured for the best of them alone, and only if asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from distsgd.config.jobs import first_weights, make_job
from distsgd.data.dataset import open_dataset
from distsgd.data.system import no_standard_descriptors
from distsgd.engine.blas import one_blas_thread
from distsgd.errors import DistsgdError, RunError
from distsgd.runs import RunFolder
from distsgd.runs.export.rows import ROW_FORMATS, rows_content
from distsgd.training.interrupts import NEVER, Stopping
from distsgd.training.limits import check_fleet, check_sizes
from distsgd.training.preparation import resume_with, train_with
from distsgd.training.results import Reporter
from distsgd.tuning.best_file import settings_to_repeat, settings_toml
from distsgd.tuning.pool import StackedEpoch, stack_pool, stack_tasks
from distsgd.tuning.stacked import SettingState
from distsgd.tuning.state_files import StateFiles
from distsgd.tuning.study_folder import StudyFolder, studies_home, study_digest
from distsgd.tuning.tune_plan import Rung, TunePlan
from distsgd.tuning.tune_results import (
    EpochRecord,
    FinalResult,
    TuneResult,
    ranked,
    trial_results,
)

__all__ = ["KIND", "TuneFollower", "tune_with"]

KIND = "tune"
_RUNS, _BEST = "runs", "best.toml"
_EPOCH = {one.name for one in fields(EpochRecord)}
_FINAL = {one.name for one in fields(FinalResult)}


class TuneFollower(Reporter):
    """Receives the progress of a search, and of the final training as a `Reporter` does.

    Every method does nothing; override what you need.
    """

    def began(self, plan: TunePlan, folder: Path, epochs: int) -> None:
        """The study folder exists; `epochs` of its trials were trained earlier."""

    def epochs(self, records: Sequence[EpochRecord]) -> None:
        """Trials that are trained together have ended an epoch; also for those read again."""

    def dropped(self, rung: Rung, numbers: Sequence[int]) -> None:
        """Halving has dropped trials."""

    def final(self, number: int) -> None:
        """The best trial is trained on all training rows."""

    def closed(self) -> None:
        """Nothing more follows."""


@no_standard_descriptors()
def tune_with(
    plan: TunePlan,
    study: Path | None = None,
    follower: TuneFollower | None = None,
    *,
    final: bool = False,
    address: str | None = None,
    stopping: Stopping = NEVER,
) -> TuneResult:
    """Carry out a search, or go on with it.

    Args:
        plan: what to try.
        study: its folder; None for one that follows from the plan.
        follower: notified of progress.
        final: train the best settings on all training rows, and measure the test set.
        address: of the Ray cluster to train on.
        stopping: what may end it early, after an epoch.

    Returns:
        the result, also of a search that was stopped: its status is then "interrupted".

    Raises:
        UsageError: a setting cannot be used on the data, or the folder is that of another study.
        RunError: another process carries it out.
        RuntimeFailure: workers could not do their work.
        DistsgdError: all trials have diverged, or any other trouble that has a remedy.
    """
    began = time.perf_counter()
    digest = study_digest(KIND, plan.definition)
    path = (study or studies_home() / f"{KIND}-{digest[:10]}").absolute()
    folder = StudyFolder(path, KIND, plan.definition)
    told = follower or TuneFollower()
    with folder.held():
        search = _Search(plan, folder, told, address, began)
        try:
            with stopping as stop:
                search.run(nullcontext(stop), final=final)
        finally:
            told.closed()
        return search.result()


class _Search:
    def __init__(
        self, plan: TunePlan, folder: StudyFolder, follower: TuneFollower, address: str | None,
        began: float,
    ) -> None:  # fmt: skip
        self._plan, self._folder, self._follower = plan, folder, follower
        self._address, self._began = address, began
        self._configs = [trial.config for trial in plan.trials]
        self._files = StateFiles(folder)
        self._records: dict[tuple[int, int], EpochRecord] = {}
        self._states: dict[int, SettingState] = {}
        self._dropped: dict[int, None] = {}
        self._final: FinalResult | None = None
        self._interrupted = False
        self._read()
        self._repeated = len(self._records)

    def _read(self) -> None:
        """What the lines of the study say."""
        files: dict[int, tuple[str, int]] = {}
        for line in self._folder.lines:
            try:
                if "results" in line:
                    for one in line["results"]:
                        found = EpochRecord(**{n: v for n, v in one.items() if n in _EPOCH})
                        self._records[found.trial, found.epoch] = found
                        files[found.trial] = str(line["states"]), found.epoch
                elif "dropped" in line:
                    self._dropped.update(dict.fromkeys(map(int, line["dropped"])))
                elif "final" in line:
                    own = {n: v for n, v in line.items() if n in _FINAL}
                    own["run_dir"] = str(self._folder.path / _RUNS / Path(str(line["run"])).name)
                    self._final = FinalResult(**own)
            except (TypeError, KeyError, ValueError) as error:
                raise RunError(
                    f"{self._folder.path} is damaged: {error}", "Begin another study"
                ) from None
        ended = self._newest
        for number, (name, epoch) in files.items():
            last = ended[number]
            done = last.diverged or number in self._dropped or epoch >= self._plan.config.epochs
            if done or not 1 <= number <= len(self._configs):
                continue
            if (state := self._files.read(name, number, epoch)) is not None:
                self._states[number] = state
            else:  # trained again, with the same results
                for key in [key for key in self._records if key[0] == number]:
                    del self._records[key]

    @property
    def _newest(self) -> dict[int, EpochRecord]:
        """The last epoch of each trial."""
        found: dict[int, EpochRecord] = {}
        for (number, epoch), record in self._records.items():
            if number not in found or epoch > found[number].epoch:
                found[number] = record
        return found

    def run(self, stopping: Stopping, *, final: bool) -> None:
        """Train what is left, and the best at the end."""
        plan = self._plan
        self._follower.began(plan, self._folder.path, self._repeated)
        if self._records:
            ordered = sorted(self._records.values(), key=lambda one: (one.epoch, one.trial))
            self._follower.epochs(ordered)
        if any(self._left(rung) for rung in plan.rungs):
            self._check()
            self._files.sweep()
            with (
                stack_pool(plan.config.workers, self._address) as pool,
                stopping as stop,
            ):
                for rung in plan.rungs:
                    if not self._train(rung, pool, stop):
                        self._interrupted = True
                        return
                    self._drop(rung)
        if (best := self._best()) is None:
            raise DistsgdError(
                f"all {len(plan.trials)} trials have diverged",
                "Search smaller learning rates, such as learning_rate=log:1e-5..1e-3",
            )
        self._write_best(best)
        if final and self._final is None:
            self._train_best(best, stopping)

    def _check(self) -> None:
        """See that all trials can be trained on the data, before any is."""
        base, plan = self._plan.config, self._plan
        self._follower.stage("dataset")
        with one_blas_thread(check_at_end=False):
            self._data = open_dataset(
                base.dataset, cache_limit=base.cache_limit, stream=base.streams
            )
            check_fleet(base, self._address)
            different = {(t.config.model, t.config.batch_size): t.config for t in plan.trials}
            for config in different.values():
                check_sizes(config, self._data, elsewhere=self._address is not None)
            self._data.train.verify()  # the test set is not even read

    def _alive(self) -> list[int]:
        """Numbers of the trials that are neither dropped nor diverged."""
        newest = self._newest
        return [
            trial.number
            for trial in self._plan.trials
            if trial.number not in self._dropped
            and not (trial.number in newest and newest[trial.number].diverged)
        ]

    def _left(self, rung: Rung) -> list[int]:
        """Of them, those that are not at the end of a rung."""
        newest = self._newest
        return [n for n in self._alive() if n not in newest or newest[n].epoch < rung.until]

    def _train(self, rung: Rung, pool: Any, stop: Any) -> bool:
        """Train trials to the end of a rung; returns False if a stop was asked for."""
        left = self._left(rung)
        if stop():
            return False
        if not left:
            return True
        if self._plan.config.workers:
            self._follower.stage("workers")
        states = {number - 1: self._state(number) for number in left}
        tasks = stack_tasks(
            self._configs, self._data, workers=max(1, self._plan.config.workers),
            until=rung.until, states=states,
        )  # fmt: skip
        for epoch in pool.train(tasks):
            self._ended(epoch)
            if stop():
                return not self._left(rung)
        return True

    def _state(self, number: int) -> SettingState:
        """Where a trial goes on, or begins."""
        if (known := self._states.get(number)) is not None:
            return known
        config = self._configs[number - 1]
        with one_blas_thread(check_at_end=False):
            return SettingState(0, first_weights(config, make_job(config, self._data)))

    def _ended(self, epoch: StackedEpoch) -> None:
        """Keep an epoch: the states first, then the line that names them."""
        states = {place + 1: state for place, state in epoch.states.items()}
        records = [_record(one) for one in epoch.results]
        done = [n for n, state in states.items() if state.epoch >= self._plan.config.epochs]
        kept = {n: state for n, state in states.items() if n not in done}
        name = self._files.save(kept)
        self._folder.add(states=name, results=[asdict(one) for one in records])
        self._files.kept(name, kept)
        self._files.forget([one.trial for one in records if one.trial not in kept])
        self._states.update(states)
        self._records.update({(one.trial, one.epoch): one for one in records})
        self._follower.epochs(records)

    def _drop(self, rung: Rung) -> None:
        """Drop the worst after a rung, if they have not been."""
        alive = self._alive()
        at_end = [n for n in alive if self._newest[n].epoch == rung.until]
        gone = ranked(self._newest, at_end)[rung.keep :] if len(at_end) == len(alive) else []
        if not gone or rung == self._plan.rungs[-1]:
            return
        self._folder.add(dropped=gone, after=rung.until)
        self._dropped.update(dict.fromkeys(gone))
        self._files.forget(gone)
        for number in gone:
            self._states.pop(number, None)
        self._follower.dropped(rung, gone)

    def _best(self) -> int | None:
        """The best trial that was trained to the end."""
        newest = self._newest
        whole = [n for n in self._alive() if n in newest
                 and newest[n].epoch >= self._plan.config.epochs]  # fmt: skip
        return ranked(newest, whole)[0] if whole else None

    def _write_best(self, number: int) -> None:
        trial, share = self._plan.trials[number - 1], self._plan.config.validation
        accuracy = self._newest[number].validation_accuracy
        remarks = [
            f"The best of {len(self._plan.trials)} trials: {trial.name}.",
            f"With validation = {share:g} it gives the trial again, whose validation accuracy is "
            f"{accuracy}.",
        ]
        settings = settings_to_repeat(trial.config, self._plan.given)
        self._folder.write(_BEST, settings_toml(settings, remarks).encode())

    def _train_best(self, number: int, stopping: Stopping) -> None:
        """Train the best settings on all training rows: a run as any other."""
        config = replace(self._plan.trials[number - 1].config, validation=0.0)
        self._follower.final(number)
        runs = self._folder.make(_RUNS)
        names = [str(line["run"]) for line in self._folder.lines if "final_begun" in line]
        result = None
        if names:
            last = RunFolder(runs / Path(names[-1]).name)
            with suppress(RunError):
                last.settings()
                if last.status() in ("dead", "interrupted", "finished"):
                    result = resume_with(
                        last.path, {}, self._follower, None, self._address, stopping
                    )
        if result is None:
            name = "final" if not names else f"final-{len(names) + 1}"
            self._folder.add(final_begun=number, run=name)
            result = train_with(
                config, runs / name, self._follower, None, None, self._address, stopping
            )
        if result.status == "interrupted":
            self._interrupted = True
            return
        self._final = FinalResult(
            run_dir=result.run_dir, test_accuracy=result.test_accuracy,
            test_loss=result.test_loss, train_accuracy=result.train_accuracy,
            train_loss=result.train_loss, weights_sha256=result.weights_sha256,
        )  # fmt: skip
        about = {n: v for n, v in asdict(self._final).items() if n != "run_dir"}
        self._folder.add(final=number, run=Path(result.run_dir).name, **about)

    def result(self) -> TuneResult:
        """What there is, which is also written into the folder as tables."""
        plan, path = self._plan, self._folder.path
        records = sorted(self._records.values(), key=lambda one: (one.trial, one.epoch))
        values = [trial.values for trial in plan.trials]
        trials = trial_results(values, records, self._dropped, plan.config.epochs)
        best = self._best()

        def about_trial(number: int) -> dict[str, Any]:
            return {"trial": number, **values[number - 1]}

        self._write_tables(
            {
                "trials": [trial_row(asdict(one)) for one in sorted(trials, key=_number)],
                "epochs": [{**about_trial(one.trial), **epoch_row(one)} for one in records],
            }
        )
        return TuneResult(
            study_dir=str(path), status="interrupted" if self._interrupted else "finished",
            method=plan.method, searched=tuple(one.name for one in plan.axes),
            validation=plan.config.validation, trials=trials,
            best=next((one for one in trials if one.number == best), None),
            best_file=str(path / _BEST) if best is not None and (path / _BEST).exists() else "",
            final=self._final, epochs=len(records), repeated=self._repeated,
            wall_seconds=time.perf_counter() - self._began,
        )  # fmt: skip

    def _write_tables(self, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        about = {"study": self._folder.path.name, "definition": self._plan.definition}
        for name, rows in tables.items():
            for form in ROW_FORMATS:
                self._folder.write(f"{name}.{form}", rows_content(rows, form, about))


def _number(one: Any) -> int:
    return int(one.number)


def trial_row(about: dict[str, Any]) -> dict[str, Any]:
    """A trial as a row of a table."""
    settings = about.pop("settings")
    return {"trial": about.pop("number"), **settings, **about}


def epoch_row(one: EpochRecord) -> dict[str, Any]:
    """An epoch as the columns of a table that follow those of its trial."""
    found = asdict(one)
    rate, _ = found.pop("learning_rate"), found.pop("trial")
    return {**found, "last_learning_rate": rate}  # beside the searched one


def _record(one: Any) -> EpochRecord:
    """An epoch as the study keeps it: numbers that are not finite are None."""
    return EpochRecord(
        trial=one.setting + 1, epoch=one.epoch, step=one.step, learning_rate=one.learning_rate,
        train_loss=_finite(one.train_loss), train_accuracy=_finite(one.train_accuracy),
        validation_loss=_finite(one.validation_loss),
        validation_accuracy=_finite(one.validation_accuracy), seconds=one.seconds,
        diverged=bool(one.diverged),
    )  # fmt: skip


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)
