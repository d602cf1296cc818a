"""Datasets that lie elsewhere: over S3 and HTTP, within a bound, the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_support import SHARDS
from moto.core import enable_iam_authentication
from s3_server import S3Server, s3_server
from store_process import SECRETS
from support import Run

from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.find import find_dataset
from distsgd.data.locations import SAMPLE
from distsgd.data.manifest import MANIFEST
from distsgd.data.remote import fetching
from distsgd.data.remote.addresses import parse_uri
from distsgd.data.remote.remote_folder import known_source
from distsgd.errors import CorruptDataError, DatasetError, SourceError, UsageError
from distsgd.proof.audit import audit
from distsgd.simulation.probe import Measuring
from distsgd.simulation.simulate import compare, simulate
from distsgd.training import evaluate, resume, train


@pytest.fixture(scope="module")
def running(buckets: Path) -> Iterator[S3Server]:
    with s3_server() as server:
        for path in ("open/many", "open/a sample", "data/sample"):
            server.put(buckets / path, path)
        yield server


@pytest.fixture
def store(running: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The store, our keys, and an empty cache."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PAUSES", (0.01,) * 5)
    return running


def bytes_here() -> int:
    from distsgd.data.locations import cache_folder

    return sum(path.stat().st_size for path in (cache_folder() / "remote").glob("*/*.arrow"))


def test_trained_evaluated_and_audited_where_it_lies(
    store: S3Server, here: Callable[..., str], tmp_path: Path
) -> None:
    for uri in (
        store.s3("data/sample"),
        f"http://{store.address}/open/a%20sample",
        (tmp_path / "data" / "sample").as_uri(),
    ):
        if uri.startswith("file:"):
            shutil.copytree(SAMPLE, tmp_path / "data" / "sample")
        result = train(uri, workers=0, epochs=2)
        assert result.weights_sha256 == here(SAMPLE)
        assert audit(result.run_dir).complete
        shutil.rmtree(tmp_path / "cache")  # what is not here any more is fetched again
        assert audit(result.run_dir).complete
        assert evaluate(result.run_dir).accuracy == result.test_accuracy
        shutil.rmtree(tmp_path / "cache")


def test_what_lies_there_is_not_what_its_manifest_says(store: S3Server, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "altered"))
    shard = next(folder.glob("train*"))
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    store.put(folder, "data/altered")
    with pytest.raises(CorruptDataError, match=f"{shard.name} has the wrong checksum"):
        train(store.s3("data/altered"), workers=0)
    shard.write_bytes(content[:-1000])
    store.put(folder, "data/altered")
    with pytest.raises(SourceError, match="bytes"):
        train(store.s3("data/altered"), workers=0)
    (folder / MANIFEST).write_text("{}")
    store.put(folder, "data/altered")
    with pytest.raises(DatasetError, match="not a manifest"):
        train(store.s3("data/altered"), workers=0)
    assert shard.name not in {path.name for path in (tmp_path / "cache").glob("remote/*/*")}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://data/nothing", "no such file"),
        ("s3://key:secret@data/sample", "AWS_ACCESS_KEY_ID"),
        ("s3://data/sample?secret_key=x", "unknown option 'secret_key'"),
        ("ftp://somewhere/else", "unknown kind"),
        ("s3://", "names no folder"),
        ("file://data/sample", "three slashes"),
    ],
)
def test_addresses_that_cannot_be_used(
    store: S3Server, uri: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    with pytest.raises((UsageError, SourceError), match=says) as caught:
        train(uri, workers=0)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://[::1/x", "s3://a:secret@[b/x", "s3://a:secret@b\u2100/x"])
def test_an_invalid_uri_is_refused_without_a_word_of_it(uri: str) -> None:
    with pytest.raises(UsageError, match=r"://\.\.\. is not a valid URI") as caught:
        find_dataset(uri)
    assert "secret" not in str(caught.value)


def test_only_the_right_key_opens_a_bucket(
    store: S3Server, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request is signed, and the store checks it."""
    keys = store.keys_of_a_reader()
    with enable_iam_authentication():
        for wrong in ({"AWS_ACCESS_KEY_ID": "AKIAOTHER"}, {"AWS_SECRET_ACCESS_KEY": "other"}):
            for name, value in {**keys, **wrong}.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(SourceError, match="ACCESS_DENIED") as caught:
                train(store.s3("data/sample"), workers=0)
            assert not any(value in str(caught.value) for value in keys.values())
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        found = train(store.s3("data/sample"), workers=0, epochs=2)
        assert found.weights_sha256 == here(SAMPLE)
    with pytest.raises(SourceError, match="answers 403"):
        train(f"http://{store.address}/data/sample", workers=0)


