"""Landscapes: what is computed, along which directions, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.data.dataset import open_dataset
from distsgd.errors import RunError, UsageError
from distsgd.figures.drawn import svg_of
from distsgd.lecture.experiments import draw_landscape, landscape
from distsgd.lecture.experiments.landscape_directions import Path as Checkpoints
from distsgd.lecture.experiments.landscape_directions import in_plane, principal_directions
from distsgd.lecture.material import first_examples, loss_of
from distsgd.runs.checkpoint import latest_checkpoint, read_checkpoint
from distsgd.training.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape") / "run"
    return train("sample", workers=0, epochs=5, run_dir=folder).run_dir


@pytest.mark.parametrize("loss", ["svm", "softmax"])
def test_points_of_a_plane_are_losses_there(loss):
    found = landscape(
        "sample", loss=loss, points=3, extent=2.0, examples=700, regularization=0.1, workers=0,
        scale=0.01,
    )  # fmt: skip
    examples = first_examples(open_dataset("sample"), "train", 700, scale=64.0)
    weights = np.random.default_rng(0).standard_normal((10, 3073)) * 0.01
    one, two = (np.random.default_rng(seed).standard_normal((10, 3073)) for seed in (1, 2))
    one, two = one / np.linalg.norm(one), two / np.linalg.norm(two)
    for row, b in enumerate((-2, 0, 2)):
        for column, a in enumerate((-2, 0, 2)):
            at = weights + a * one + b * two
            expected = loss_of(at, examples, loss) + 0.1 * (at[:, :-1] ** 2).sum()
            assert found.losses[row][column] == pytest.approx(expected, rel=1e-12)


def test_the_same_for_any_number_of_workers(shared_ray):
    alone, two = (
        landscape("sample", points=5, examples=1_500, workers=workers) for workers in (0, 2)
    )
    assert alone == two


def test_one_example_is_piecewise_linear_along_a_line():
    found = landscape(
        "sample", example=3, along=["random:0"], points=801, regularization=0, workers=0
    )
    assert (found.examples, found.b) == (1, (0.0,))
    bends = np.abs(np.diff(found.losses[0], 2)) > 1e-9
    assert 1 <= bends.sum() <= 2 * 9  # a kink between two points shows at one or two of them


def test_the_path_of_a_run_ends_in_the_middle(run):
    found = landscape(run=run, points=5, extent=1.0, examples=1_500, workers=0)
    assert found.path[0].step == 0 and len(found.path) == 6
    assert found.path[-1][1:] == (0, 0) and found.path_share > 0.9
    model = read_checkpoint(latest_checkpoint(Path(run) / "checkpoints"))
    examples = first_examples(open_dataset("sample"), "train", 1_500, scale=64.0)
    weights = model.weights.astype(float)
    expected = loss_of(weights, examples, "softmax") + 0.005 * (weights[:, :-1] ** 2).sum()
    assert found.losses[2][2] == pytest.approx(expected, rel=1e-6)
    assert "<svg" in svg_of(draw_landscape(found), "plane")


def test_of_a_long_path_some_checkpoints_are_read_from_its_first_to_its_last(run, monkeypatch):
    monkeypatch.setattr("distsgd.lecture.experiments.landscape_directions._MOST_POINTS", 3)
    whole = landscape(run=run, points=2, examples=10, workers=0)
    assert [point.step for point in whole.path] == [0, 12, 30]


def test_down_the_gradient_it_falls(run):
    found = landscape(run=run, along=["gradient"], points=3, extent=1e-3, workers=0, examples=1_500)
    assert found.losses[0][0] < found.losses[0][1] < found.losses[0][2]


def test_a_straight_path_is_one_principal_direction():
    steps = np.arange(4.0)[:, None, None] * np.ones((1, 2, 3))
    path = Checkpoints((0, 1, 2, 3), steps)
    found, shares = principal_directions(path)
    assert shares[0] == pytest.approx(1) and found[0] == pytest.approx(np.ones((2, 3)) / 6**0.5)
    points, share = in_plane(path, found[:1])
    assert share == pytest.approx(1) and points[0, 0] == pytest.approx(-3 * 6**0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"along": ["random:1", "random:1"]}, "are parallel"),
        ({"along": ["weights"], "scale": 0.0}, "along weights is zero"),
        ({"along": ["random:0"] * 3}, "3 times"),
        ({"along": ["north"]}, "along cannot be north"),
        ({"along": ["pca1"]}, "along cannot be pca1"),
        ({"points": 1}, "points cannot be 1"),
        ({"extent": 0.0}, "extent cannot be 0"),
        ({"examples": 0}, "examples cannot be 0"),
        ({"examples": 5_000}, "examples cannot be 5000"),
        ({"example": -1}, "example cannot be -1"),
        ({"loss": "hinge"}, "loss"),
        ({"regularization": -1.0}, "regularization"),
        ({"scale": float("nan")}, "scale"),
    ],
)
def test_bad_input(arguments, says):
    with pytest.raises(UsageError, match=says):
        landscape("sample", workers=0, **arguments)


def test_runs_without_a_plane_are_refused(tmp_path):
    short = train("sample", workers=0, epochs=1, run_dir=tmp_path / "short")
    with pytest.raises(RunError, match="needs 3 checkpoints"):
        landscape(run=short.run_dir, workers=0)
    other = train("sample", model="mlp:4", workers=0, epochs=1, run_dir=tmp_path / "two")
    with pytest.raises(RunError, match="mlp:4"):
        landscape(run=other.run_dir, workers=0)


@pytest.mark.parametrize("name", ["extent", "scale", "regularization"])
@pytest.mark.parametrize("value", [-1.0, 1e308, float("inf"), float("nan")])
def test_numbers_whose_squares_are_not_finite_are_refused(name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=f"{name} cannot be .*1e.30"):
        landscape("sample", workers=0, points=3, examples=50, **given)
