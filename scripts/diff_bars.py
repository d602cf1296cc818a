"""Plants single-bit faults in trainings, and checks that `distsgd diff` names update and slot.

    python scripts/diff_bars.py [--dataset sample] [--plants 20] [--only 1-10] [--folder FOLDER]

Of 20 plants in trainings of 1,960 updates (10 epochs of CIFAR-10, minibatches of 256, one process):
4 are one pixel of one training image in a copy of the dataset, 3 one pixel in the memory of the
process that trains, 7 one bit of one slot's gradient, 6 one bit of W (3 as an update is written, 3
as the next one reads it). The truth is known by brute force: this script keeps a digest of every W
of both trainings. `distsgd diff` is run as a user runs it, and must name the exact update in which
W first differs, and the slot; each run is timed.

The 7 bits are of the sign and the exponent. A bit of the mantissa in one slot often has the same
sum, bit for bit, as one in another slot, and then nothing that a run records can tell them apart;
`--mantissa N` plants such ones, too, which must be among those that are named. Each plant depends
on the seed and its own number alone, so that `--only` cuts the work into parts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import distsgd
from distsgd.core.model import slot_gradient
from distsgd.core.optim import Updater
from distsgd.core.plan import EpochOrder
from distsgd.core.server import ParameterServer
from distsgd.data.dataset import open_dataset
from distsgd.data.shards import DatasetWriter
from distsgd.data.split import Split
from distsgd.engine.worker import Worker
from distsgd.runs.opened_run import open_run

COPY, MEMORY, GRADIENT, MANTISSA = "pixel, copy", "pixel, memory", "gradient", "mantissa"
WRITTEN, READ = "W, written", "W, read"
LIMIT = 5.0
"""Seconds that `distsgd diff` may take."""


@dataclass
class Plant:
    """A planted fault, and what `distsgd diff` said of it.

    Attributes:
        kind: what is changed.
        update: the update that it is in.
        slot: of that update; None for W.
        what: in words.
        truth: the first update after which W differs, by all W of both trainings.
        update_found: what `distsgd diff` named.
        slot_found: likewise.
        candidates: single bits that it says cannot be told apart.
        cause: likewise.
        seconds: that it took.
    """

    kind: str
    update: int
    slot: int | None
    what: str
    truth: int | None = None
    update_found: int | None = None
    slot_found: bool = False
    candidates: int = 0
    cause: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether update and slot were named."""
        exact = self.update_found is not None and self.update_found == self.truth
        return exact and (self.slot is None or self.slot_found)


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method for a while."""
    kept = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def train(settings: dict[str, Any], folder: Path) -> list[bytes]:
    """Train in this process; returns a digest of W after each update, by brute force."""
    every: list[bytes] = []
    apply = ParameterServer._apply

    def watched(server: ParameterServer, minibatch: Any) -> Any:
        decision = apply(server, minibatch)
        every.append(server.weights.tobytes())
        return decision

    with replaced(ParameterServer, "_apply", watched):
        distsgd.train(**settings, run_dir=folder)
    return [hash_of(weights) for weights in every]


def hash_of(content: bytes) -> bytes:
    """A digest of W."""
    import hashlib

    return hashlib.blake2b(content, digest_size=16).digest()


def flip(values: np.ndarray, entry: int, bit: int) -> None:
    """Change one bit of one entry, in place."""
    bits = values.view(np.uint32)
    bits[entry] ^= np.uint32(1 << bit)


def plant_gradient(random_: random.Random, plan: Any, kind: str) -> tuple[Plant, Any]:
    """One bit of one slot's gradient, as its worker has computed it."""
    step = random_.randrange(plan.total_steps)
    slot = random_.randrange(plan.slots(step))
    bits = range(12, 23) if kind == MANTISSA else [*range(23, 30), 31]
    bit, entry = random_.choice(bits), random_.randrange(10 * 3072)
    place = entry // 3072 * 3088 + entry % 3072
    plant = Plant(kind, step + 1, slot, f"bit {bit} of an entry")
    compute, done = slot_gradient.LinearKernel.gradients, [0]
    slots = [plan.slots(number) for number in range(plan.steps_per_epoch)]

    def faulty(kernel: Any, weights: Any, labels: Any, out: Any, *rest: Any) -> Any:
        found = compute(kernel, weights, labels, out, *rest)
        first = done[0]
        done[0] += len(labels)
        wanted = (step // len(slots)) * sum(slots) + sum(slots[: step % len(slots)]) + slot
        if first <= wanted < done[0]:
            flip(out[wanted - first], place, bit)
        return found

    return plant, replaced(slot_gradient.LinearKernel, "gradients", faulty)


def plant_weights(random_: random.Random, plan: Any, kind: str) -> tuple[Plant, Any]:
    """One bit of W in the memory of the server: as an update writes it, or as one reads it."""
    step, bit = random_.randrange(plan.total_steps), random_.randrange(2, 30)
    entry = random_.randrange(10 * 3072)
    place = entry // 3072 * 3088 + entry % 3072
    plant = Plant(kind, step + 1, None, f"bit {bit} of an entry")
    apply, answer = Updater.apply, Worker.answer

    def reading(worker: Worker, lease: Any, flat: Any) -> Any:
        if lease.step == step:
            flip(flat, place, bit)
        return answer(worker, lease, flat)

    if kind == READ:
        return plant, replaced(Worker, "answer", reading)

    def faulty(updater: Any, total: Any, examples: int, at: int, before: Any = None) -> float:
        rate = apply(updater, total, examples, at, before)
        if at == step:
            flip(updater.weights, place, bit)
        return rate

    return plant, replaced(Updater, "apply", faulty)


def chosen_pixel(random_: random.Random, plan: Any) -> tuple[int, int, int, int, int]:
    """An image, a pixel and a bit at random, and the update and slot that the image is in first."""
    step = random_.randrange(plan.steps_per_epoch)
    place = random_.randrange(plan.batch_examples(step))
    low = plan.minibatch(step)[0]
    image = int(EpochOrder(plan).examples(0, low + place, low + place + 1)[0])
    return image, random_.randrange(3072), random_.randrange(8), step, place // plan.slot_size


def plant_memory(random_: random.Random, plan: Any, kind: str) -> tuple[Plant, Any]:
    """One pixel, from an epoch on, wherever the process reads it."""
    image, pixel, bit, step, slot = chosen_pixel(random_, plan)
    gather = Split.gather

    def faulty(split: Split, indices: Any, out: Any) -> None:
        gather(split, indices, out)
        hit = np.flatnonzero(indices == image)
        if len(split) > plan.examples // 2:
            out[hit, pixel] ^= np.uint8(1 << bit)

    plant = Plant(kind, step + 1, slot, f"bit {bit} of pixel {pixel} of image {image}")
    return plant, replaced(Split, "gather", faulty)


def copy_with_pixel(name: str, random_: random.Random, plan: Any, folder: Path) -> Plant:
    """A copy of a dataset, with its own digest, in which one pixel differs by one bit."""
    image, pixel, bit, step, slot = chosen_pixel(random_, plan)
    dataset = open_dataset(name)
    manifest = dataset.manifest
    folder.mkdir(parents=True)
    writer = DatasetWriter(folder, manifest.shape, manifest.classes)
    for split in ("train", "test"):
        source = getattr(dataset, split)
        low = 0
        for number, (rows, labels) in enumerate(source.batches()):
            rows = np.array(rows)
            if split == "train" and low <= image < low + len(rows):
                rows[image - low, pixel] ^= np.uint8(1 << bit)
            low += len(rows)
            writer.write(split, f"{split}-{number}.arrow", rows, labels)
    writer.finish(manifest.name)
    return Plant(COPY, step + 1, slot, f"bit {bit} of pixel {pixel} of image {image}")


def first_difference(one: list[bytes], other: list[bytes]) -> int | None:
    """The first update after which W differs."""
    return next((n for n, pair in enumerate(zip(one, other, strict=True), 1) if pair[0] != pair[1]),
                None)  # fmt: skip


def ask(plant: Plant, clean: Path, faulty: Path, alone: bool) -> None:
    """Run `distsgd diff` as a user does."""
    runs = [str(faulty)] if alone else [str(clean), str(faulty)]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "distsgd", "diff", *runs, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    plant.seconds = time.perf_counter() - begin
    if done.returncode:
        plant.cause = done.stderr.strip()
        return
    found = json.loads(done.stdout)
    plant.update_found, plant.cause = found["update"], found["cause"]
    if plant.kind == COPY:
        (row,) = found["data"]["changed"]
        plant.slot_found = row["used"][0] == plant.update and row["slot"] == plant.slot
        return
    named = [fault["slots"] == [[plant.update - 1, plant.slot]] for fault in found["faults"]]
    plant.candidates = len(named)
    plant.slot_found = any(named) and (all(named) or plant.kind == MANTISSA)


def main() -> None:
    """Plant, train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--plants", type=int, default=20)
    parser.add_argument("--mantissa", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="numbers of plants, such as 1-10")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    settings = {"dataset": given.dataset, "workers": 0, "epochs": given.epochs, "seed": 0}
    try:
        plants = measured(given, settings, folder)
    finally:
        shutil.rmtree(folder)
    names = f"{'update':>6} {'truth':>6} {'named':>6} {'slot':>5} {'bits':>4} {'s':>5}  what"
    print(f"{'planted':14} {names}")
    for plant in plants:
        slot = "-" if plant.slot is None else str(plant.slot) if plant.slot_found else "NO"
        print(
            f"{plant.kind:14} {plant.update:6} {plant.truth or 0:6} {plant.update_found or 0:6} "
            f"{slot:>5} {plant.candidates:4} {plant.seconds:5.2f}  {plant.what}: "
            f"{plant.cause[:150]}"
        )
    right = sum(plant.right for plant in plants)
    quick = sum(plant.seconds < LIMIT for plant in plants)
    print(f"{right} of {len(plants)} named; {quick} of {len(plants)} in less than {LIMIT} s")
    raise SystemExit(0 if right == quick == len(plants) else 1)


def measured(given: argparse.Namespace, settings: dict[str, Any], folder: Path) -> list[Plant]:
    """Plant one fault after another."""
    clean = folder / "clean"
    expected = train(settings, clean)
    opened = open_run(clean)
    plan = opened.job(opened.origin).plan
    print(f"{given.dataset}: {len(expected)} updates", file=sys.stderr)
    kinds = [COPY] * 4 + [MEMORY] * 3 + [GRADIENT] * 7 + [WRITTEN] * 3 + [READ] * 3
    if given.plants < len(kinds):
        kinds = [COPY, MEMORY, GRADIENT, WRITTEN, READ][: given.plants]
    kinds += [MANTISSA] * given.mantissa
    first, _, last = given.only.partition("-")
    only = range(int(first or 1) - 1, int(last or first or len(kinds)))
    plants = []
    for number, kind in enumerate(kinds):
        if number not in only:
            continue
        own, run = settings, folder / f"faulty-{number}"
        random_ = random.Random(f"{given.seed}-{number}")
        while True:
            if kind == COPY:
                copied = folder / f"data-{number}"
                plant = copy_with_pixel(given.dataset, random_, plan, copied)
                found = train({**own, "dataset": str(copied)}, run)
            else:
                make = {MEMORY: plant_memory, WRITTEN: plant_weights, READ: plant_weights}
                plant, patched = make.get(kind, plant_gradient)(random_, plan, kind)
                with patched:
                    found = train(own, run)
            plant.truth = first_difference(expected, found)
            if plant.truth is not None:
                break
            shutil.rmtree(run)  # rounded away: no W differs
        # Every second one of a fault is the run alone, beside its replay.
        ask(plant, clean, run, alone=kind != COPY and number % 2 == 0)
        right = "right" if plant.right else "WRONG"
        print(f"{number + 1}: {plant.kind} {right} {plant.seconds:.2f} s", file=sys.stderr)
        plants.append(replace(plant))
        shutil.rmtree(run)
        if kind == COPY:
            shutil.rmtree(copied)
    return plants


if __name__ == "__main__":
    main()