def test_the_endpoint_of_the_environment_is_used(
    store: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    assert open_dataset("s3://data/sample").manifest == Dataset(SAMPLE).manifest
    assert parse_uri("gcs://bucket/data/").scheme == "gs"


@pytest.mark.parametrize("settings", [{}, {"model": "mlp:5"}, {"consistency": "local"}])
def test_streamed_within_a_bound_the_bits_are_the_same(
    store: S3Server, buckets: Path, here: Callable[..., str], settings: dict[str, str]
) -> None:
    wanted = {**settings, "shuffle": "shard", "shuffle_window": 2}
    bound = 3  # MiB: the test shard and six of the training shards
    assert bound < SHARDS * 300 * 3073 / 2**20 / 1.5
    result = train(store.open("many"), workers=0, epochs=2, cache_size=bound, **wanted)
    assert result.weights_sha256 == here(buckets / "open" / "many", **wanted)
    assert result.weights_sha256 != here(buckets / "open" / "many", **settings)
    assert bytes_here() <= bound * 2**20
    assert evaluate(result.run_dir, split="train").accuracy == result.train_accuracy
    assert audit(result.run_dir).complete
    assert bytes_here() <= bound * 2**20


def test_a_simulation_streams_within_the_bound_too(
    store: S3Server, buckets: Path, here: Callable[..., str]
) -> None:
    wanted: dict[str, Any] = {"shuffle": "shard", "shuffle_window": 2}

    def config(**settings: Any) -> TrainConfig:
        return TrainConfig(dataset=store.open("many"), **settings)

    few = Measuring(examples=100)
    found = simulate(config(epochs=2, cache_size=3, **wanted), measuring=few)
    assert found.weights_sha256 == here(buckets / "open" / "many", **wanted)
    assert bytes_here() <= 3 * 2**20
    compare({"bsp": config(epochs=1, cache_size=3, **wanted)}, measuring=few)
    assert bytes_here() <= 3 * 2**20
    with pytest.raises(UsageError, match="shuffle='shard'"):
        simulate(config(cache_size=2))


@pytest.mark.ray
def test_streamed_by_several_workers_and_gone_on_with(
    store: S3Server, buckets: Path, here: Callable[..., str], shared_ray: None, tmp_path: Path
) -> None:
    wanted = {"shuffle": "shard", "shuffle_window": 2}
    uri = store.open("many")
    begun = train(uri, workers=2, epochs=1, cache_size=3, run_dir=tmp_path / "run", **wanted)
    assert bytes_here() <= 3 * 2**20
    for consistency in ("ssp", "asp"):
        done = train(uri, workers=2, epochs=2, cache_size=3, consistency=consistency, **wanted)
        assert audit(done.run_dir).complete
    ended = resume(begun.run_dir, epochs=2, workers=3)
    longer = train(buckets / "open" / "many", workers=0, epochs=1, **wanted)
    longer = resume(longer.run_dir, epochs=2)
    assert ended.weights_sha256 == longer.weights_sha256


def test_looked_at_and_verified_where_it_lies(store: S3Server, distsgd_here: Run) -> None:
    for command in ("info", "verify"):
        done = distsgd_here("data", command, "--dataset", store.s3("data/sample"), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == Dataset(SAMPLE).manifest.digest
    assert bytes_here() == sum(shard.stat().st_size for shard in SAMPLE.glob("*.arrow"))


def test_a_bound_that_is_too_small_is_told_before_anything_is_fetched(
    store: S3Server,
) -> None:
    with pytest.raises(UsageError, match=r"have to be on a node at once.*shuffle='shard'"):
        train(store.open("many"), workers=0, cache_size=2)
    with pytest.raises(UsageError, match="shuffle_window=1"):
        train(store.open("many"), workers=0, cache_size=2, shuffle="shard")
    with pytest.raises(UsageError, match="cache_size is for remote datasets"):
        train("sample", workers=0, cache_size=2)
    with pytest.raises(UsageError, match="sampling='random'"):
        train("sample", workers=0, shuffle="shard", sampling="random")
    with pytest.raises(UsageError, match="verify does not go"):
        train(store.open("many"), workers=0, shuffle="shard", verify=1.0)
    assert bytes_here() == 0


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "[" * 100_000])
def test_a_folder_that_does_not_say_of_what_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "source.json").write_text(content)
    with pytest.raises(CorruptDataError, match=r"source.json does not say .* Remove"):
        known_source(tmp_path)
