"""Advice: what to train with, which of many settings is best, and what does not pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distsgd.advice.cluster_machine import measure_cluster
from distsgd.advice.machine import Machine, load_machine, save_machine
from distsgd.advice.measuring import Effort, measure_machine
from distsgd.advice.prediction import Predictor, Setting
from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.server.consistency import POLICIES
from distsgd.data.dataset import open_dataset
from distsgd.engine.blas import best_products
from distsgd.errors import DivergedError, RuntimeFailure, UsageError
from distsgd.simulation.fleet import Fleet
from distsgd.simulation.probe import Measuring
from distsgd.simulation.scenario import policy_settings
from distsgd.simulation.simulate import simulate
from distsgd.spelling import spelled

__all__ = ["Advice", "Choice", "Question", "advise", "recommend", "settings_of"]

_SAME = 0.05
"""Differences of less than this share are none: the simpler setting is recommended."""

_EXAMPLES, _BUSY = 2000, 0.4
_LATENCY, _BANDWIDTH = 0.0002, 1.25e9
"""Of a link that was neither measured nor said."""

_EVERY = 4
"""Up to this number, machines are compared one by one; beyond it, by doubling."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        workers: the most that may be used; None for one a core of all machines.
        machines: of the measured kind that there are; None for those that were measured.
        batch_sizes: that may be used; None for that of the settings, and with a target also for a
            quarter and four times of it.
        policies: such as "bsp" and "ssp:3".
        compress: ways to encode gradients.
        target_loss: training loss that is to be reached, if any.
        target_accuracy: test accuracy that is to be reached, if any.
        slow: how many times slower than the others some of the workers are; where not all are
            used, the slowest are left out first.
    """

    workers: int | None = None
    machines: int | None = None
    batch_sizes: tuple[int, ...] | None = None
    policies: tuple[str, ...] = ("bsp", "ssp", "asp", "local")
    compress: tuple[str, ...] = ("none",)
    target_loss: float | None = None
    target_accuracy: float | None = None
    slow: tuple[float, ...] = ()

    @property
    def has_target(self) -> bool:
        """Whether something is to be reached."""
        return self.target_loss is not None or self.target_accuracy is not None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting and what is predicted of it.

    Attributes:
        workers: processes over all machines.
        machines: that they are on.
        batch_size: examples of a minibatch.
        policy: such as "ssp:3".
        compress: of gradients.
        images_per_second: of the steps.
        update_seconds: between two updates.
        doubt: how far off the rate may be, as a share.
        updates: to the target; None if there is no target, or it is not reached.
        seconds: from the command to the target, or of all epochs.
    """

    workers: int
    machines: int
    batch_size: int
    policy: str
    compress: str
    images_per_second: float
    update_seconds: float
    doubt: float
    updates: int | None = None
    seconds: float | None = None

    @property
    def flags(self) -> str:
        """As options of `distsgd train`."""
        name, _, number = self.policy.partition(":")
        said = f"--workers {self.workers} --batch-size {self.batch_size}"
        if self.workers:
            said += f" --consistency {name}"
            parameters = tuple(POLICIES[name].parameters())
            if number and parameters:
                said += f" --{parameters[0].replace('_', '-')} {number}"
        return said + (f" --compress {self.compress}" if self.compress != "none" else "")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use.

    Attributes:
        best: the recommended setting.
        words: the recommendation and what does not pay, in sentences.
        choices: all settings that were compared, the best first.
        machine: what was measured.
        epochs: passes over the data that ``seconds`` are of, if there is no target.
    """

    best: Choice
    words: tuple[str, ...]
    choices: tuple[Choice, ...]
    machine: Machine
    epochs: int


_ANYTHING, _USUAL = Question(), Effort()


def settings_of(machine: Machine, question: Question) -> list[Setting]:
    """All settings that are compared."""
    of = question.machines or max(1, len(machine.node_cores))
    numbers = sorted({*range(1, min(of, _EVERY) + 1), *_doubled(of)})
    most = question.workers or sum(machine.cores_of(node) for node in range(of))
    counts = sorted({0, *_doubled(most)})
    policies = [
        (own["consistency"], next((v for k, v in own.items() if k != "consistency"), None))
        for _, own in policy_settings(list(question.policies))
    ]
    found: list[Setting] = []
    for batch in dict.fromkeys(
        min(batch, machine.examples) for batch in question.batch_sizes or ()
    ):
        for workers in counts:
            for machines in numbers:
                if machines > max(1, workers) or (machines == 1 and _too_many(machine, workers)):
                    continue
                for name, parameter in policies if workers > 1 else policies[:1]:
                    for compress in question.compress if workers > 1 else ("none",):
                        found.append(
                            Setting(
                                workers=workers, batch_size=batch, consistency=name,
                                parameter=parameter, compress=compress, machines=machines,
                                slow=question.slow[: max(0, len(question.slow) + workers - most)],
                            )
                        )  # fmt: skip
    return found


def _doubled(most: int) -> set[int]:
    """1, 2, 4 and so on, and the last one."""
    return {*(2**n for n in range(most.bit_length()) if 2**n < most), most}


def _too_many(machine: Machine, workers: int) -> bool:
    """More workers of one machine than anybody would start."""
    return workers > 2 * machine.cores


def _policy_name(setting: Setting) -> str:
    if setting.workers == 0:
        return "bsp"
    policy = setting.policy
    numbers = [str(getattr(policy, name)) for name in policy.parameters()]
    return ":".join([setting.consistency, *numbers])


def predictions(
    machine: Machine,
    question: Question,
    epochs: int,
    updates_to: Callable[[Setting], int | None] | None = None,
) -> list[Choice]:
    """What is predicted of every setting, the best first.

    Args:
        machine: the measurements.
        question: what is asked.
        epochs: passes over the data, if there is no target.
        updates_to: updates until the target is reached, of a setting.
    """
    predictor, found = Predictor(machine), list[Choice]()
    for setting in settings_of(machine, question):
        rate = predictor.rate(setting)
        start = machine.start_seconds if setting.workers else machine.start_alone_seconds
        updates = None if updates_to is None else updates_to(setting)
        seconds: float | None = start + epochs * machine.examples / rate.images_per_second
        if updates_to is not None:
            seconds = None if updates is None else start + updates * rate.update_seconds
        found.append(
            Choice(
                workers=setting.workers, machines=setting.machines,
                batch_size=setting.batch_size, policy=_policy_name(setting),
                compress=setting.compress, images_per_second=rate.images_per_second,
                update_seconds=rate.update_seconds, doubt=rate.doubt, updates=updates,
                seconds=seconds,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (one.seconds is None, one.seconds or 0.0))


def recommend(machine: Machine, question: Question, choices: Sequence[Choice], epochs: int) -> (
    Advice
):  # fmt: skip
    """The advice that follows from predictions: a pure function.

    Args:
        machine: the measurements.
        question: what was asked.
        choices: the predictions, the best first.
        epochs: as for `predictions`.
    """
    reached = [one for one in choices if one.seconds is not None]
    if not reached:
        best = max(choices, key=lambda one: one.images_per_second)
        none = (
            "No setting reaches the target in the epochs that were simulated.",
            f"The fastest: {_words(best)}.",
        )
        return Advice(best=best, words=none, choices=tuple(choices), machine=machine, epochs=epochs)
    first = reached[0].seconds or 0.0
    near = [one for one in reached if (one.seconds or 0.0) <= first * (1 + _SAME)]
    best = min(near, key=_simplicity)
    aim = _aim(question, epochs)
    words = [f"Use {_words(best)}: {aim} in about {_time(best.seconds)}."]
    if best.workers:
        words[0] = (
            words[0][:-1] + f", of which {_time(machine.start_seconds)} are the start of Ray."
        )
    if machine.others > _BUSY:
        words.append(
            f"Other programs keep about {machine.others:.1f} of {machine.cores} cores busy: this "
            "holds beside them; measure again when the machine is free."
        )
    words += _what_pays(machine, question, reached, best)
    return Advice(
        best=best, words=tuple(words), choices=tuple(choices), machine=machine, epochs=epochs
    )


def _simplicity(choice: Choice) -> tuple[Any, ...]:
    return (
        choice.machines, choice.workers, choice.policy != "bsp", choice.compress != "none",
        choice.seconds,
    )  # fmt: skip


def _words(choice: Choice) -> str:
    rate = f"about {choice.images_per_second:,.0f} images/s (± {choice.doubt:.0%})".replace(
        "%", " %"
    )
    if not choice.workers:
        return f"no workers (--workers 0), minibatches of {choice.batch_size}, {rate}"
    workers = "1 worker" if choice.workers == 1 else f"{choice.workers} workers"
    where = f" on {choice.machines} machines" if choice.machines > 1 else ""
    how = f", {choice.compress} gradients" if choice.compress != "none" else ""
    return f"{workers}{where}, {choice.policy}, minibatches of {choice.batch_size}{how}, {rate}"


def _aim(question: Question, epochs: int) -> str:
    if question.target_accuracy is not None:
        return f"{question.target_accuracy:.1%} test accuracy".replace("%", " %")
    if question.target_loss is not None:
        return f"a training loss of {question.target_loss:g}"
    return f"{epochs} epochs" if epochs != 1 else "1 epoch"


def _time(seconds: float | None) -> str:
    assert seconds is not None
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _what_pays(
    machine: Machine, question: Question, choices: Sequence[Choice], best: Choice
) -> list[str]:
    """What a second worker, more workers than cores, and a second machine would bring."""
    words = []
    here = [one for one in choices if one.machines == 1]
    alone = _best(one for one in here if one.workers == 0)
    pair = _best(one for one in here if one.workers == 2)
    if alone is not None and pair is not None:
        words.append(_compared(machine, "A second worker", pair, alone))
    within = _best(one for one in here if 0 < one.workers <= machine.cores)
    beyond = _best(one for one in here if one.workers > machine.cores)
    if within is not None and beyond is not None:
        words.append(_compared(machine, f"More workers than {machine.cores} cores", beyond, within))
    there = _best(one for one in choices if one.machines > 1)
    one_machine = _best(here)
    if there is not None and one_machine is not None:
        name = "A second machine" if there.machines == 2 else f"{there.machines} machines"
        words.append(_compared(machine, name, there, one_machine))
    small = [one for one in here if one.workers > 1 and one.batch_size <= machine.slot_size]
    if small and best.workers > 1:
        words.append(
            f"A minibatch of {machine.slot_size} or less is one slot, so one worker of bsp "
            "computes it and the others wait."
        )
    return words


def _best(choices: Any) -> Choice | None:
    return min(choices, key=lambda one: one.seconds, default=None)


def _compared(machine: Machine, name: str, more: Choice, less: Choice) -> str:
    """Whether more pays, and how much."""
    gain = more.images_per_second / less.images_per_second
    times = f"{gain:.2g} times the images/s"
    assert more.seconds is not None and less.seconds is not None
    if more.seconds <= less.seconds * (1 - _SAME):
        return f"{name} pays: {times}, {_time(less.seconds)} become {_time(more.seconds)}."
    plural = name[0].isdigit() or name.startswith("More")
    verb = "do not pay" if plural else "does not pay"
    why = f"{times}, and {_time(more.seconds)} instead of {_time(less.seconds)}"
    if gain > 1 + _SAME and more.workers and not less.workers:
        saved = 1 / less.images_per_second - 1 / more.images_per_second
        images = (machine.start_seconds - machine.start_alone_seconds) / saved
        epochs = images / machine.examples
        why += f", as Ray takes {_time(machine.start_seconds)} to start (it would from about " + (
            f"{epochs:,.0f} epochs)"
        )
    return f"{name} {verb}: {why}."


def advise(
    config: TrainConfig,
    question: Question = _ANYTHING,
    *,
    effort: Effort = _USUAL,
    machine_file: Path | None = None,
    save_to: Path | None = None,
    latency: float | None = None,
    bandwidth: float | None = None,
    address: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Measure this machine, predict, and recommend.

    Args:
        config: dataset, model, loss, epochs and all else of the training.
        question: what is asked.
        effort: how long to measure.
        machine_file: measurements to use instead.
        save_to: where to write the measurements.
        latency: seconds of a message between machines; None for what was measured, or 0.2 ms.
        bandwidth: bytes a second between machines; None for what was measured, or 10 Gbit/s.
        address: HOST:PORT of the head of a cluster to measure in place of this machine, or "auto".
        tell: called with messages about progress.

    Raises:
        UsageError: something that was given cannot be used.
        RuntimeFailure: nothing could be measured.
    """
    if machine_file is not None:
        machine = _checked(load_machine(machine_file), machine_file, config)
    elif address is not None:
        machine = measure_cluster(address, config, effort, tell)
    else:
        machine = measure_machine(config, effort, tell)
    machine = _linked(machine, question, latency, bandwidth)
    if save_to is not None:
        save_machine(machine, save_to)
    if question.batch_sizes is None:
        usual = config.batch_size
        several = (max(1, usual // 4), usual, 4 * usual) if question.has_target else (usual,)
        question = replace(question, batch_sizes=several)
    updates = _Updates(config, question, tell) if question.has_target else None
    choices = predictions(machine, question, config.epochs, updates)
    return recommend(machine, question, choices, config.epochs)


def _checked(machine: Machine, path: Path, config: TrainConfig) -> Machine:
    """The measurements of a file, if they are of this data, model and loss."""
    dataset = open_dataset(config.dataset)
    wanted = config.model, config.loss, config.slot_size
    if (machine.model, machine.loss, machine.slot_size) != wanted:
        raise UsageError(
            f"{path} was measured with {machine.model}, {machine.loss} and slots of "
            f"{machine.slot_size}",
            f"Give {spelled('model')} {machine.model}, or measure again",
        )
    parameters = make_job(config, dataset, best_products()).parameters
    if (machine.examples, machine.parameters) != (len(dataset.train), parameters):
        name = machine.dataset or "another dataset"
        raise UsageError(
            f"{path} was measured with {name}: {machine.examples:,} examples and "
            f"{machine.parameters:,} weights, not {len(dataset.train):,} and {parameters:,}",
            f"Give the {spelled('dataset')} of the measurements, or measure again",
        )
    return machine


def _linked(
    machine: Machine, question: Question, latency: float | None, bandwidth: float | None
) -> Machine:
    """With the link that is asked about, if there are several machines."""
    if max(question.machines or 1, len(machine.node_cores)) > 1:
        if latency is None:
            latency = machine.latency or _LATENCY
        if bandwidth is None:
            bandwidth = machine.bandwidth if math.isfinite(machine.bandwidth) else _BANDWIDTH
        machine = replace(machine, latency=latency, bandwidth=bandwidth)
    return machine


class _Updates:
    """Updates until the target is reached: a training on the virtual clock, kept by setting."""

    def __init__(
        self, config: TrainConfig, question: Question, tell: Callable[[str], None]
    ) -> None:
        self._config, self._question, self._tell = config, question, tell
        self._found: dict[tuple[Any, ...], int | None] = {}

    def __call__(self, setting: Setting) -> int | None:
        """None if it is not reached within the epochs."""
        policy = setting.policy
        workers = max(1, setting.workers)
        if policy.divides or workers == 1:  # the same W for any number of workers
            key: tuple[Any, ...] = (setting.batch_size, "bsp")
        else:
            key = (setting.batch_size, _policy_name(setting), workers, setting.slow)
        if key not in self._found:
            self._found[key] = self._simulated(setting, workers)
        return self._found[key]

    def _simulated(self, setting: Setting, workers: int) -> int | None:
        own: dict[str, Any] = {"consistency": setting.consistency if workers > 1 else "bsp"}
        if workers > 1:
            own |= {name: getattr(setting.policy, name) for name in setting.policy.parameters()}
        self._tell(f"simulating {_policy_name(setting)}, minibatches of {setting.batch_size}")
        slow = tuple((1, factor) for factor in setting.slow[:workers])
        fleet = Fleet(workers=workers if own["consistency"] != "bsp" else 1, slow=slow)
        if own["consistency"] == "bsp":
            fleet = Fleet(workers=1)
        config = replace(
            self._config,
            batch_size=setting.batch_size,
            workers=fleet.workers,
            channel="auto",
            **own,
        )
        measuring = Measuring(
            examples=_EXAMPLES, target_loss=self._question.target_loss,
            target_accuracy=self._question.target_accuracy,
        )  # fmt: skip
        try:
            result = simulate(config, fleet, measuring)
        except (DivergedError, RuntimeFailure):
            return None
        return result.updates if result.status == "target" else None
