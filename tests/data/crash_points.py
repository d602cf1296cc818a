"""A process of its own: kills a fetch at each of its file operations, one after the other.

Every fetch is a child that sends itself SIGKILL just before its n-th change to the cache; n
grows until a fetch lives through. After each death the cache is looked at, and the next fetch
must succeed and sweep. Prints what was seen, for the test to judge.

Usage: crash_points.py new|replaced
"""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np

from distsgd.data.cifar10 import fetch, repair
from distsgd.data.cifar10.archive import BATCHES, Records
from distsgd.data.dataset import Dataset
from distsgd.data.locations import cache_folder, dataset_folder

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}


def few_records(seed: int) -> Records:
    chance = np.random.default_rng(seed)
    return {name: chance.integers(0, 10, (4, 3073), dtype=np.uint8) for name in BATCHES}


def is_change(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an audit event is a change to the cache."""
    if event == "open":
        return str(cache_folder()) in str(arguments[0]) and arguments[1] not in ("r", "rb", None)
    return event in CHANGES


def die_at(number: int) -> None:
    """Arrange for SIGKILL just before the change of this number, from 1."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if is_change(event, arguments):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fetch_in_child(seed: int, die: int | None, *, force: bool) -> int:
    """Fetch the records of this seed; the signal that ended it, or 0."""
    child = os.fork()
    if not child:
        fetch.obtain = lambda *_: few_records(seed)
        fetch.verify_records = lambda _: None
        if die is not None:
            die_at(die)
        fetch.fetch_cifar10("auto", 2, force=force)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def visible() -> str:
    """What a reader finds: nothing, or the whole dataset of one seed."""
    folder = dataset_folder("cifar10")
    if not folder.exists():
        return "absent"
    repair.verify_dataset(folder)
    pixels, _ = next(Dataset(folder).test.batches())
    return next(
        f"seed {s}" for s in (1, 2) if (few_records(s)["test_batch"][:, 1:] == pixels).all()
    )


def left_over() -> list[str]:
    return sorted(path.name for path in dataset_folder("cifar10").parent.iterdir())


def main(replaced: bool) -> None:
    seen = []
    for number in range(1, 1000):
        if replaced:
            fetch_in_child(1, None, force=True)
        ended = fetch_in_child(2, number, force=replaced)
        found = visible()
        fetch_in_child(2, None, force=False)
        seen.append({"ended": ended, "found": found, "then": visible(), "left": left_over()})
        if not ended:
            break
        if not replaced:
            for path in sorted(cache_folder().rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1] == "replaced")
