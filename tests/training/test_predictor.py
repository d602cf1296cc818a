"""A loaded model: its bits are those of `predict`, whatever stands beside a row."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import PATIENCE

import distsgd
from distsgd.core.model import Preprocessing, make_architecture
from distsgd.data.columns import Columns
from distsgd.data.dataset import Dataset
from distsgd.engine.blas import blas_kernel
from distsgd.engine.core_type import VARIABLE, runs_here
from distsgd.errors import UsageError
from distsgd.runs import Model
from distsgd.training.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> distsgd.LoadedRun:
    folder = tmp_path_factory.mktemp("predictor") / "run"
    distsgd.train(dataset="sample", workers=0, epochs=2, validation=0.1, run_dir=folder)
    return distsgd.load(folder)


@pytest.fixture(scope="module")
def pixels(sample: Dataset) -> np.ndarray:
    return np.array(next(sample.test.batches())[0][:70])


def a_model(
    name: str, features: int, classes: int, dtype: str = "float32", arithmetic: str = "float"
) -> Model:
    architecture = make_architecture(name, features, classes, arithmetic)
    mean = np.floor(np.random.default_rng(1).uniform(90, 130, features)).astype(dtype)
    weights = architecture.unpad(architecture.initial(0, 1.0, dtype))
    return Model(
        weights=weights, state={}, version=3, loss="softmax",
        classes=tuple(f"class {number}" for number in range(classes)), shape=(features,),
        preprocessing=Preprocessing(mean, 64.0), model=name, arithmetic=arithmetic,
    )  # fmt: skip


SHAPES = [
    ("linear", 3072, 10, "float32", "float"), ("linear", 20, 2, "float32", "float"),
    ("linear", 784, 100, "float64", "float"), ("mlp:50", 64, 10, "float32", "float"),
    ("mlp:100", 3072, 10, "float32", "float"), ("mlp:13", 30, 3, "float64", "exact"),
]  # fmt: skip


def differing(shapes: Any = SHAPES) -> list[Any]:
    """The models of which a row has other bits beside others than alone."""
    found = []
    for shape in shapes:
        predictor = Predictor(a_model(*shape))
        rows = np.random.default_rng(2).integers(0, 256, (70, shape[1]), dtype=np.uint8)
        scores, shares = predictor.scores(rows), predictor.probabilities(rows)
        same = [
            np.array_equal(predictor.scores(rows[low:high]), scores[low:high])
            and np.array_equal(predictor.probabilities(rows[low:high]), shares[low:high])
            for low, high in [*((n, n + 1) for n in range(70)), (3, 5), (1, 70), (5, 20), (30, 63)]
        ]
        if not all(same):
            found.append(shape)
    return found


def test_a_row_has_the_same_bits_alone_and_beside_others() -> None:
    assert differing() == []


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX"])
def test_so_it_is_with_other_kernels(kernel: str) -> None:
    if not blas_kernel().startswith("openblas") or not runs_here(kernel):
        pytest.skip(f"this processor or its BLAS has no kernel {kernel}")
    if f"({kernel})" in blas_kernel():
        return  # the test above
    code = "from training.test_predictor import differing; print(differing())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE,
        cwd=Path(__file__).parents[1], env={**os.environ, VARIABLE: kernel},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_its_answers_are_those_of_predict(run: distsgd.LoadedRun, pixels: np.ndarray) -> None:
    predictor = run.predictor()
    shares, labels = predictor.probabilities(pixels), predictor.labels(pixels)
    found = distsgd.predict(run, pixels, top=10)
    for row, label, one in zip(shares, labels, found, strict=True):
        assert one.label == label
        assert dict(zip(one.classes, one.probabilities, strict=True)) == dict(
            zip(predictor.classes, row.tolist(), strict=True)
        )
    assert predictor.probabilities(pixels[4]).tolist() == shares[4:5].tolist()
    assert predictor.weights_sha256 == distsgd.evaluate(run).weights_sha256
    assert (predictor.version, predictor.run) == (run.checkpoints[-1], run.name)
    assert predictor.takes_images and predictor.columns == ()


def test_a_checkpoint_is_chosen(run: distsgd.LoadedRun, pixels: np.ndarray) -> None:
    best, first = run.predictor("best"), run.predictor(0)
    assert first.version == 0 and not (first.scores(pixels) == best.scores(pixels)).all()
    assert run.predictor(5).weights_sha256 == run.at(5).weights_sha256
    with pytest.raises(UsageError, match="has no update 500"):
        run.predictor(500)
    with pytest.raises(UsageError, match="checkpoint cannot be newest"):
        run.predictor("newest")


def test_images_are_read_as_from_a_file(
    run: distsgd.LoadedRun, pixels: np.ndarray, tmp_path: Path
) -> None:
    predictor = run.predictor()
    own = Image.fromarray(np.ascontiguousarray(pixels[0].reshape(3, 32, 32).transpose(1, 2, 0)))
    other = Image.linear_gradient("L")
    assert (predictor.rows(own) == pixels[:1]).all()
    other.save(tmp_path / "grey.png")
    found = predictor.probabilities([own, other])
    assert found[1].max() == distsgd.predict(run, tmp_path / "grey.png")[0].probabilities[0]
    with pytest.raises(UsageError, match="rows of numbers, not images"):
        Predictor(a_model("linear", 4, 2)).scores(own)


def test_numbers_are_those_that_were_imported() -> None:
    model = a_model("linear", 2, 2)
    scaled = Predictor(
        Model(**{**vars(model), "columns": Columns(names=("u", "v"), low=(0, 0), high=(51, 1))})
    )
    assert scaled.columns == ("u", "v")
    raw = Predictor(model).scores(np.array([[5, 255], [10, 0]]))
    assert (scaled.scores(np.array([[1.0, 1.0], [2.0, 0.0]])) == raw).all()


def test_words_of_columns_and_missing_numbers() -> None:
    model = a_model("linear", 4, 2, "float32")
    columns = Columns(
        names=("size", "colour"), low=(0, 0), high=(9, 2), mean=(4, 0), spread=(2, 1),
        words=((), ("blue", "green", "red")), fill=(4, 0),
    )  # fmt: skip
    whole = Preprocessing(np.zeros(4, np.float32), 1.0)
    predictor = Predictor(Model(**{**vars(model), "columns": columns, "preprocessing": whole}))
    given = [[6.0, "red"], [None, "blue"], [8, "grey"], [2.0, None]]
    rows = predictor.rows(np.array(given, dtype=object))
    assert rows.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [2, 0, 0, 0], [-1, 0, 0, 0]]
    sizes, colours = zip(*given, strict=True)
    by_name = predictor.rows({"colour": colours, "more": 1, "size": sizes})
    assert by_name.tolist() == rows.tolist() and predictor.width == 2
    with pytest.raises(UsageError, match="no column size"):
        predictor.rows({"colour": colours})
    with pytest.raises(UsageError, match="not of one length"):
        predictor.rows({"colour": colours, "size": [1]})


def test_threads_and_processes_share_it(pixels: np.ndarray) -> None:
    predictor = Predictor(a_model("mlp:20", 3072, 10))
    expected = predictor.scores(pixels)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: predictor.scores(pixels), range(40)):
            assert (found == expected).all()
    again = pickle.loads(pickle.dumps(predictor))
    assert (again.scores(pixels) == expected).all() and repr(again) == repr(predictor)
    with pytest.raises(ValueError, match="read-only"):
        predictor._weights[0] = 1
