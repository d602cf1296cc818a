"""Which single bit, changed by a fault, explains the W that a run recorded after an update.

An update is elementwise, so one bit of one entry of a gradient, of the optimiser's state or of W
changes one entry of the W that follows. Changing that bit in all entries at once gives, in one
pass, what each would lead to; the fingerprint of the run then says which of them it was.

A bit of a pixel or of a W that is read changes many entries. There the checkpoint that follows
helps: the difference from the W of a recomputation is largest where the fault was, so the likeliest
candidates are computed first, and again the fingerprint decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats
from distsgd.core.fingerprint import fingerprint, multipliers
from distsgd.core.reduction_tree import Node
from distsgd.forensics.places import Naming, bit_name, bits_of
from distsgd.forensics.update_parts import Leaf, Rows, TakenApart

__all__ = ["Fault", "OneBit"]

_MODULUS = 1 << 64
_AGREES = 3.0
"""Doublings by which a difference may change until the next checkpoint."""

_COLUMNS, _ENTRIES = 3, 24
"""Columns of W, and entries of it, that are looked into, where it differs most."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A single change that explains what a run recorded after an update.

    Attributes:
        kind: "weights", "gradient", "sum", "state", "pixel", "label" or "read".
        what: in words.
        slots: leaves of the update that it is in, as (step, slot); empty for W and state.
        workers: that computed them.
        entry: of W, in words; "" for a label.
        bit: number of the bit, from 0.
        example: number of the training example; None unless it is a pixel or a label.
    """

    kind: str
    what: str
    slots: tuple[tuple[int, int], ...] = ()
    workers: tuple[int, ...] = ()
    entry: str = ""
    bit: int = 0
    example: int | None = None


class OneBit:
    """The search for a fault in an update.

    Args:
        parts: the update, recomputed and taken apart.
        observed: fingerprint that the run recorded after it.
        naming: of the entries of W.
        later: W of a later checkpoint of the run, minus the same recomputed without a fault; None
            if there is none.
        seconds: after which the search among pixels ends.
    """

    def __init__(
        self,
        parts: TakenApart,
        observed: int,
        naming: Naming,
        later: NDArray[np.float64] | None,
        seconds: float = 2.0,
    ) -> None:
        self._parts, self._observed, self._naming, self._later = parts, observed, naming, later
        self._seconds = seconds
        self._bits = 8 * parts.after.dtype.itemsize
        self._scale = _per_entry(parts.after)
        self._after = bits_of(parts.after).astype(np.uint64)
        gap = (observed - fingerprint(parts.after)) % _MODULUS
        self._gap = np.uint64(gap)

    def search(self) -> list[tuple[Fault, Floats]]:
        """The faults that explain the fingerprint, each with the W that follows from it.

        All of them lead to the same fingerprint. The first kind that has any is returned: a bit of
        W, of a gradient or the state, of a W that was read, of a pixel, of a label.
        """
        for kind in (self._weights, self._elementwise, self._read, self._pixels, self._labels):
            with np.errstate(all="ignore"):  # a changed bit can be an infinity
                found = list(kind())
            if found:
                return self._likely(found)
        return []

    def _likely(self, found: list[tuple[Fault, Floats]]) -> list[tuple[Fault, Floats]]:
        """Those changes that the later checkpoint agrees with, if there is one and any are.

        A fingerprint keeps too little of the highest bits to tell which entry they are of.
        """
        if self._later is None or len(found) == 1:
            return found
        agreeing = []
        for fault, after in found:
            gap = after.astype(np.float64) - self._parts.after
            entry = int(np.abs(gap).argmax())
            if _ratio(float(self._later[entry]), float(gap[entry])) <= _AGREES:
                agreeing.append((fault, after))
        return agreeing or found

    def _weights(self) -> Iterator[tuple[Fault, Floats]]:
        """A bit of W itself, after the update."""
        for bit in range(self._bits):
            changed = _flipped(self._parts.after, bit)
            for entry in self._matches(changed):
                place = self._naming.entry(entry)
                name = bit_name(bit, changed.dtype)
                what = f"{name} of one entry of W ({place}) changed after the update was computed"
                yield (
                    Fault(kind="weights", what=what, entry=place, bit=bit),
                    _with(self._parts.after, changed, entry),
                )

    def _elementwise(self) -> Iterator[tuple[Fault, Floats]]:
        """A bit of a slot's gradient, of a sum of them, of the state, or of W as it is updated."""
        parts = self._parts
        for node in parts.nodes():
            for bit in range(self._bits):
                changed = parts.updated(
                    parts.total_with(node, _flipped(parts.sums[node], bit))
                )  # fmt: skip
                for entry in self._matches(changed):
                    yield self._of_gradient(node, bit, entry), _with(parts.after, changed, entry)
        for name, array in parts.state.items():
            for bit in range(self._bits):
                state = {**parts.state, name: _flipped(array, bit)}
                changed = parts.updated(parts.total, state=state)
                for entry in self._matches(changed):
                    place = self._naming.entry(entry)
                    words = bit_name(bit, changed.dtype)
                    what = f"{words} of one entry of the optimiser's {name} ({place}) changed"
                    yield (
                        Fault(kind="state", what=what, entry=place, bit=bit),
                        _with(parts.after, changed, entry),
                    )
        for bit in range(self._bits):
            changed = parts.updated(parts.total, before=_flipped(parts.before, bit))
            for entry in self._matches(changed):
                place = self._naming.entry(entry)
                words = bit_name(bit, changed.dtype)
                what = f"{words} of one entry of W ({place}) changed just before the update"
                yield (
                    Fault(kind="weights", what=what, entry=place, bit=bit),
                    _with(parts.after, changed, entry),
                )

    def _of_gradient(self, node: Node, bit: int, entry: int) -> Fault:
        leaves = self._parts.leaves_below(node)
        place, words = self._naming.entry(entry), bit_name(bit, self._parts.after.dtype)
        slots = tuple((leaf.lease.step, leaf.lease.first) for leaf in leaves)
        workers = tuple(dict.fromkeys(leaf.worker for leaf in leaves))
        kind = "gradient" if len(leaves) == 1 else "sum"
        unit = "slot" if self._parts.by_slots else "replica"
        whose = (
            f"the gradient of {unit} {slots[0][1]}"
            if len(leaves) == 1
            else f"the sum of the gradients of {unit}s {slots[0][1]} to {slots[-1][1]}"
        )
        who = f"worker {' and '.join(map(str, workers))}"
        return Fault(
            kind=kind, what=f"{words} of one entry ({place}) of {whose}, of {who}, changed",
            slots=slots, workers=workers, entry=place, bit=bit,
        )  # fmt: skip

    def _pixels(self) -> Iterator[tuple[Fault, Floats]]:
        """A bit of a pixel of an image, in the memory of the training."""
        later, parts = self._later, self._parts
        if later is None or not parts.by_slots or parts.rows[0].values.dtype != np.uint8:
            return
        layer = self._naming.architecture.layers[0]
        first = later[: layer.outputs * layer.columns].reshape(layer.outputs, -1)
        strength = np.abs(first[:, : layer.inputs]).max(axis=0)
        columns = np.argsort(-strength)[:_COLUMNS].tolist()
        candidates = [
            (self._unlikeness(first[:, column], place, row, column, bit), place, row, column, bit)
            for column in columns
            for place, rows in enumerate(parts.rows)
            for row in range(len(rows.examples))
            for bit in range(8)
        ]
        candidates.sort()

        def change(rows: Rows, row: int, column: int, bit: int) -> Rows:
            values = rows.values.copy()
            values[row, column] ^= 1 << bit
            return replace(rows, values=values)

        def fault(leaf: Leaf, rows: Rows, row: int, column: int, bit: int) -> Fault:
            example, pixel = int(rows.examples[row]), self._naming.feature(column)
            return Fault(
                kind="pixel", example=example, bit=bit, entry=pixel,
                what=f"bit {bit} of {pixel} of training image {example}, in slot "
                f"{leaf.lease.first} of worker {leaf.worker}, changed in memory",
                slots=((leaf.lease.step, leaf.lease.first),), workers=(leaf.worker,),
            )  # fmt: skip

        yield from self._tried([c[1:] for c in candidates], change, fault)

    def _unlikeness(
        self, observed: NDArray[np.float64], place: int, row: int, column: int, bit: int
    ) -> float:
        """How badly a changed pixel explains the column of W where the run differs.

        The pixel adds -eta g d / (n s) to it: g the gradient of the image's scores, d the change.
        """
        direction = self._directions[place][row]
        value = int(self._parts.rows[place].values[row, column])
        change = float((value ^ (1 << bit)) - value)
        expected = -change * direction
        norm = float(np.linalg.norm(observed) * np.linalg.norm(expected))
        if norm == 0:
            return 2.0
        size = np.log2(np.linalg.norm(observed) / (np.linalg.norm(expected) * self._step_size))
        return 1.0 - float(observed @ expected) / norm + 0.1 * abs(float(size))

    @property
    def _directions(self) -> list[NDArray[np.float64]]:
        """Of each leaf, the gradient of each example with respect to the first layer's outputs."""
        if not hasattr(self, "_found_directions"):
            self._found_directions = list(map(self._direction, range(len(self._parts.leaves))))
        return self._found_directions

    def _direction(self, place: int) -> NDArray[np.float64]:
        """The same of one leaf, from the bias of a gradient of each example alone."""
        parts, rows = self._parts, self._parts.rows[place]
        layer = self._naming.architecture.layers[0]
        read = parts.reads[parts.leaves[place].lease.version]
        out = np.empty_like(read)
        found = np.empty((len(rows.examples), layer.outputs))
        for row in range(len(rows.examples)):
            one = slice(row, row + 1)
            factors = None if rows.factors is None else rows.factors[one]
            alone = Rows(rows.examples[one], rows.values[one], rows.labels[one], factors)
            parts.gradient(read, alone, alone.values, alone.labels, out)
            first = out[: layer.outputs * layer.columns].reshape(layer.outputs, -1)
            found[row] = first[:, layer.inputs]
        return found

    @property
    def _step_size(self) -> float:
        parts = self._parts
        rate = float(parts.job.schedule.at(parts.record.step))
        return rate / parts.examples / parts.job.preprocessing.scale

    def _labels(self) -> Iterator[tuple[Fault, Floats]]:
        """A bit of a label, in the memory of the training."""
        if not self._parts.by_slots:
            return
        classes = self._naming.classes
        width = max(1, (len(classes) - 1).bit_length())
        candidates = [
            (place, row, 0, bit)
            for place, rows in enumerate(self._parts.rows)
            for row in range(len(rows.examples))
            for bit in range(width)
            if int(rows.labels[row]) ^ (1 << bit) < len(classes)
        ]

        def change(rows: Rows, row: int, column: int, bit: int) -> Rows:
            labels = rows.labels.copy()
            labels[row] ^= 1 << bit
            return replace(rows, labels=labels)

        def fault(leaf: Leaf, rows: Rows, row: int, column: int, bit: int) -> Fault:
            example, truth = int(rows.examples[row]), int(rows.labels[row])
            return Fault(
                kind="label", example=example, bit=bit,
                what=f"the label of training example {example}, in slot {leaf.lease.first} of "
                f"worker {leaf.worker}, changed in memory from {classes[truth]} to "
                f"{classes[truth ^ (1 << bit)]}",
                slots=((leaf.lease.step, leaf.lease.first),), workers=(leaf.worker,),
            )  # fmt: skip

        yield from self._tried(candidates, change, fault)

    def _tried(
        self,
        candidates: list[tuple[int, int, int, int]],
        change: Callable[[Rows, int, int, int], Rows],
        fault: Callable[[Leaf, Rows, int, int, int], Fault],
    ) -> Iterator[tuple[Fault, Floats]]:
        """The first candidate (place, row, column, bit) whose slot gives the fingerprint."""
        parts, end = self._parts, time.monotonic() + self._seconds
        out = np.empty_like(parts.after)
        for place, row, column, bit in candidates:
            if time.monotonic() > end:
                return
            rows, leaf = parts.rows[place], parts.leaves[place]
            other = change(rows, row, column, bit)
            read = parts.reads[leaf.lease.version]
            parts.gradient(read, rows, other.values, other.labels, out)
            after = parts.updated(parts.total_with(parts.leaf_node(place), out))
            if fingerprint(after) == self._observed:
                yield fault(leaf, rows, row, column, bit), after
                return

    def _read(self) -> Iterator[tuple[Fault, Floats]]:
        """A bit of W between two updates, which all that follows read."""
        parts, later = self._parts, self._later
        if later is None or not parts.by_slots:
            return
        version = parts.record.version - 1
        if any(leaf.lease.version != version for leaf in parts.leaves):
            return
        end = time.monotonic() + self._seconds
        likely = np.argsort(-np.abs(later))[:_ENTRIES]
        candidates = sorted(
            (_ratio(later[entry], _with_bit(parts.before[entry], bit)), int(entry), bit)
            for entry in likely.tolist()
            for bit in range(self._bits)
        )
        for unlike, entry, bit in candidates:
            if unlike > _AGREES or time.monotonic() > end:
                return
            weights = _with(parts.before, _flipped(parts.before, bit), entry)
            after = self._after_reading(weights)
            if fingerprint(after) == self._observed:
                place, words = self._naming.entry(entry), bit_name(bit, after.dtype)
                what = f"{words} of one entry of W ({place}) changed between the two updates"
                yield Fault(kind="read", what=what, entry=place, bit=bit), after
                return

    def _after_reading(self, weights: Floats) -> Floats:
        """W after the update, if all of it had read another W before it."""
        parts = self._parts
        gradients = np.empty_like(parts.gradients)
        for place, rows in enumerate(parts.rows):
            parts.gradient(weights, rows, rows.values, rows.labels, gradients[place])
        return parts.updated(parts.summed(gradients), before=weights)

    def _matches(self, changed: Floats) -> list[int]:
        """The entries that give the fingerprint, if one alone is taken from another W."""
        moved = (bits_of(changed).astype(np.uint64) - self._after) * self._scale
        return np.flatnonzero((moved == self._gap) & (moved != 0)).tolist()


