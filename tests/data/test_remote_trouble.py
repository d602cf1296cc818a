"""Stores that are slow, break off or refuse: tried again, and given up with a reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_store import KEY
from store_process import SECRETS, StoreProcess, object_store
from support import PATIENCE, run_here

from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import MANIFEST
from distsgd.data.remote import fetching, stores
from distsgd.errors import SourceError
from distsgd.training import train


@pytest.fixture(scope="module")
def running(buckets: Path) -> Iterator[StoreProcess]:
    with object_store(buckets) as store:
        yield store


@pytest.fixture
def store(running: StoreProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreProcess:
    """The store without troubles, our keys, and an empty cache."""
    running.order()
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PAUSES", (0.01,) * 5)
    return running


@pytest.mark.ray
def test_each_shard_is_fetched_once_by_several_workers(
    store: StoreProcess, here: Callable[..., str], shared_ray: None
) -> None:
    result = train(store.open("a sample"), workers=3, epochs=2)
    assert result.weights_sha256 == here(SAMPLE)
    read = Counter[str]()
    for _, path, size in store.log():
        read[path] += size
    assert set(read) == {f"/open/a sample/{name.name}" for name in SAMPLE.glob("*.*")}
    for path, size in read.items():
        if not path.endswith(MANIFEST):
            assert size == (SAMPLE / Path(path).name).stat().st_size


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 503, "times": 4, "path": "arrow"},
        {"status": 500, "times": 2, "path": MANIFEST},
        {"status": 503, "times": 3, "method": "HEAD"},
        {"cut": 1_000_000, "times": 4, "path": "arrow"},
        {"cut": 300_000, "times": 99, "path": "arrow"},
        {"cut": 5_000, "times": 1, "path": MANIFEST},
        {"wait": 0.5, "times": 3},
    ],
)
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_trouble_that_passes(
    store: StoreProcess, here: Callable[..., str], trouble: dict[str, object], kind: str
) -> None:
    store.order(trouble)
    uri = store.s3("data/sample") if kind == "s3" else f"http://{store.address}/open/a%20sample"
    assert train(uri, workers=0, epochs=2).weights_sha256 == here(SAMPLE)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ({"status": 503, "times": 99, "path": "arrow"}, "6 attempts"),
        ({"status": 503, "times": 99, "path": MANIFEST}, "6 attempts"),
        ({"cut": 0, "times": 99, "path": "arrow"}, "6 attempts"),
        ({"status": 403, "times": 99, "path": "arrow"}, "arrow cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_trouble_that_stays_is_told(
    store: StoreProcess, trouble: dict[str, object], says: str, kind: str, tmp_path: Path
) -> None:
    store.order(trouble)
    uri = store.s3("data/sample") if kind == "s3" else f"http://{store.address}/open/a%20sample"
    with pytest.raises(SourceError, match=says) as caught:
        train(uri, workers=0, epochs=2)
    assert KEY not in str(caught.value) and "example" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.fixture
def dripping(store: StoreProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProcess]:
    """The store, and clocks for one that gives a byte at a time; what still reads ends with it."""
    monkeypatch.setattr(stores, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(fetching, "_SLOW_SECONDS", 0.02)
    monkeypatch.setattr(fetching, "_WINDOW_SECONDS", 0.05)
    yield store
    store.order()
    assert not stores.reads_hang(PATIENCE)


@pytest.mark.parametrize("path", ["arrow", MANIFEST])
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_store_that_drips_is_named_and_given_up(
    dripping: StoreProcess, kind: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    dripping.order({"drip": 0.01, "times": 99, "path": path})
    uri = (
        dripping.s3("data/sample") if kind == "s3" else f"http://{dripping.address}/open/a%20sample"
    )
    with pytest.raises(SourceError, match=r"6 attempts: less than 64 KiB in 0\.05 s"):
        train(uri, workers=0, epochs=2)
    assert "is slow: less than 512 KiB in 0.02 s" in caplog.text


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_when_a_shard_cannot_be_had_the_others_are_not_waited_for(
    dripping: StoreProcess, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_WINDOW_SECONDS", 2 * PATIENCE)
    uri = dripping.s3("open/many") if kind == "s3" else f"http://{dripping.address}/open/many"
    dripping.order(
        {"drip": 0.01, "times": 2, "path": "arrow"}, {"status": 403, "times": 99, "path": "arrow"}
    )
    with pytest.raises(SourceError, match=r"arrow cannot be read.*(403|SLOW_DOWN)"):
        train(uri, workers=0, epochs=2)


def test_a_process_does_not_stay_for_a_read_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter would wait for it, as pyarrow does in its own exit."""
    codes = []
    monkeypatch.setattr(stores, "reads_hang", lambda: True)
    monkeypatch.setattr(os, "_exit", codes.append)
    code, _, errors = run_here(["train", "--dataset", "nowhere"], tmp_path, {})
    assert codes == [code] == [1] and errors
