"""Advice for made-up machines, whose right answer is known; and for this one, once."""

from dataclasses import replace

import pytest
from made_up import machine

from distsgd.advice.advise import Question, advise, predictions, recommend
from distsgd.advice.machine import load_machine, save_machine
from distsgd.advice.prediction import Predictor, Setting
from distsgd.config.settings import TrainConfig
from distsgd.errors import UsageError


def advice(of, epochs=10, updates_to=None, **asked):
    question = Question(**{"batch_sizes": (256,), **asked})
    return recommend(of, question, predictions(of, question, epochs, updates_to), epochs)


def rate(of, **setting):
    return Predictor(of).rate(Setting(**setting)).images_per_second


def test_short_trainings_need_no_workers():
    found = advice(machine(), epochs=1)
    assert found.best.workers == 0
    assert "A second worker does not pay" in " ".join(found.words)
    assert "Ray takes 5.0 s to start" in " ".join(found.words)


def test_long_trainings_need_all_cores():
    found = advice(machine(), epochs=1000)
    assert (found.best.workers, found.best.policy) == (2, "bsp")
    assert "A second worker pays" in found.words[1]
    assert found.best.images_per_second == pytest.approx(256 / (128 * 4e-6 + 5e-5), rel=0.02)


def test_a_second_worker_does_not_pay_where_memory_is_the_limit():
    found = advice(machine(crowd=1.95), epochs=1000)
    assert found.best.workers == 0


def test_more_workers_than_cores_do_not_pay():
    found = advice(machine(), epochs=1000, workers=4)
    assert found.best.workers == 2
    assert "More workers than 2 cores do not pay" in " ".join(found.words)


@pytest.mark.parametrize(("latency", "best"), [(1e-5, 4), (5e-2, 1)])
def test_machines_pay_if_their_link_is_quick(latency, best):
    cluster = machine(example=1e-4, latency=latency, bandwidth=1e10)
    found = advice(cluster, epochs=1000, machines=4, policies=("bsp",))
    assert found.best.machines == best


def test_local_steps_bear_a_slow_link():
    cluster = machine(example=1e-4, latency=1e-2, bandwidth=1e10)
    found = advice(cluster, epochs=1000, machines=4, policies=("bsp", "local"))
    assert (found.best.machines, found.best.policy) == (2, "local:8")
    compared = {(one.machines, one.policy) for one in found.choices if one.workers == 4}
    assert compared >= {(n, "local:8") for n in (1, 2, 3, 4)}


def test_compression_pays_where_the_link_is_narrow():
    cluster = machine(example=1e-4, latency=1e-4, bandwidth=1e7)
    found = advice(cluster, epochs=1000, machines=4, policies=("asp",), compress=("none", "onebit"))
    assert found.best.compress == "onebit"


def test_asp_bears_a_slow_worker():
    of = machine(cores=4)
    slow = {"workers": 4, "slow": (4.0,)}
    assert rate(of, consistency="asp", **slow) > 1.5 * rate(of, consistency="bsp", **slow)


def test_slow_workers_are_left_out_first():
    found = advice(machine(cores=4), epochs=1000, slow=(8.0,), policies=("bsp",))
    assert found.best.workers == 2
    rates = {one.workers: one.images_per_second for one in found.choices}
    assert rates[4] < rates[2]


def test_the_target_decides_not_the_images():
    of = machine()

    def updates_to(setting):
        return 400_000 if setting.consistency == "asp" else 200_000

    found = advice(of, updates_to=updates_to, target_loss=1.8)
    assert found.best.policy == "bsp"
    assert found.best.seconds == pytest.approx(5 + 200_000 * found.best.update_seconds)


def test_a_target_that_is_not_reached():
    found = advice(machine(), updates_to=lambda setting: None, target_loss=0.1)
    assert "No setting reaches the target" in found.words[0]


def test_a_minibatch_of_one_slot_occupies_one_worker():
    of = machine()
    one, two = (rate(of, workers=n, batch_size=64) for n in (1, 2))
    assert two <= 1.05 * one


def test_predictions_reproduce_the_trials():
    of = machine(crowd=1.2, push=2e-4)
    predictor = Predictor(of)
    for name, trial in of.trials.items():
        channel, *numbers = name.split()
        if channel in ("shm", "tcp"):
            workers, batch = map(int, numbers)
            found = predictor.rate(Setting(workers=workers, batch_size=batch, channel=channel))
            assert found.update_seconds == pytest.approx(trial.value, rel=0.06), name


def test_measurements_are_kept_in_a_file(tmp_path):
    path, of = tmp_path / "machine.json", machine()
    save_machine(of, path)
    assert load_machine(path) == of


@pytest.mark.parametrize(
    "text", ["", "[]", '{"form": 1}', '{"form": 9}', '{"form": 1, "trials": 3}']
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"machine\.json"):
        load_machine(path)


def test_advice_from_a_file_about_a_target(tmp_path):
    path = tmp_path / "machine.json"
    save_machine(machine(examples=1500), path)
    config = TrainConfig(dataset="sample", epochs=4)
    asked = Question(batch_sizes=(64,), policies=("bsp",), target_loss=2.2)
    found = advise(config, asked, machine_file=path)
    assert found.best.updates is not None
    assert found.best.workers == 0
    with pytest.raises(UsageError, match="measured with linear"):
        advise(replace(config, model="mlp:8"), machine_file=path)
    save_machine(machine(examples=1000), path)
    with pytest.raises(UsageError, match="1,000 examples"):
        advise(config, asked, machine_file=path)
