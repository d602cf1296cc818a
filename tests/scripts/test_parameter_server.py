"""The hundred lines of `scripts/parameter_server.py` give the bits of the whole package."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.data.dataset import Dataset
from distsgd.engine.blas import one_blas_thread

SCRIPT = Path(__file__).parents[2] / "scripts" / "parameter_server.py"


@pytest.fixture(scope="module")
def trained() -> str:
    """What `distsgd train --dataset sample` prints."""
    return distsgd.train("sample", workers=0).weights_sha256


def test_it_is_one_page() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert not any("import" in line and "distsgd" in line for line in lines)


@pytest.mark.parametrize("workers", [1, 3])
def test_its_classes_give_the_same_bits(trained: str, sample: Dataset, workers: int) -> None:
    """Without Ray, with workers that take turns at random."""
    script = runpy.run_path(str(SCRIPT))
    pixels, labels = map(np.concatenate, zip(*sample.train.batches(), strict=True))
    random = Random(workers)

    async def work(server: Any) -> None:
        worker = script["Worker"](pixels, labels)
        while lease := await server.pull():
            number, slot, weights = lease
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            await server.push(number, worker.gradient(weights, slot))

    async def train() -> str:
        server = script["Server"]()
        minibatches = list(script["plan"](len(labels)))
        working = [work(server) for _ in range(workers)]
        digest, *_ = await asyncio.gather(server.train(minibatches, workers), *working)
        return str(digest)

    with one_blas_thread():
        assert asyncio.run(train()) == trained


@pytest.mark.usefixtures("shared_ray")
def test_it_gives_the_same_bits_on_ray(
    trained: str, sample: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "2", str(sample.folder)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.split() == [trained]
