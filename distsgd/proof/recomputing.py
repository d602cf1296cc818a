"""The gradient of an update, recomputed from pixels: in order, in float64, in plain formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsgd.config.class_weights import BALANCED, NONE, class_weights
from distsgd.config.settings import TrainConfig
from distsgd.config.without import numbers_of
from distsgd.core.arrays import Floats
from distsgd.core.messages import Lease
from distsgd.core.model import hidden_units
from distsgd.core.model.grids import WEIGHT_BITS, hidden_bits
from distsgd.core.model.reference import Recomputed, recompute, rounding
from distsgd.data.dataset import Dataset
from distsgd.data.plain_rows import PlainRows
from distsgd.engine.job import Job
from distsgd.errors import VerificationError

__all__ = ["Part", "Recomputer", "Sum"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """One slot of an update, recomputed."""

    worker: int
    step: int
    slot: int
    found: Recomputed


@dataclass
class Sum:
    """A sum of gradients, shaped like W, and bounds of its rounding error."""

    total: Array
    variance: Array
    flips: Array

    @property
    def bound(self) -> Array:
        """Elementwise."""
        bound: Array = np.sqrt(self.variance) + self.flips
        return bound

    def add(self, other: Sum) -> None:
        """Add another to it."""
        self.total += other.total
        self.variance += other.variance
        self.flips += other.flips


class Recomputer:
    """Recomputes what leases ask for.

    Args:
        config: the settings.
        dataset: what is trained on.
        job: the same for the runtime; only its plan and shapes are used.

    Attributes:
        unit: unit roundoff of gradients, that of training and of the recomputation together.
        update_unit: the same of an update of W.
        half_step: how far the rounding of W to a grid moves it, at most.

    Raises:
        VerificationError: the means of the manifest are not those of the images.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, job: Job) -> None:
        self._config, self._plan = config, job.plan
        self._model = job.architecture
        self.unit = self.update_unit = rounding(config.dtype) + rounding("float64")
        self.half_step = 0.0
        if job.exact:
            self.half_step = 2.0 ** -(WEIGHT_BITS + 1)
            self.unit = rounding("float32")  # grids are about as fine
            if hidden := hidden_units(job.model):
                # Steps of hidden values; bounds of a sum of D terms grow like sqrt(D).
                step = 2.0 ** -hidden_bits(hidden)
                self.unit = max(self.unit, step / (8 * math.sqrt(job.features)))
        self._rows = PlainRows(dataset.folder, dataset.manifest)
        sums = self._rows.pixel_sums
        self._mean = sums / dataset.manifest.rows("train")
        if job.exact:
            self._mean = np.rint(self._mean)
        expected = np.array(dataset.manifest.pixel_sums or [0] * job.features)
        wrong = np.flatnonzero(sums != expected)
        if len(wrong):
            raise VerificationError(
                f"the images in {dataset.folder} are not those that its manifest was made of: "
                f"before step 0, in every slot, pixel {wrong[0]} should sum up to "
                f"{dataset.manifest.pixel_sums[wrong[0]]}, and sums up to {sums[wrong[0]]}",
                "A byte of a shard has been changed together with its SHA-256: fetch it again",
            )
        self._scale = config.pixel_scale if dataset.manifest.pixel_sums else 1.0
        self._mean_weight = dataset.manifest.mean_weight or 1.0
        self._per_class = self._class_factors(dataset.manifest.classes)
        self._without = frozenset(numbers_of(config.without))
        self._orders: dict[int, NDArray[np.int64]] = {}

    def kept(self, flat: Floats) -> Array:
        """Flat padded parameters as W in float64: (classes, features + 1); or one vector of all."""
        return np.array(self._model.unpad(flat), dtype=np.float64)

    def layers(self, kept: Array) -> list[Array]:
        """Each layer, shape (outputs, inputs + 1), as a view into parameters of a checkpoint."""
        return [np.asarray(layer, dtype=np.float64) for layer in self._model.split_kept(kept)]

    def place(self, kept: Array, index: int) -> str:
        """Where the value with this flat index is: its layer, output and input."""
        for number, layer in enumerate(self.layers(kept), 1):
            if index < layer.size:
                row, column = divmod(index, layer.shape[1])
                last = number == len(self._model.layers)
                return f"{'class' if last else 'hidden unit'} {row}, column {column}"
            index -= layer.size
        raise IndexError(index)

    def lease(self, worker: int, lease: Lease, read: Floats) -> tuple[Sum, list[Part]]:
        """The answer that a worker should have given to a lease."""
        if lease.replicas:
            return self._replica(worker, lease, self.kept(read))
        return self._slots(worker, *lease.piece, self.kept(read))

    def _slots(
        self, worker: int, step: int, first: int, last: int, weights: Array, doubt: float = 1.0
    ) -> tuple[Sum, list[Part]]:
        parts = []
        total = self._nothing()
        for slot in range(first, last):
            found = self._slot(step, slot, worker, weights, doubt)
            total.add(Sum(found.gradient, found.variance, found.flips))
            parts.append(Part(worker, step, slot, found))
        return total, parts

    def _slot(self, step: int, slot: int, worker: int, weights: Array, doubt: float) -> Recomputed:
        epoch = self._plan.epoch_of(step)
        if epoch not in self._orders:
            self._orders = {epoch: self._plan.order(epoch)}
        low, high = self._plan.slot(step, slot)
        indices = self._orders[epoch][low:high]
        if (changed := self._rows.changed(indices)) is not None:
            raise VerificationError(
                f"step {step}, slot {slot}, worker {worker}: example {changed[0]} in the shard "
                f"{changed[1]} is no longer what it was when training began",
                "Check it with `distsgd data verify`, and fetch or import it again",
            )
        pixels, labels = self._rows.read(indices)
        scale, loss = self._scale, self._config.loss
        given = pixels, labels, self._mean, scale, loss, self.unit * doubt
        factors = self._rows.weights(indices)
        if self._per_class is not None:
            factors = self._per_class[labels] * (1.0 if factors is None else factors)
        elif factors is not None:
            factors = factors / self._mean_weight
        if self._without:
            counts = np.array([row not in self._without for row in indices.tolist()], float)
            factors = counts if factors is None else counts * factors
        return recompute(self.layers(weights), *given, factors)

    def _class_factors(self, classes: Sequence[str]) -> Array | None:
        """What the weights of rows are multiplied by, from the setting and the labels."""
        text = self._config.class_weight
        if text == NONE:
            return None
        every = np.arange(self._plan.examples + len(self._plan.held_out))
        trained = np.setdiff1d(every, self._plan.held_out)
        labels, weights = self._rows.labels()[trained], self._rows.weights(trained)
        chosen = class_weights(text)
        per_class = np.array([chosen.get(name, 1.0) for name in classes])
        if text == BALANCED:
            per_class = np.array([1 / max(1, np.sum(labels == one)) for one in range(len(classes))])
        products = per_class[labels] * (1.0 if weights is None else weights)
        found: Array = per_class / products.mean()
        return found

    def _replica(self, worker: int, lease: Lease, start: Array) -> tuple[Sum, list[Part]]:
        """examples * (W as read - W after plain SGD on its share of each minibatch)."""
        weights, every, examples = start.copy(), [], 0
        bound = np.zeros_like(start)
        for step, low, high in lease.slots(self._plan):
            # W has drifted by then, and kinks of hidden units with it.
            drift = 1.0 + (step - lease.step) * (len(self._model.layers) - 1)
            total, parts = self._slots(worker, step, low, high, weights, drift)
            count = sum(len(part.found.losses) for part in parts)
            rate = self.rate(step)
            bound += rate * total.bound / count + 4 * self.unit * np.abs(weights) + self.half_step
            weights -= rate * (total.total / count + self.penalty(weights))
            every += parts
            examples += count
        # An error in W moves the gradients of later steps, by no more than it is, as the learning
        # rate is one that converges: hence the 4.
        spread = 4 * examples * bound
        return Sum(examples * (start - weights), spread**2, np.zeros_like(start)), every

    def _nothing(self) -> Sum:
        shape = self._model.kept_shape
        return Sum(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def penalty(self, weights: Array) -> Array:
        """2 lambda W, without the biases."""
        out: Array = 2 * (self._config.regularization or 0.0) * weights
        for layer in self.layers(out):
            layer[:, -1] = 0
        return out

    def rate(self, step: int) -> float:
        """The learning rate of a step of the plan, from the settings."""
        config, plan = self._config, self._plan
        peak = config.learning_rate or 0.0
        if config.scale_lr:
            peak *= config.batch_size / 256
        warmup = round((config.warmup_epochs or 0) * plan.steps_per_epoch)
        if step < warmup:
            return peak * (step + 1) / warmup
        past = step - warmup
        if config.schedule == "constant":
            return peak
        if config.schedule == "step":
            every = max(1, round(config.step_epochs * plan.steps_per_epoch))
            return float(peak * config.step_factor ** (past // every))
        share = min(1.0, past / max(1, plan.total_steps - warmup))
        return float(peak * (0.5 + 0.5 * np.cos(np.pi * share)))
