"""The models: their names, the layout of their parameters, and their scores."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_layer_problem import CLASSES, Problem

from distsgd.core.arrays import padded_columns
from distsgd.core.model import (
    MOST_HIDDEN,
    hidden_units,
    initial_weights,
    make_architecture,
    penalty,
)
from distsgd.core.model.models import Linear, TwoLayer

NAMES = st.one_of(st.just("linear"), st.integers(1, 40).map(lambda hidden: f"mlp:{hidden}"))


@pytest.mark.parametrize(
    "name",
    ["", "mlp", "mlp:", "mlp:0", "mlp:x", "mlp:-1", "mlp:+1", "mlp:01", "mlp: 1", "mlp:1.5",
     "mlp:1_0", "mlp:٣", "mlp:²", "mlp:1:2", "MLP:1", "linear:1", "linear ", "resnet",
     f"mlp:{MOST_HIDDEN + 1}", "mlp:" + "9" * 5000],
)  # fmt: skip
def test_names_of_no_model_are_refused(name):
    with pytest.raises(ValueError, match="there is no model"):
        make_architecture(name, 48, 10)


@given(st.text(max_size=8))
def test_any_text_is_a_model_of_that_very_name_or_refused(text):
    try:
        assert make_architecture(text, 3, 2).name == text
    except ValueError as error:
        assert "there is no model" in str(error)


@given(st.integers(1, MOST_HIDDEN))
def test_a_model_has_one_name(hidden):
    model = make_architecture(f"mlp:{hidden}", 3, 2)
    assert model == TwoLayer(3, 2, hidden)
    assert hidden_units(model.name) == hidden
    assert make_architecture("linear", 3, 2) == Linear(3, 2)
    assert hidden_units("linear") == 0


@given(NAMES, st.integers(1, 40), st.integers(2, 12))
def test_pad_and_unpad_are_inverse(name, features, classes):
    model = make_architecture(name, features, classes)
    kept = np.arange(1, 1 + np.prod(model.kept_shape), dtype=np.float32).reshape(model.kept_shape)
    flat = model.pad(kept)
    assert flat.shape == (model.parameters,)
    assert np.count_nonzero(flat) == kept.size
    back = model.unpad(flat)
    assert back.tobytes() == kept.tobytes()
    assert back.shape == kept.shape
    assert back.flags.c_contiguous and flat.flags.c_contiguous


@given(NAMES, st.integers(1, 40), st.integers(2, 12))
def test_layers_are_views_whose_rows_begin_at_multiples_of_16(name, features, classes):
    model = make_architecture(name, features, classes)
    flat = np.zeros(model.parameters)
    parts = model.split(flat)
    assert [part.shape for part in parts] == [layer.padded for layer in model.layers]
    assert all(part.shape[1] % 16 == 0 for part in parts)
    for number, part in enumerate(parts):
        part[...] = number + 1
    assert flat.all()
    assert sorted(flat.tolist()) == flat.tolist()


@given(NAMES, st.integers(1, 40), st.floats(0, 2))
def test_decay_is_the_gradient_of_the_penalty(name, features, regularization):
    """Both spare the biases of every layer."""
    model = make_architecture(name, features, 3)
    flat = model.pad(np.random.default_rng(0).standard_normal(model.kept_shape))
    decay = model.decay(regularization, "float64")
    assert model.penalty(flat, regularization) == pytest.approx(np.sum(decay * flat * flat) / 2)
    free = sum(layer.outputs * (layer.columns - layer.inputs) for layer in model.layers)
    assert np.count_nonzero(decay) == (model.parameters - free if 2 * regularization else 0)


def test_the_linear_model_is_what_it_was():
    model = make_architecture("linear", 3072, 10)
    assert model.kept_shape == (10, 3073)
    flat = model.initial(7, 1e-4, "float32")
    assert flat.tobytes() == initial_weights(7, 10, 3072, 1e-4, "float32").tobytes()
    weights = model.unpad(flat)
    assert model.penalty(flat, 0.3) == penalty(weights, 3072, 0.3)


def test_the_first_weights_of_two_layers_are_those_of_he():
    """Zero biases and padding; hidden units keep the variance of features of unit variance."""
    model = make_architecture("mlp:200", 3072, 10)
    flat = model.initial(0, 1.0, "float64")
    for part, layer in zip(model.split(flat), model.layers, strict=True):
        drawn = part[:, : layer.inputs]
        assert not part[:, layer.inputs :].any()
        assert drawn.std() == pytest.approx(np.sqrt(2 / layer.inputs), rel=0.03)
        assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(drawn.size)
    features = np.zeros((500, padded_columns(3072)))
    features[:, :3072] = np.random.default_rng(1).standard_normal((500, 3072))
    hidden = np.maximum(0, features @ model.split(flat)[0].T)
    assert np.mean(hidden**2) == pytest.approx(1, rel=0.05)
    half = model.initial(0, 0.5, "float64")
    assert half.tobytes() == (flat * 0.5).tobytes()
    assert model.initial(0, 1.0, "float32").tobytes() == flat.astype("f4").tobytes()


def test_seeds_and_layers_have_streams_of_their_own():
    model = make_architecture("mlp:5", 5, 5)
    draws = {
        part.tobytes()
        for seed in range(10)
        for part in model.split(model.initial(seed, 1.0, "float64"))
    }
    assert len(draws) == 20


def test_golden_weights_of_two_layers():
    """If this fails, runs started from a seed by earlier versions are no longer repeated."""
    model = make_architecture("mlp:2", 2, 2)
    found = model.unpad(model.initial(0, 1.0, "float64"))
    expected = [
        -0.5998505,
        -0.35051753,
        0,
        -1.00389587,
        0.29056491,
        0,
        0.23950343,
        -1.13486028,
        0,
        -0.77868106,
        -0.10841738,
        0,
    ]
    np.testing.assert_allclose(found, expected, atol=5e-9)


@pytest.mark.parametrize("model", ["mlp:1", "mlp:20", "mlp:100"])
@pytest.mark.parametrize("rows", [1, 7, 63, 64, 65, 130])
def test_scores_of_two_layers_are_those_of_the_definition(model, rows):
    problem = Problem(48, rows, model=model)
    features = problem.preprocessing.buffer(rows, "float64")
    problem.preprocessing.fill(problem.pixels, features)
    out = np.full((rows, CLASSES), np.nan)
    assert problem.model.score(problem.flat, features, out) is out
    np.testing.assert_allclose(out, problem.scores(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("model", ["linear", "mlp:20"])
def test_bits_of_scores_do_not_depend_on_the_blocks_after_them(model):
    problem = Problem(48, 300, "float32", model)
    model, step = problem.model, problem.model.block
    features = problem.preprocessing.buffer(300, "float32")
    problem.preprocessing.fill(problem.pixels, features)
    out = model.score(problem.flat, features, np.empty((300, CLASSES), np.float32))
    for low, high in [(0, step), (0, 2 * step), (step, 3 * step), (step, 300)]:
        alone = np.empty((high - low, CLASSES), np.float32)
        model.score(problem.flat, features[low:high].copy(), alone)
        assert alone.tobytes() == out[low:high].tobytes()


@pytest.mark.parametrize("name", ["linear", "mlp:7"])
def test_models_travel_to_other_processes(name):
    model = make_architecture(name, 48, 10)
    assert model.parameters > 0
    assert pickle.loads(pickle.dumps(model)) == model
