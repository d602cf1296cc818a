"""Many settings trained in one pass over the data, each with the bits of its own training.

Settings that use the same minibatches are trained together: rows are gathered and converted once
for all of them. The W of each, and its losses, are those of `distsgd train` with these settings,
bit for bit, for any number of workers under `bsp`.

    training = StackedTraining(configs, open_dataset("cifar10"))
    for results in training:                  # epoch after epoch
        worst = max(results, key=lambda one: one.validation_loss)
        training.drop([worst.setting])
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats, Ints, Values, finite
from distsgd.core.model import SlotLoss, StackedKernel, measure_all
from distsgd.core.optim import Updater
from distsgd.core.plan import EpochOrder
from distsgd.core.reduction_tree import root, sum_node
from distsgd.core.server.open_minibatch import exact_sum
from distsgd.data.dataset import Dataset
from distsgd.engine.blas import best_products, one_blas_thread
from distsgd.engine.job import Job
from distsgd.engine.worker import labels_of
from distsgd.errors import UsageError
from distsgd.training.measuring import chosen_batches
from distsgd.tuning.stacked_rows import GatheredRows

__all__ = ["EpochResult", "Measured", "SettingState", "StackedTraining", "stacks"]

_GATHERED = 256
"""Examples that are gathered at once."""

_STACK_BYTES, _VECTORS = 512 << 20, 10
"""Memory of a stack, and vectors of the length of W that each of its settings takes: W, sums, the
state of its update rule, buffers, and what is sent to be kept."""

_FREE = frozenset({
    "learning_rate", "regularization", "init_scale", "optimizer", "momentum", "schedule",
    "scale_lr", "warmup_epochs", "step_epochs", "step_factor", "loss",
    "workers", "servers", "elastic", "channel", "placement", "log_every", "keep_checkpoints",
    "checkpoint_seconds", "journal", "verify", "hang_seconds", "wait_seconds",
    "staleness", "backup", "local_steps", "error_feedback",
})  # fmt: skip
"""Settings in which those of one stack may differ; the others decide rows, model or number type."""


@dataclass(frozen=True)
class EpochResult:
    """An epoch of one setting.

    Attributes:
        setting: its place among the settings that the training was given.
        epoch: from 1.
        step: updates applied.
        learning_rate: of the last update.
        train_loss: mean loss over the epoch, while W changed, plus the penalty at its end: that of
            a run's table of epochs.
        train_accuracy: share of the examples that were classified rightly before each update.
        validation_loss: mean loss of the examples put aside, plus the penalty; None without them.
        validation_accuracy: share of these that are classified rightly; None without them.
        seconds: of the epoch, divided by the settings that were trained together.
        diverged: whether its loss or W has become infinite; it is trained no further.
    """

    setting: int
    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float = 0.0
    diverged: bool = False


class Measured(NamedTuple):
    """What a setting is worth on some examples.

    Attributes:
        loss: mean loss plus the penalty; None if there are no examples.
        accuracy: share of them that are classified rightly; likewise.
    """

    loss: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class SettingState:
    """A setting after a number of epochs: all that is needed to go on.

    Attributes:
        epoch: epochs done.
        weights: flat padded W, shape (parameters,).
        optimizer: state of the update rule, arrays of the same shape by name.
    """

    epoch: int
    weights: Floats
    optimizer: Mapping[str, Floats] = field(default_factory=dict)

    def arrays(self) -> dict[str, Floats]:
        """All arrays by name, to be saved; `from_arrays` is the way back."""
        return {"weights": self.weights, **{f"optimizer.{n}": v for n, v in self.optimizer.items()}}

    @classmethod
    def from_arrays(cls, epoch: int, arrays: Mapping[str, Floats]) -> SettingState:
        """What `arrays` gave."""
        prefix = "optimizer."
        state = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
        return cls(epoch, arrays["weights"], state)


def stacks(
    configs: Sequence[TrainConfig], most: int = 16, workers: int = 1, parameters: int = 0
) -> list[tuple[int, ...]]:
    """Group settings that can be trained together.

    Args:
        configs: the settings.
        most: of one stack.
        workers: the groups are cut so that these have equally much to do.
        parameters: of the largest model, by which stacks are kept to some hundred MiB; 0: unknown.

    Returns:
        the places of the settings of each stack; those of the most settings come first.

    Raises:
        UsageError: settings are for another consistency than bsp, or compress gradients.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, config in enumerate(configs):
        groups.setdefault(_key(config), []).append(place)
    parts = []
    share = -(-len(configs) // max(1, workers))
    for group in groups.values():
        one = parameters * np.dtype(configs[group[0]].dtype).itemsize * _VECTORS
        size = max(1, min(most, share, _STACK_BYTES // one if one else most))
        count = -(-len(group) // size)
        cuts = [len(group) * i // count for i in range(count + 1)]
        parts += [tuple(group[low:high]) for low, high in pairwise(cuts)]
    return sorted(parts, key=len, reverse=True)


def _key(config: TrainConfig) -> tuple[Any, ...]:
    """What settings of one stack have in common."""
    for name, only in (("consistency", "bsp"), ("compress", "none")):
        if getattr(config, name) != only:
            raise UsageError(
                f"{config.given(name)} cannot be trained together with other settings",
                f"Give {config.spelling.given(name, only)}, or train each by itself",
            )
    return tuple(getattr(config, name) for name in config.__dataclass_fields__ if name not in _FREE)


class StackedTraining:
    """Trains several settings at once; iterates over epochs, each a list of `EpochResult`.

    It computes in this process, with one BLAS thread while it does.

    Args:
        configs: the settings, of one group of `stacks`.
        dataset: what they are trained on.
        states: where each setting begins, all after the same epoch; None for the start. A setting
            whose state is missing is not trained.
        until: epochs after which the iteration ends; None for all.

    Attributes:
        numbers: places in ``configs`` of the settings that are still trained.
        epoch: epochs done.

    Raises:
        UsageError: the settings cannot be trained together, or not on this dataset.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        dataset: Dataset,
        states: Mapping[int, SettingState] | None = None,
        until: int | None = None,
    ) -> None:
        if len({_key(config) for config in configs}) != 1:
            raise UsageError(
                "these settings cannot be trained together", "Group them by `stacks` first"
            )
        self._configs, self._dataset = list(configs), dataset
        with one_blas_thread():
            self._jobs = [make_job(config, dataset, best_products()) for config in configs]
        self._until = min(until or configs[0].epochs, configs[0].epochs)
        self._plan = plan = self._jobs[0].plan
        self._order = EpochOrder(plan)
        self._split = dataset.train
        together = max(1, _GATHERED // plan.slot_size)
        self._together = min(
            1 << (together.bit_length() - 1), 1 << (plan.most_slots - 1).bit_length()
        )
        self._rows: GatheredRows | None = None
        self.numbers: tuple[int, ...] = ()
        self.epoch = 0
        if states is None:
            states = {
                number: SettingState(0, first_weights(config, job))
                for number, (config, job) in enumerate(zip(configs, self._jobs, strict=True))
            }
        self.restore(states)

    def __iter__(self) -> Iterator[list[EpochResult]]:
        while self.numbers and self.epoch < self._until:
            yield self.train_epoch()

    def train_epoch(self) -> list[EpochResult]:
        """Train all settings for one more epoch; those that diverge are dropped."""
        began = time.perf_counter()
        tallies = [_Tally() for _ in self.numbers]
        plan, first = self._plan, self.epoch * self._plan.steps_per_epoch
        with one_blas_thread(), np.errstate(all="ignore"):
            for step in range(first, first + plan.steps_per_epoch):
                self._step(step, tallies)
            self.epoch += 1
            results = self._results(tallies)
        seconds = (time.perf_counter() - began) / len(tallies)
        diverged = [one.setting for one in results if one.diverged]
        self.drop(diverged)
        results.sort(key=lambda one: one.setting)
        return [replace(one, seconds=seconds) for one in results]

    def drop(self, settings: Iterable[int]) -> None:
        """Train these settings no further; the others do not notice.

        Args:
            settings: their places in the settings that were given.
        """
        gone = set(settings)
        kept = [place for place, number in enumerate(self.numbers) if number not in gone]
        if len(kept) == len(self.numbers):
            return
        states = self.state()
        self.restore({self.numbers[place]: states[self.numbers[place]] for place in kept})

    def state(self) -> dict[int, SettingState]:
        """All that is needed to go on, a copy, of each setting that is still trained."""
        return {
            number: SettingState(
                self.epoch,
                self._kernel.plain(updater.weights).copy(),
                {
                    name: self._kernel.plain(array).copy()
                    for name, array in updater.optimizer.state.items()
                },
            )
            for number, updater in zip(self.numbers, self._updaters, strict=True)
        }

    def restore(self, states: Mapping[int, SettingState]) -> None:
        """Go on from here with these settings alone.

        Args:
            states: by place of the setting, all after the same number of epochs.
        """
        if len({state.epoch for state in states.values()}) > 1:
            raise UsageError(
                "these settings have been trained for different numbers of epochs",
                "Group them by their epochs",
            )
        # Models of one loss are neighbours, for the kernel.
        self.numbers = tuple(sorted(states, key=lambda n: (self._jobs[n].loss, n)))
        self.epoch = next((state.epoch for state in states.values()), self.epoch)
        if not self.numbers:
            self._updaters = []
            return
        jobs = [self._jobs[number] for number in self.numbers]
        first, count = jobs[0], len(jobs)
        self._kernel = first.stacked_kernel([job.loss for job in jobs], self._together)
        lanes = self._kernel.lanes
        if self._rows is None or self._rows.lanes != lanes:
            most = self._together * self._plan.most_examples
            self._rows = GatheredRows(
                self._split, first.features, most, lanes, kept=first.cache != "shards"
            )
        self._weights = np.empty((count, first.parameters), dtype=first.dtype)
        chunks = -(-self._plan.most_slots // self._together)
        self._sums = np.empty((chunks, *self._weights.shape), dtype=first.dtype)
        self._updaters = [
            _updater(job, states[number], into, self._kernel)
            for number, job, into in zip(self.numbers, jobs, self._weights, strict=True)
        ]

    def weights(self, setting: int) -> Floats:
        """W of a setting as in a checkpoint (`Architecture.unpad`), a copy."""
        flat = self._kernel.plain(self._weights[self.numbers.index(setting)])
        return self._jobs[setting].architecture.unpad(flat).copy()

    def _step(self, step: int, tallies: list[_Tally]) -> None:
        plan = self._plan
        losses: list[list[SlotLoss]] = [[] for _ in self.numbers]
        low, high = plan.minibatch(step)
        self._kernel.begin(self._weights)
        chunk = 0
        while low < high:
            after = min(high, low + self._together * plan.slot_size)
            self._chunk(plan.epoch_of(step), low, after, self._sums[chunk], losses)
            low, chunk = after, chunk + 1
        sum_node(root(chunk), self._sums, 0, chunk)
        examples = plan.batch_examples(step)
        for place, (updater, tally) in enumerate(zip(self._updaters, tallies, strict=True)):
            if tally.diverged:
                continue
            loss = exact_sum([part.loss for part in losses[place]])
            gradient = self._sums[0, place]
            if not (math.isfinite(loss) and finite(gradient)):
                tally.diverged = True
                continue
            tally.rate = updater.apply(gradient, examples, step)
            tally.add(loss / examples, sum(part.correct for part in losses[place]), examples)
            if not finite(updater.weights):
                tally.diverged = True

    def _chunk(
        self, epoch: int, low: int, high: int, out: Floats, losses: list[list[SlotLoss]]
    ) -> None:
        """Sums of the gradients of the slots at these positions of an epoch."""
        size, rows = self._plan.slot_size, self._rows
        assert rows is not None
        whole = (high - low) // size
        middle = low + whole * size
        if middle in (low, high):  # slots of one size
            given = self._gather(epoch, low, high, max(1, whole))
            found = self._kernel.sums(self._weights, given[0], out, rows, given[1])
        else:
            buffer = np.empty((whole + 1, *out.shape), out.dtype)
            given = self._gather(epoch, low, middle, whole)
            kernel, into = self._kernel, buffer[:whole]
            found = kernel.gradients(self._weights, given[0], into, rows, given[1])
            given = self._gather(epoch, middle, high, 1)
            last = kernel.gradients(self._weights, given[0], buffer[whole:], rows, given[1])
            found = [[*own, *one] for own, one in zip(found, last, strict=True)]
            np.copyto(out, sum_node(root(whole + 1), buffer, 0, whole + 1))
        for own, new in zip(losses, found, strict=True):
            own.extend(new)

    def _gather(self, epoch: int, low: int, high: int, slots: int) -> tuple[Ints, Floats | None]:
        """Gather the rows at these positions of an epoch.

        Returns:
            their labels and factors, see `labels_of`, shape (slots, examples).
        """
        indices = self._order.examples(epoch, low, high).reshape(slots, -1)
        assert self._rows is not None
        self._rows.gather(indices)
        return labels_of(self._jobs[0], self._split, indices)

    def test(self) -> dict[int, Measured]:
        """Mean loss with the penalty, and accuracy, on the test set, of each setting."""
        with one_blas_thread(), np.errstate(all="ignore"):
            return self._measured(self._dataset.test.batches())

    def _measured(self, batches: Iterable[tuple[Values, Ints]]) -> dict[int, Measured]:
        """The same on other examples; the figures of `distsgd evaluate`."""
        jobs = [self._jobs[number] for number in self.numbers]
        flats = [self._kernel.plain(flat) for flat in self._weights]
        models = [(flat, job.loss) for flat, job in zip(flats, jobs, strict=True)]
        first = jobs[0]
        all_found = measure_all(first.architecture, models, first.preprocessing, batches)
        measured = {}
        for number, job, flat, found in zip(self.numbers, jobs, flats, all_found, strict=True):
            penalty = job.architecture.penalty(flat, job.regularization)
            count = max(1, found.examples)
            measured[number] = Measured(found.loss / count + penalty, found.correct / count)
        return measured

    def _results(self, tallies: list[_Tally]) -> list[EpochResult]:
        """Of the epoch that has ended."""
        rows = self._plan.held_out
        held_out: dict[int, Measured] = {}
        if len(rows):
            held_out = self._measured(chosen_batches(self._split, rows, self._dataset))
        results = []
        for place, (number, tally) in enumerate(zip(self.numbers, tallies, strict=True)):
            job, flat = self._jobs[number], self._kernel.plain(self._weights[place])
            loss, accuracy = tally.means()
            validation = held_out.get(number, Measured(None, None))
            results.append(
                EpochResult(
                    setting=number,
                    epoch=self.epoch,
                    step=self._updaters[place].version,
                    learning_rate=tally.rate,
                    train_loss=loss + job.architecture.penalty(flat, job.regularization),
                    train_accuracy=accuracy,
                    validation_loss=validation.loss,
                    validation_accuracy=validation.accuracy,
                    diverged=tally.diverged,
                )
            )
        return results


class _Tally:
    """Loss and hits of an epoch, added up as a run does."""

    def __init__(self) -> None:
        self.loss, self.correct, self.examples = 0.0, 0, 0
        self.rate, self.diverged = 0.0, False

    def add(self, loss: float, correct: int, examples: int) -> None:
        self.loss += loss * examples
        self.correct += correct
        self.examples += examples

    def means(self) -> tuple[float, float]:
        if self.diverged:
            return math.inf, self.correct / max(1, self.examples)
        count = max(1, self.examples)
        return self.loss / count, self.correct / count


def _updater(job: Job, state: SettingState, into: Floats, kernel: StackedKernel) -> Updater:
    """What updates a setting's W, which is in its place of the stack."""
    np.copyto(into, kernel.arranged(state.weights))
    optimizer = job.update_rule(into)
    for name, array in state.optimizer.items():
        optimizer.state[name][...] = kernel.arranged(array)
    return Updater(
        into, decay=kernel.arranged(job.decay()), optimizer=optimizer, schedule=job.schedule,
        version=state.epoch * job.plan.steps_per_epoch,
    )  # fmt: skip