def _per_entry(weights: Floats) -> NDArray[np.uint64]:
    """What the bits of each entry, as a number, are multiplied by in the fingerprint."""
    words = weights.nbytes // 8
    every = multipliers(words)
    if weights.dtype == np.float64:
        return every
    found = np.empty((words, 2), np.uint64)
    found[:, 0] = every
    found[:, 1] = every << np.uint64(32)
    return found.reshape(-1)


def _flipped(values: Floats, bit: int) -> Floats:
    """The same with one bit of every entry changed."""
    bits = bits_of(values)
    found: Floats = (bits ^ bits.dtype.type(1 << bit)).view(values.dtype)
    return found


def _with(weights: Floats, other: Floats, entry: int) -> Floats:
    """W with one entry of another."""
    found = weights.copy()
    found[entry] = other[entry]
    return found


def _with_bit(value: np.floating, bit: int) -> float:
    """How much a changed bit adds to a value."""
    one = np.array([value])
    with np.errstate(all="ignore"):
        return float(_flipped(one, bit)[0]) - float(value)


def _ratio(observed: float, expected: float) -> float:
    """How unlike two changes are; 0 if they are equal."""
    if not np.isfinite(expected) or expected == 0 or observed == 0:
        return np.inf
    if (observed > 0) != (expected > 0):
        return 1000.0
    return abs(float(np.log2(observed / expected)))
