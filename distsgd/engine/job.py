"""A training job: everything that a worker and a server need to know, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.chaos import PUSH_FAULTS, Chaos
from distsgd.core.model import (
    EXACT,
    LINEAR,
    SMALL_PRODUCTS,
    Architecture,
    Kernel,
    KernelSettings,
    Preprocessing,
    StackedKernel,
    make_architecture,
    stacked_kernel,
)
from distsgd.core.optim import (
    Codec,
    ErrorFeedback,
    Optimizer,
    Residuals,
    Schedule,
    Updater,
    make_codec,
    make_optimizer,
    share,
)
from distsgd.core.plan import Plan
from distsgd.core.server import ParameterServer, Position, RangeServer, SplitServer, UpdateSampler
from distsgd.core.server.consistency import Policy
from distsgd.core.server.consistency.bsp import BulkSynchronous
from distsgd.data.verified import FileChecksum
from distsgd.engine.lease_times import HANG_SECONDS

__all__ = ["Job", "Snapshot", "snapshot"]


_MOST_LOSSES = 4096
"""Of a record of a team."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of the server from which training continues.

    Attributes:
        version: updates applied.
        weights: flat padded parameters, shape (parameters,).
        state: state of the optimiser, arrays of the same shape by name.
        residuals: what the error feedback of each worker has not sent yet; None if that of a worker
            could not be had.
        position: which slots of the plan have been applied; None for those of as many steps as
            ``version`` says.
        reads: older version -> flat W, where an answer still to come has read it.
        usable: whether ``reads`` has all of these.
        floor: versions below this one will not be asked for (by several servers).
    """

    version: int
    weights: Floats
    state: dict[str, Floats]
    residuals: Residuals | None = field(default_factory=dict)
    position: Position | None = None
    reads: dict[int, Floats] = field(default_factory=dict)
    usable: bool = True
    floor: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What is to be trained, on what, and how. Made once, sent to every process.

    Attributes:
        folder: the dataset.
        classes: number of classes.
        preprocessing: from pixels to features.
        loss: "softmax" or "svm".
        regularization: lambda of the L2 penalty.
        optimizer: name of the update rule.
        momentum: its coefficient.
        dtype: "float32" or "float64".
        plan: the examples of every slot.
        schedule: the learning rate of every step.
        log_every: updates between two progress events.
        policy: when a worker may continue, and which pushes make an update.
        compress: "none", "fp16", "topk:FRACTION" or "onebit".
        error_feedback: whether what compression leaves out is sent later.
        servers: how many servers W is split over.
        trace: whether everyone keeps a timeline.
        cache: where rows come from: "float32" or "uint8" memory, or the mapped "shards".
        save_seconds: seconds of work between two snapshots within an epoch; 0 for none.
        found: what is known of the files of the dataset, so that workers need not hash them.
        chaos: faults that are to come, if any.
        tally: the file in which workers count what becomes of their pushes under chaos.
        hang_seconds: how long a lease may be out, at least, before its worker is said to hang.
        model: "linear" or "mlp:HIDDEN".
        verify: share of the updates that are recomputed independently.
        placement: of servers on a cluster, see `placement`.
        dataset: what the user called it: where `folder` is not, a node has it by this name.
        digest: of its manifest.
        cache_limit: bytes that remote datasets may take on a node, or None.
        team: whether workers that share memory may make updates among themselves.
        arithmetic: "float" or "exact"; exact W is float64.
        products: how slots are multiplied, see `SMALL_PRODUCTS`; the whole fleet does the same.
        mean_weight: of the examples of the dataset, which their weights are divided by.
        class_factors: of each class: with the weight of its row, the factor of an example; empty
            if the classes count alike.
        largest_factor: of an example, which exact arithmetic must know; None without factors.
        without: numbers of the training examples whose factor is 0.
    """

    folder: str
    classes: int
    preprocessing: Preprocessing
    loss: str
    regularization: float
    optimizer: str
    momentum: float
    dtype: str
    plan: Plan
    schedule: Schedule
    log_every: int
    policy: Policy = field(default_factory=BulkSynchronous)
    compress: str = "none"
    error_feedback: bool = True
    servers: int = 1
    trace: bool = False
    cache: str = "shards"
    save_seconds: float = 0.0
    found: tuple[FileChecksum, ...] = ()
    chaos: Chaos | None = None
    tally: str = ""
    hang_seconds: float = HANG_SECONDS
    model: str = LINEAR
    verify: float = 0.0
    placement: str = "near"
    dataset: str = ""
    digest: str = ""
    cache_limit: int | None = None
    team: bool = False
    arithmetic: str = "float"
    products: str = SMALL_PRODUCTS
    mean_weight: float = 1.0
    class_factors: tuple[float, ...] = ()
    largest_factor: float | None = None
    without: tuple[int, ...] = ()

    @property
    def architecture(self) -> Architecture:
        """The model, without its parameters."""
        return make_architecture(self.model, self.features, self.classes, self.arithmetic)

    @property
    def exact(self) -> bool:
        """Whether the bits are the same on every machine."""
        return self.arithmetic == EXACT

    @property
    def has_residuals(self) -> bool:
        """Whether an answer depends on those before it: gradients are encoded, with feedback."""
        return self.compress != "none" and self.error_feedback

    @property
    def in_team(self) -> bool:
        """Whether workers make updates among themselves where they share memory.

        Not with several servers, encoded gradients, faults of pushes, every update to be
        recomputed, or rounds so long that their losses fill the memory.
        """
        push_faults = self.chaos is not None and any(
            fault.name in PUSH_FAULTS for fault in self.chaos.faults
        )
        return (
            self.team
            and self.policy.in_team
            and self.servers == 1
            and self.compress == "none"
            and not push_faults
            and self.verify < 1
            and self.most_losses <= _MOST_LOSSES
        )

    @property
    def updates(self) -> int:
        """Updates of the whole run, unless pieces are put off to others."""
        plan, count = self.plan, 0
        left = plan.steps_per_epoch
        while left > 0:
            left -= self.policy.steps(left)
            count += 1
        return count * plan.epochs

    @property
    def most_losses(self) -> int:
        """Losses of a push at most, one for each slot of each step."""
        steps = self.plan.steps_per_epoch
        return self.plan.most_slots * max(map(self.policy.steps, range(1, steps + 1)))

    @property
    def features(self) -> int:
        """Pixels of an example."""
        return self.preprocessing.features

    @property
    def parameters(self) -> int:
        """Length of flat W: all parameters of the model."""
        return self.architecture.parameters

    @property
    def vector_bytes(self) -> int:
        """Bytes of flat W."""
        return self.parameters * np.dtype(self.dtype).itemsize

    def kernel(self) -> Kernel:
        """What computes slot gradients."""
        return self.architecture.kernel(self._kernel_settings)

    def stacked_kernel(self, losses: Sequence[str], slots: int) -> StackedKernel:
        """What computes slot gradients of several models like this one.

        Args:
            losses: of each.
            slots: most slots that are computed at once, a power of two.
        """
        settings = [self._kernel_settings._replace(loss=loss) for loss in losses]
        return stacked_kernel(self.architecture, settings, slots)

    @property
    def _kernel_settings(self) -> KernelSettings:
        plan = self.plan
        return KernelSettings(
            self.loss, self.preprocessing, plan.slot_size, self.dtype, plan.batch_size,
            self.products, self.largest_factor,
        )  # fmt: skip

    def codec(self) -> Codec | None:
        """What gradients are encoded with, if they are."""
        if self.compress == "none":
            return None
        matrices = [layer.padded for layer in self.architecture.layers]
        return make_codec(self.compress, matrices, exact=self.exact)

    def decode(self, payload: bytes, rows: int, part: slice) -> Floats:
        """What an encoded range of a gradient stands for; shape (rows, values), all in row 0."""
        codec = self.codec()
        out = np.zeros((rows, part.stop - part.start), dtype=self.dtype)
        if codec is not None:
            codec.decode(payload, out[0], part)
        return out

    def feedback(self, start: Snapshot, worker: int, workers: int) -> ErrorFeedback | None:
        """The error feedback of a worker, if gradients are encoded.

        Args:
            start: where training begins.
            worker: its number.
            workers: how many begin; they share the residuals of the fleet before.
        """
        codec = self.codec()
        if codec is None:
            return None
        residual = share(start.residuals or {}, worker, workers).values
        if residual is None:
            residual = np.zeros(self.parameters, dtype=self.dtype)
        # As many answers as may be open at once: only those of other policies than asp wait.
        pieces = len(self.policy.pieces(self.plan.most_slots, workers))
        depth = self.policy.window(workers) * pieces if self.policy.in_order else 1
        serial = start.position.serials.get(worker, 0) if start.position else 0
        return ErrorFeedback(
            codec, residual, feedback=self.error_feedback, depth=depth, serial=serial
        )

    def push_bytes(self, nodes: int) -> int:
        """Bytes of a push of this many nodes, without its header."""
        codec = self.codec()
        return nodes * self.vector_bytes if codec is None else codec.size

    @property
    def fingerprints(self) -> bool:
        """Whether updates tell the fingerprint of W: one server has all of it.

        What "onebit" sends has values in the padding of W, which checkpoints do not keep.
        """
        return self.servers == 1 and self.compress != "onebit"

    def decay(self) -> Floats:
        """The gradient of the L2 penalty is this times W."""
        return self.architecture.decay(self.regularization, self.dtype)

    def update_rule(self, like: Floats, name: str = "") -> Optimizer:
        """The update rule, with zero state.

        Args:
            like: parameters of the shape and dtype to be updated.
            name: of another rule than the optimizer of this job.
        """
        bits = self.architecture.weight_bits
        return make_optimizer(name or self.optimizer, like, self.momentum, bits)

    def replica(self, weights: Floats) -> Updater:
        """A copy of W that makes steps of plain SGD on its own."""
        copy = weights.copy()
        return Updater(
            copy, decay=self.decay(), optimizer=self.update_rule(copy, "sgd"),
            schedule=self.schedule,
        )  # fmt: skip

    def ranges(self) -> list[slice]:
        """The contiguous ranges of flat W, one a server, of nearly equal length."""
        cuts = [self.parameters * i // self.servers for i in range(self.servers + 1)]
        return [slice(low, high) for low, high in pairwise(cuts)]

    def server(self, start: Snapshot) -> ParameterServer | SplitServer:
        """The parameter server, or several in this process, going on from a snapshot."""
        if self.servers == 1:
            return self.coordinator(start)
        followers = [self.follower(start, number) for number in range(1, self.servers)]
        return SplitServer(self.coordinator(start), followers, self.ranges())

    def coordinator(self, start: Snapshot, *, own_places: bool = False) -> ParameterServer:
        """The server of the first range, which decides for all; see `ParameterServer`."""
        updater = self._updater(start, self.ranges()[0])
        return ParameterServer(
            updater.weights,
            decay=updater.decay,
            optimizer=updater.optimizer,
            schedule=self.schedule,
            plan=self.plan,
            policy=self.policy,
            version=start.version,
            position=start.position,
            sampler=UpdateSampler(self.plan.seed, self.verify) if self.verify else None,
            own_places=own_places,
            fingerprints=self.fingerprints,
        )

    def follower(self, start: Snapshot, number: int) -> RangeServer:
        """The server of another range, counted from 1."""
        return RangeServer(self._updater(start, self.ranges()[number]), self.plan)

    def _updater(self, start: Snapshot, part: slice) -> Updater:
        weights = start.weights[part].copy()
        optimizer = self.update_rule(weights)
        for name, array in start.state.items():
            optimizer.state[name][...] = array[part]
        return Updater(
            weights,
            decay=self.decay()[part],
            optimizer=optimizer,
            schedule=self.schedule,
            version=start.version,
        )


def snapshot(server: ParameterServer | SplitServer) -> Snapshot:
    """A copy of the server's W and optimiser state, as they are now."""
    state = {name: array.copy() for name, array in server.optimizer.state.items()}
    usable = server.reads() <= {server.version}
    return Snapshot(server.version, server.weights.copy(), state, usable=usable)
