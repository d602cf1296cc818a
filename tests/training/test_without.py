"""The setting `without`: examples that stay in their minibatches and count for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.without import left_out_rows, numbers_of, text_of_numbers
from distsgd.core.messages import Lease
from distsgd.data.dataset import open_dataset
from distsgd.engine.worker import Worker
from distsgd.errors import UsageError
from distsgd.training import train
from tests.support import on_sample


def test_a_text_names_rows() -> None:
    assert numbers_of("none") == ()
    assert numbers_of("17, 3,40-42,41") == (3, 17, 40, 41, 42)
    assert text_of_numbers([5, 3, 5]) == "3,5"
    assert text_of_numbers([]) == "none"
    for wrong in ("", "3,", "-3", "9-3", "a", "0-9999999", "1.5"):
        with pytest.raises(ValueError, match=r"^$"):
            numbers_of(wrong)
        with pytest.raises(UsageError, match=r"^without cannot be "):
            on_sample(without=wrong)


def test_rows_that_the_dataset_lacks_are_refused() -> None:
    dataset = open_dataset("sample")
    rows = len(dataset.train)
    with pytest.raises(UsageError, match=f"^without names example {rows}, and cifar10-sample has "):
        left_out_rows(str(rows), dataset)
    with pytest.raises(UsageError, match="leaves no training example that counts"):
        train("sample", workers=0, epochs=1, without=f"0-{rows - 1}")


@pytest.mark.parametrize("settings", [{}, {"model": "mlp:8"}, {"arithmetic": "exact"}])
def test_they_add_nothing_to_the_gradient(settings: dict[str, str]) -> None:
    dataset = open_dataset("sample")
    config = on_sample(workers=0, slot_size=32, batch_size=32, **settings)
    rows = make_job(config, dataset).plan.indices(0, 0).tolist()
    gone, left = rows[::2], rows[1::2]
    pieces = []
    for without in ([], gone, left):
        job = make_job(on_sample(workers=0, slot_size=32, batch_size=32, without=without,
                                 **settings), dataset)  # fmt: skip
        push = Worker(job).answer(Lease(0, 0, 1, 0), first_weights(config, job))
        pieces.append((push.gradients[0].copy(), push.losses[0].loss))
    (whole, loss), (one, first), (other, second) = pieces
    np.testing.assert_allclose(one + other, whole, atol=1e-4 * np.abs(whole).max())
    assert loss == pytest.approx(first + second, rel=1e-5)
    assert first > 0 < second


def test_the_independent_recomputation_leaves_them_out_too(tmp_path: Path) -> None:
    settings = {"workers": 0, "epochs": 1, "batch_size": 64, "verify": 1.0}
    result = train("sample", run_dir=tmp_path / "run", without=range(100), **settings)
    assert result.weights_sha256 != train("sample", **settings).weights_sha256
