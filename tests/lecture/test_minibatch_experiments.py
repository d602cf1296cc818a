"""The lecture's experiments about minibatches, on the embedded sample."""

import numpy as np
import pytest

from distsgd.core.plan import Plan
from distsgd.data.dataset import Dataset
from distsgd.errors import UsageError
from distsgd.lecture.experiments import (
    compare_copies,
    compare_descents,
    compare_samplings,
    compare_sizes,
    draw_copies,
    draw_descents,
    draw_minibatch_noise,
    draw_samplings,
    draw_sizes,
    minibatch_noise,
)
from distsgd.lecture.experiments.compare_trainings import (
    NEVER_SEEN,
    is_power_of_two,
    never_seen_share,
    write_sorted_dataset,
)
from distsgd.lecture.experiments.minibatch_gradients import gradient_over_copies
from distsgd.lecture.material import first_examples, gradient_of, loss_and_gradient, loss_of
from distsgd.lecture.plain.loops import (
    gradient_descent,
    minibatch_gradient_descent,
    stochastic_gradient_descent,
)


@pytest.fixture(scope="module")
def few(sample):
    return first_examples(sample, "train", 60, scale=64.0)


def objective(weights, data, labels):
    return loss_and_gradient(weights, data, labels, "softmax")


def test_gradient_descent_goes_down(few):
    steps = list(
        gradient_descent(
            np.zeros(few.shape), few.features, few.labels, objective, step_size=1e-3, steps=20
        )
    )
    losses = [loss for _, loss in steps]
    assert losses[0] == pytest.approx(np.log(10))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_minibatch_of_all_is_gradient_descent(few):
    common = {"step_size": 1e-3, "steps": 3}
    data = (np.zeros(few.shape), few.features, few.labels, objective)
    *_, (whole, _) = gradient_descent(*data, **common)
    whole = whole.copy()
    *_, (batch, _) = minibatch_gradient_descent(*data, **common, batch_size=len(few))
    np.testing.assert_allclose(batch, whole, rtol=1e-9, atol=1e-15)


def test_stochastic_gradient_descent_looks_at_one_example_a_step(few):
    seen = []

    def counting(weights, data, labels):
        seen.append(len(labels))
        return objective(weights, data, labels)

    first = np.zeros(few.shape)
    data = (first, few.features, few.labels, counting)
    list(stochastic_gradient_descent(*data, step_size=1e-3, steps=5))
    assert seen == [1] * 5 and not first.any()


