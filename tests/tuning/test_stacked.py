"""Settings that are trained together end with the bits of their own trainings."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import on_sample

from distsgd.config.jobs import first_weights, make_job
from distsgd.core.optim import OPTIMIZERS
from distsgd.data.arrays import ArrayDataset, ArraySplit
from distsgd.engine.blas import best_products, blas_kernel, one_blas_thread
from distsgd.engine.events import Ended, EpochEnded
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Snapshot
from distsgd.errors import UsageError
from distsgd.training.preparation import train_with
from distsgd.training.results import Reporter
from distsgd.tuning.stacked import SettingState, StackedTraining, stacks


def alone(config, dataset):
    """Epochs of a training of its own: (loss with penalty, accuracy, W); and how it diverged."""
    epochs, ended = [], None
    with one_blas_thread():
        job = make_job(config, dataset, best_products())
        start = Snapshot(0, first_weights(config, job), {})
        for event in train_inline(job, start, lambda: False, dataset.train):
            if isinstance(event, EpochEnded):
                flat = event.snapshot.weights
                penalty = job.architecture.penalty(flat, job.regularization)
                epochs.append((event.loss + penalty, event.accuracy, flat))
            elif isinstance(event, Ended):
                ended = event.diverged
    return epochs, ended


def settings(**common):
    """One of each update rule, with another loss, penalty or rate each."""
    return [
        on_sample(
            epochs=2, optimizer=optimizer, loss=("softmax", "svm")[number % 2],
            regularization=0.001 * number, schedule=("cosine", "constant")[number % 2], **common,
        )
        for number, optimizer in enumerate(OPTIMIZERS)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"dtype": "float64", "sampling": "random"},
        {"batch_size": 100, "slot_size": 32, "shuffle": "shard"},
        {"batch_size": 30, "sampling": "sequential"},
        {"batch_size": "full", "slot_size": 24},
        {"arithmetic": "exact"},
        {"model": "mlp:9"},
        {"model": "mlp:9", "arithmetic": "exact", "batch_size": 100},
    ],
    ids=str,
)
def test_each_setting_has_the_bits_of_its_own_training(common, sample):
    configs = settings(**common)
    training = StackedTraining(configs, sample)
    epochs = list(training)
    states = training.state()
    assert len(epochs) == 2
    for number, config in enumerate(configs):
        expected, _ = alone(config, sample)
        for results, (loss, accuracy, _) in zip(epochs, expected, strict=True):
            one = results[number]
            assert (one.setting, one.train_loss, one.train_accuracy) == (number, loss, accuracy)
        assert np.array_equal(states[number].weights, expected[-1][2])


def test_stacked_products_are_used_where_their_bits_are_those_of_single_ones(sample):
    from distsgd.core.model.stacked_linear import StackedLinearKernel

    configs = [on_sample(epochs=1, learning_rate=0.001 * n) for n in range(1, 9)]
    training = StackedTraining(configs, sample)
    list(training)
    kernel = training._kernel
    assert isinstance(kernel, StackedLinearKernel)
    if "SkylakeX" in blas_kernel():
        assert kernel._usable[4, 64]
    for number, state in training.state().items():
        assert np.array_equal(state.weights, alone(configs[number], sample)[0][-1][2])


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_float_rows_with_weights_have_the_bits_too(class_weight):
    random = np.random.default_rng(3)
    rows = random.standard_normal((300, 40)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.uint8)
    split = ArraySplit(rows, labels, random.uniform(0.5, 2, 300))
    dataset = ArrayDataset(split, ("no", "yes"))
    configs = [
        on_sample(epochs=2, learning_rate=rate, class_weight=class_weight)
        for rate in (0.1, 0.01, 0.001)
    ]
    training = StackedTraining(configs, dataset)
    losses = [[one.train_loss for one in epoch] for epoch in training]
    for number, config in enumerate(configs):
        expected, _ = alone(config, dataset)
        assert [epoch[number] for epoch in losses] == [loss for loss, _, _ in expected]
        assert np.array_equal(training.state()[number].weights, expected[-1][2])


def test_held_out_rows_are_measured_as_in_a_run(sample, tmp_path):
    configs = [
        on_sample(epochs=2, workers=0, validation=0.2, learning_rate=r) for r in (0.01, 0.003)
    ]
    training = StackedTraining(configs, sample)
    epochs, test = list(training), training.test()
    for number, config in enumerate(configs):
        run = train_with(config, tmp_path / f"{number}", Reporter())
        assert run.validation_loss == epochs[-1][number].validation_loss
        assert run.validation_accuracy == epochs[-1][number].validation_accuracy
        assert (run.test_loss, run.test_accuracy) == test[number]
        lines = Path(tmp_path, f"{number}", "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "epoch"]
        assert [row["train_loss"] for row in rows] == [one[number].train_loss for one in epochs]


def test_one_that_diverges_drops_out_and_the_others_do_not_notice(sample):
    configs = [*settings()[:2], on_sample(epochs=2, learning_rate=1e6)]
    training = StackedTraining(configs, sample)
    first, second = training
    assert [one.diverged for one in first] == [False, False, True]
    assert [one.setting for one in second] == [0, 1]
    assert alone(configs[2], sample)[1] is not None
    for number in (0, 1):
        expected = alone(configs[number], sample)[0][-1][2]
        assert np.array_equal(training.state()[number].weights, expected)


def test_settings_can_be_dropped_and_a_training_goes_on_from_its_state(sample):
    configs = settings()
    training = StackedTraining(configs, sample, until=1)
    assert len(list(training)) == 1
    training.drop([1, 3])
    saved = {n: (one.epoch, one.arrays()) for n, one in training.state().items()}
    states = {n: SettingState.from_arrays(*one) for n, one in saved.items()}
    later = StackedTraining(configs, sample, states)
    assert [[one.setting for one in results] for results in later] == [[0, 2, 4]]
    for number in (0, 2, 4):
        expected = alone(configs[number], sample)[0][-1][2]
        assert np.array_equal(later.state()[number].weights, expected)
        kept = make_job(configs[number], sample).architecture.unpad(expected)
        assert np.array_equal(later.weights(number), kept)


def test_settings_are_grouped_by_minibatches_and_model_and_cut_evenly():
    small, large = on_sample(batch_size=50), on_sample(batch_size=100)
    rates = [on_sample(learning_rate=0.001 * n) for n in range(1, 9)]
    assert stacks([small, large, small]) == [(0, 2), (1,)]
    assert [len(part) for part in stacks(rates, workers=2)] == [4, 4]
    assert [len(part) for part in stacks(rates, most=3)] == [3, 3, 2]
    assert [len(part) for part in stacks(rates, parameters=10**7)] == [1] * 8
    assert sorted(sum(stacks([*rates, small], workers=2), ())) == list(range(9))


def test_what_cannot_be_trained_together_is_refused(sample):
    with pytest.raises(UsageError, match="consistency='asp' cannot be trained together"):
        stacks([on_sample(consistency="asp")])
    with pytest.raises(UsageError, match="cannot be trained together"):
        StackedTraining([on_sample(), on_sample(seed=1)], sample)
