"""A private cache for every test, and a small CIFAR-10 in each form in which it is published."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from data_support import (
    SHARDS,
    Site,
    pack,
    python2_pickle,
    python3_pickle,
    python_batch,
    running_site,
    sample_in_shards,
    snapshot,
)
from PIL import Image
from small_cifar10 import BATCH_ROWS, make_small

from distsgd.data.cifar10.archive import Records, records_of
from distsgd.data.cifar10.fetch import fetch_cifar10
from distsgd.data.cifar10.repair import verify_dataset
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE, dataset_folder
from distsgd.errors import DatasetError, SourceError
from distsgd.training import train

USERS_DATASET = dataset_folder("cifar10")
"""Looked at, never written; found before any test points the cache elsewhere."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of this test alone; its files are too large for pytest to keep after it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DISTSGD_CACHE", str(folder))
    yield folder
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(autouse=True)
def small_cifar10(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 has few images, unless a test takes `whole_cifar10`."""
    if "whole_cifar10" not in request.fixturenames:
        make_small(monkeypatch)


@pytest.fixture
def settled(cache: Path) -> Path:
    """A cache that already holds a dataset: a copy of the sample, for the sake of speed."""
    shutil.copytree(SAMPLE, cache / "datasets" / "cifar10")
    return cache


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server on the loopback, reached without any proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running_site() as site:
        yield site


@pytest.fixture
def closed_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of this machine that refuses connections."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/cifar-10-binary.tar.gz"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the large things of the session lie; removed at its end."""
    folder = tmp_path_factory.mktemp("workshop")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def buckets(workshop: Path) -> Path:
    """What stores hold: the sample as it is, twice, and in many shards of unequal length."""
    folder = workshop / "buckets"
    sample_in_shards(folder / "open" / "many", SHARDS)
    shutil.copytree(SAMPLE, folder / "data" / "sample")
    shutil.copytree(SAMPLE, folder / "open" / "a sample")
    return folder


@pytest.fixture(scope="session")
def cifar10(workshop: Path) -> Path:
    """The folder of the full dataset: the user's own, or one fetched for this session."""
    try:
        verify_dataset(USERS_DATASET)
        return USERS_DATASET
    except DatasetError:
        return _fetch_into(workshop / "fetched", "auto")


@pytest.fixture
def whole_cifar10(cifar10: Path) -> Path:
    """The folder of the full dataset, and its own checksums."""
    return cifar10


def _fetch_into(cache: Path, source: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTSGD_CACHE", str(cache))
        if source != "auto":
            make_small(patch)
        try:
            return fetch_cifar10(source)
        except SourceError as error:
            pytest.skip(f"CIFAR-10 can be fetched from nowhere: {error}")


@pytest.fixture(scope="session")
def records(cifar10: Path) -> Records:
    """The six batches of the binary form, small."""
    dataset = Dataset(cifar10)
    whole = records_of(dataset.train.batches(), dataset.test.batches())
    return {name: batch[:BATCH_ROWS] for name, batch in whole.items()}


@pytest.fixture(scope="session")
def binary_folder(workshop: Path, records: Records) -> Path:
    folder = workshop / "cifar-10-batches-bin"
    folder.mkdir()
    for name, batch in records.items():
        (folder / f"{name}.bin").write_bytes(batch.tobytes())
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\n")
    (folder / "readme.html").write_text("<html></html>")
    return folder


@pytest.fixture(scope="session")
def binary_archive(workshop: Path, binary_folder: Path) -> Path:
    return pack(binary_folder, workshop / "cifar-10-binary.tar.gz", binary_folder.name, level=1)


@pytest.fixture(scope="session")
def python_folder(workshop: Path, records: Records) -> Path:
    """The unpacked python archive, pickled as Python 2 did."""
    folder = workshop / "cifar-10-batches-py"
    folder.mkdir()
    for name, batch in records.items():
        (folder / name).write_bytes(python2_pickle(python_batch(batch, name)))
    (folder / "batches.meta").write_bytes(python2_pickle({b"label_names": [b"airplane"]}))
    (folder / "readme.html").write_text("<html></html>")
    return folder


@pytest.fixture(scope="session")
def python_archive(workshop: Path, python_folder: Path) -> Path:
    return pack(python_folder, workshop / "cifar-10-python.tar.gz", python_folder.name)


@pytest.fixture(scope="session")
def repickled_folder(workshop: Path, records: Records) -> Path:
    """The same batches pickled again, in the old protocol, by Python 3."""
    folder = workshop / "repickled"
    folder.mkdir()
    for name, batch in records.items():
        (folder / name).write_bytes(python3_pickle(python_batch(batch, name)))
    return folder


@pytest.fixture(scope="session")
def image_folder(workshop: Path, records: Records) -> Path:
    """The unpacked npm package: an image a batch, one example a row, and two lists of labels."""
    folder = workshop / "images" / "package"
    folder.mkdir(parents=True)
    for name, batch in records.items():
        rows = batch[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
        Image.fromarray(np.ascontiguousarray(rows)).save(folder / f"{name}.png", compress_level=0)
    train = np.concatenate([batch[:, 0] for name, batch in records.items() if "data" in name])
    (folder / "train_lables.json").write_text(json.dumps(train.tolist()))
    (folder / "test_lables.json").write_text(json.dumps(records["test_batch"][:, 0].tolist()))
    return folder.parent


@pytest.fixture(scope="session")
def reference(workshop: Path, binary_folder: Path) -> Path:
    """The dataset as fetched from the unpacked binary archive; not to be written to."""
    return _fetch_into(workshop / "reference", str(binary_folder))


@pytest.fixture(scope="session")
def reference_bytes(reference: Path) -> dict[str, str]:
    """Checksums of all files of the dataset, the manifest among them."""
    return snapshot(reference)


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH: a script named npm put there is the one that runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture(scope="module")
def here() -> Callable[..., str]:
    """The bits of a training on the files themselves."""
    known: dict[str, str] = {}

    def bits(dataset: Path, **settings: object) -> str:
        key = f"{dataset} {settings}"
        if key not in known:
            known[key] = train(dataset, workers=0, epochs=2, **settings).weights_sha256
        return known[key]

    return bits