@pytest.mark.parametrize("loss", ["svm", "softmax"])
def test_the_plain_gradient_is_that_of_the_plain_loss(few, loss):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(few.shape) * 1e-2
    direction = rng.standard_normal(few.shape)
    step = 1e-7
    ends = [loss_of(weights + sign * step * direction, few, loss) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope == pytest.approx(np.sum(gradient_of(weights, few, loss) * direction), rel=1e-6)


def test_copies_have_the_gradient_of_their_originals():
    found = compare_copies("sample", originals=50, times=30)
    assert found.examples == 1500
    assert [row.loss for row in found.rows] == ["svm", "softmax"]
    assert all(row.relative_difference <= 1e-12 for row in found.rows)
    draw_copies(found)


def test_a_set_that_does_not_repeat_itself_evenly_has_another_gradient(few, monkeypatch):
    weights = np.random.default_rng(0).standard_normal(few.shape) * 1e-3
    monkeypatch.setattr("distsgd.lecture.experiments.minibatch_gradients._CHUNK", 7)
    many = gradient_over_copies(weights, few, 3, "svm")
    assert np.linalg.norm(many - gradient_of(weights, few, "svm")) <= 1e-12 * np.linalg.norm(many)
    features = np.concatenate([few.features, few.features[:1]])
    labels = np.concatenate([few.labels, few.labels[:1]])
    uneven = loss_and_gradient(weights, features, labels, "svm")[1]
    assert np.linalg.norm(many - uneven) > 1e-3 * np.linalg.norm(many)


def test_noise_falls_with_the_size_as_it_must():
    found = minibatch_noise("sample", sizes=(4, 32, 256), draws=60)
    cosines = [row.cosine for row in found.rows]
    assert cosines == sorted(cosines) and cosines[-1] > 0.8
    for row in found.rows:
        assert row.variance == pytest.approx(row.expected_variance, rel=0.2)
    draw_minibatch_noise(found)


def test_a_minibatch_of_all_has_no_noise(sample):
    (row,) = minibatch_noise("sample", sizes=(len(sample.train),), draws=2).rows
    assert row.expected_variance == 0 and row.variance < 1e-6
    assert row.cosine == pytest.approx(1)


def test_sizes_are_compared():
    found = compare_sizes("sample", sizes=(64, 100), epochs=1)
    assert [(row.batch_size, row.steps) for row in found.rows] == [(64, 24), (100, 15)]
    assert all(row.examples_per_second > 0 for row in found.rows)
    draw_sizes(found)
    assert [n for n in range(70) if is_power_of_two(n)] == [1, 2, 4, 8, 16, 32, 64]


def test_descents_take_as_many_steps_as_their_minibatches_allow(sample):
    found = compare_descents("sample", epochs=2, batch_sizes=("full", 300))
    examples = len(sample.train)
    assert [one.steps for one in found.descents] == [2, 2 * -(-examples // 300)]
    assert [one.batch_size for one in found.descents] == [examples, 300]
    assert all(len(one.points) == 2 for one in found.descents)
    draw_descents(found)


def test_random_sampling_misses_the_share_that_it_must():
    plan = Plan(seed=0, sampling="random", examples=50_000, batch_size=256, slot_size=64, epochs=1)
    share, most = never_seen_share(plan, 0)
    assert abs(share - NEVER_SEEN) < 0.01 and most > 3


@pytest.mark.parametrize("sampling", ["shuffle", "sequential"])
def test_other_samplings_miss_none(sampling):
    plan = Plan(seed=0, sampling=sampling, examples=500, batch_size=64, slot_size=64, epochs=1)
    assert never_seen_share(plan, 0) == (0.0, 1)


def test_a_sorted_dataset_holds_the_same_examples(sample, tmp_path):
    write_sorted_dataset(sample, tmp_path)
    found = Dataset(tmp_path)
    found.verify()
    assert (np.diff(found.train.labels.astype(int)) >= 0).all()
    for split in ("train", "test"):
        rows = [
            sorted((int(label), row.tobytes()) for part, labels in getattr(one, split).batches()
                   for row, label in zip(part, labels, strict=True))
            for one in (sample, found)
        ]  # fmt: skip
        assert rows[0] == rows[1]


def test_samplings_are_compared():
    found = compare_samplings("sample", epochs=2)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["sequential, sorted by class", "sequential", "random", "shuffle"]
    assert rows["random"].never_seen == pytest.approx(NEVER_SEEN, abs=0.03)
    assert rows["shuffle"].never_seen == 0 and len(rows["shuffle"].test_accuracy) == 2
    assert rows["sequential, sorted by class"].test_accuracy[0] < rows["shuffle"].test_accuracy[0]
    draw_samplings(found)


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (lambda: compare_copies("sample", originals=0), "originals"),
        (lambda: compare_copies("sample", originals=10**6), "originals"),
        (lambda: compare_copies("sample", times=0), "times"),
        (lambda: minibatch_noise("sample", sizes=()), "sizes"),
        (lambda: minibatch_noise("sample", sizes=(10**6,)), "sizes"),
        (lambda: minibatch_noise("sample", draws=1), "draws"),
        (lambda: minibatch_noise("sample", loss="hinge"), "loss"),
        (lambda: compare_sizes("sample", sizes=()), "sizes"),
        (lambda: compare_sizes("sample", sizes=(1600,)), "sizes"),
        (lambda: compare_sizes("sample", repeats=1), "repeats"),
        (lambda: compare_samplings("sample", batch_size=1600), "batch_size"),
        (lambda: compare_samplings("sample", epochs=0), "epochs"),
        (lambda: compare_descents("sample", batch_sizes=(1600,)), "sizes"),
        (lambda: compare_descents("sample", loss="hinge"), "loss"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(call, flag):
    with pytest.raises(UsageError, match=flag):
        call()
