"""Codecs: sizes, what they keep, and error feedback."""

from itertools import pairwise

import numpy as np
import pytest

from distsgd.core.messages import INCARNATION
from distsgd.core.optim import CODECS, ErrorFeedback, make_codec

CLASSES, SIZE = 10, 30_880
MATRICES = [(CLASSES, SIZE // CLASSES)]
SPECS = ["fp16", "topk:0.001", "topk:0.25", "onebit"]


def random_vector(seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(SIZE) * rng.gamma(1, 1, SIZE)).astype(dtype)


def decoded(codec, payload, dtype="float32"):
    out = np.full(SIZE, np.nan, dtype=dtype)
    codec.decode(payload, out)
    return out


@pytest.mark.parametrize(
    ("spec", "times_fewer"), [("fp16", 1.99), ("topk:0.001", 270), ("onebit", 30)]
)
def test_how_many_times_fewer_bytes(spec, times_fewer):
    vector = random_vector()
    codec = make_codec(spec, MATRICES)
    payload = codec.encode(vector)
    assert len(payload) == codec.size
    assert vector.nbytes / len(payload) >= times_fewer


def test_fp16_keeps_three_digits_of_the_largest():
    vector = random_vector() * np.float32(1e6)
    codec = make_codec("fp16", MATRICES)
    error = np.abs(decoded(codec, codec.encode(vector)) - vector).max()
    assert error <= np.abs(vector).max() / 1000


def test_topk_sends_the_largest_exactly_and_nothing_else():
    vector, codec = random_vector(), make_codec("topk:0.01", MATRICES)
    seen = decoded(codec, codec.encode(vector))
    sent = np.flatnonzero(seen)
    assert len(sent) == 309
    assert np.array_equal(seen[sent], vector[sent])
    assert np.abs(vector[sent]).min() >= np.abs(np.delete(vector, sent)).max()


def test_topk_takes_the_first_of_equals():
    codec = make_codec("topk:0.0001", MATRICES)
    assert np.flatnonzero(decoded(codec, codec.encode(np.ones(SIZE, np.float32)))).tolist() == [
        0, 1, 2,
    ]  # fmt: skip


def test_onebit_keeps_signs_and_the_mean_of_each_sign():
    vector, codec = random_vector(), make_codec("onebit", MATRICES)
    seen = decoded(codec, codec.encode(vector)).reshape(CLASSES, -1)
    rows = vector.reshape(CLASSES, -1)
    assert np.array_equal(seen >= 0, rows >= 0)
    for row, found in zip(rows, seen, strict=True):
        assert found[row >= 0] == pytest.approx(row[row >= 0].mean(), rel=1e-5)
        assert found[row < 0] == pytest.approx(row[row < 0].mean(), rel=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_exact_means_of_onebit_do_not_depend_on_order(exact):
    """Whole rows are multiplied by 0.1 and mixed, so that sums of floats are rounded."""
    codec = make_codec("onebit", [(3, 1000)], exact=exact)
    vector = random_vector(dtype="float64")[:3000] * 0.1
    rows, found = vector.reshape(3, 1000), set()
    for seed in range(20):
        mixed = np.random.default_rng(seed).permutation(rows, axis=1)
        found.add(np.unique(codec.encode(mixed.reshape(-1))[:24]).tobytes())
        plain = make_codec("onebit", [(3, 1000)])
        sums = codec._means(mixed), plain._means(mixed)
        np.testing.assert_allclose(*sums, rtol=1e-12)
        found.add(sums[0].tobytes())
    assert (len(found) == 2) == exact


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_stay_zeros(spec, dtype):
    codec = make_codec(spec, MATRICES)
    assert not decoded(codec, codec.encode(np.zeros(SIZE, dtype)), dtype).any()


@pytest.mark.parametrize("spec", SPECS)
def test_feedback_sends_later_what_was_left_out(spec):
    """All that was sent, and what is left, add up to all that was given."""
    feedback = ErrorFeedback(make_codec(spec, MATRICES), np.zeros(SIZE))
    given, seen = np.zeros(SIZE), np.zeros(SIZE)
    out = np.empty(SIZE)
    for seed in range(20):
        vector = random_vector(seed, "float64")
        given += vector
        feedback.send(seed, vector, out)
        seen += out
    assert np.abs(given - seen - feedback.left(20)).max() <= 1e-9


def test_without_feedback_what_is_left_out_is_forgotten():
    codec = make_codec("topk:0.01", MATRICES)
    feedback = ErrorFeedback(codec, random_vector(), feedback=False)
    feedback.send(0, random_vector(), np.empty(SIZE, np.float32))
    assert not feedback.left(1).any()


@pytest.mark.parametrize("spec", SPECS)
def test_an_answer_that_is_not_used_leaves_no_trace(spec):
    vectors, out = [random_vector(seed) for seed in range(4)], np.empty(SIZE, np.float32)
    plain, other = (
        ErrorFeedback(make_codec(spec, MATRICES), np.zeros(SIZE, np.float32)) for _ in range(2)
    )
    wanted = [plain.send(serial, vector, out) for serial, vector in enumerate(vectors)]
    found = []
    for serial, vector in enumerate(vectors):
        other.send(serial, random_vector(100 + serial), out)  # the server does not use it
        found.append(other.send(serial, vector, out))
    assert found == wanted


def test_who_comes_back_owes_nothing_and_old_debts_are_forgotten():
    feedback = ErrorFeedback(make_codec("onebit", MATRICES), random_vector(), depth=2)
    out = np.empty(SIZE, np.float32)
    for serial in range(5):
        feedback.send(serial, random_vector(serial), out)
    assert not feedback.left(INCARNATION).any()
    assert feedback.left(2).any() and feedback.left(5).any()
    with pytest.raises(KeyError):
        feedback.left(1)
    assert feedback.send(INCARNATION, random_vector(9), out) == make_codec(
        "onebit", MATRICES
    ).encode(random_vector(9))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("servers", [2, 3, 7])
def test_what_is_cut_stands_for_the_same_values(spec, dtype, servers):
    codec, vector = make_codec(spec, MATRICES), random_vector(dtype=dtype)
    payload = codec.encode(vector)
    whole = decoded(codec, payload, dtype)
    for number in range(servers):
        part = slice(SIZE * number // servers, SIZE * (number + 1) // servers)
        out = np.full(part.stop - part.start, np.nan, dtype=dtype)
        codec.decode(codec.cut(payload, part), out, part)
        assert out.tobytes() == whole[part].tobytes()


@pytest.mark.parametrize(
    "spec", ["", "gzip", "topk", "topk:", "topk:0", "topk:1.5", "topk:nan", "onebit:2", "fp16:"]
)
def test_other_specs_are_refused(spec):
    with pytest.raises(ValueError):
        make_codec(spec, MATRICES)


def test_every_codec_is_tested():
    assert {spec.partition(":")[0] for spec in SPECS} == set(CODECS)


@pytest.mark.parametrize("spec", SPECS)
def test_matrices_of_several_shapes_go_in_one_vector(spec):
    """As one after the other, for what treats rows apart; and as cut into any ranges."""
    matrices = [(6, 48), (10, 16)]
    vector = random_vector()[: 6 * 48 + 10 * 16]
    codec = make_codec(spec, matrices)
    payload, seen = codec.encode(vector), np.empty_like(vector)
    assert len(payload) == codec.size
    codec.decode(payload, seen)
    if spec == "onebit":
        parts = vector[: 6 * 48], vector[6 * 48 :]
        for shape, part, found in zip(matrices, parts, (seen[:288], seen[288:]), strict=True):
            alone = make_codec(spec, [shape])
            assert decoded_as(alone, part).tobytes() == found.tobytes()
    for cuts in ([0, 100, 300, 448], [0, 288, 448]):
        for low, high in pairwise(cuts):
            part = np.empty_like(vector[low:high])
            codec.decode(codec.cut(payload, slice(low, high)), part, slice(low, high))
            assert part.tobytes() == seen[low:high].tobytes()


def decoded_as(codec, vector):
    out = np.empty_like(vector)
    codec.decode(codec.encode(vector), out)
    return out
