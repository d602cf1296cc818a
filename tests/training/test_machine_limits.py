"""What a limit of the machine keeps from being read is not taken for damaged."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import Run

from distsgd import train
from distsgd.data.dataset import Dataset, damaged_shards
from distsgd.data.importing.images import read_image
from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import read_manifest
from distsgd.data.shards import write_dataset
from distsgd.errors import StorageError, machine_trouble, storage_error
from distsgd.runs.checkpoint import read_checkpoint
from distsgd.runs.folder import RunFolder
from distsgd.runs.metrics import read_metrics
from distsgd.runs.opened_run import open_run


@contextmanager
def open_files(most: int | None = None) -> Iterator[None]:
    """A limit of open files: of the process, or as many as there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))  # the lowest number that is not in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (most or free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the sample, and files to be imported, in one folder."""
    folder = tmp_path_factory.mktemp("files")
    train(dataset="sample", workers=0, epochs=1, run_dir=folder / "run")
    values, labels = np.arange(60) / 7, np.arange(60) % 2
    np.savez(folder / "f.npz", x=values[:, None], y=labels)
    pq.write_table(pa.table({"x": values, "label": labels}), folder / "f.parquet")
    lines = [f"{x},{label}" for x, label in zip(values, labels, strict=True)]
    (folder / "f.csv").write_text("\n".join(["x,label", *lines]))
    for name in ("cat", "dog"):
        for number in range(5):
            path = folder / "pets" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2)).save(path)
    return folder


def opened(name: str) -> Callable[[Path], Any]:
    from distsgd.data.importing.choose import open_source
    from distsgd.data.importing.source import ImportOptions

    def read(folder: Path) -> None:
        for _ in open_source(folder / name, None, ImportOptions()).train():
            pass

    return read


READERS: dict[str, Callable[[Path], Any]] = {
    "shards": lambda folder: Dataset(SAMPLE),
    "manifest": lambda folder: read_manifest(SAMPLE),
    "check of shards": lambda folder: damaged_shards(SAMPLE, READ),
    "checkpoint": lambda folder: read_checkpoint(folder / "run/checkpoints/step-000000000.npz"),
    "config": lambda folder: RunFolder(folder / "run").read("config.json"),
    "metrics": lambda folder: read_metrics(folder / "run/metrics.jsonl"),
    "run": lambda folder: open_run(folder / "run").journal(),
    "image": lambda folder: read_image(folder / "pets/cat/0.png", (3, 2, 3)),
    **{name: opened(name) for name in ("f.csv", "f.parquet", "f.npz", "pets")},
}
READ = read_manifest(SAMPLE)


@pytest.mark.parametrize("what", READERS)
def test_a_lack_of_open_files_is_called_that(files: Path, what: str) -> None:
    READERS[what](files)  # what it imports is imported by now
    with open_files(), pytest.raises(StorageError, match=r"too many open files\. .*ulimit -n"):
        READERS[what](files)
    READERS[what](files)


def test_a_dataset_may_have_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    pixels, labels = np.zeros((300, 12), np.uint8), (np.arange(300) % 2).astype(np.uint8)
    (folder := tmp_path / "many").mkdir()
    write_dataset(
        folder, name="many", shape=(3, 2, 2), classes=("a", "b"), train=(pixels, labels),
        test=(pixels[:2], labels[:2]), shards=300,
    )  # fmt: skip
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_files(before + 20):
        dataset = Dataset(folder)
        dataset.verify()
    assert len(list(Path("/proc/self/fd").iterdir())) == before and len(dataset.train) == 300


def test_the_command_line_raises_the_limit(distsgd: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))\n"
        "atexit.register(lambda: print(resource.getrlimit(resource.RLIMIT_NOFILE)))\n"
    )
    done = distsgd("--version", env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.splitlines()[-1] == "(512, 512)"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EACCES, "x"), "permission denied. Check that you may read it"),
        (OSError(errno.ENOMEM, "x"), "cannot allocate memory. Use smaller sizes"),
        (MemoryError(), "cannot allocate memory. Use smaller sizes"),
        (OSError(errno.ENOSPC, "x"), "no space left on device. Free some space"),
    ],
)
def test_each_limit_has_its_own_words(error: BaseException, says: str) -> None:
    assert says in str(machine_trouble(error, "f"))


@pytest.mark.parametrize(
    "error", [OSError("Invalid IPC message"), OSError(errno.EIO, "x"), ValueError(), EOFError()]
)
def test_damage_is_no_limit(error: BaseException) -> None:
    assert machine_trouble(error, "f") is None


def test_a_file_that_cannot_be_opened_for_writing_names_the_limit() -> None:
    assert "ulimit -n" in str(storage_error(OSError(errno.EMFILE, "Too many open files"), "f"))
