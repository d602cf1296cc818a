"""What counts of the machines of a cluster."""

import pytest
from made_up import machine

from distsgd.advice.advise import Question, predictions
from distsgd.advice.cluster_machine import of_cluster
from distsgd.advice.machine import load_machine, save_machine


def test_the_slowest_machine_and_link_count_with_the_processors_of_all(tmp_path):
    machines = [machine(cores=2), machine(cores=4, example=9e-6), machine(cores=2)]
    whole = of_cluster(machines, [(1e-3, 1e9), (2e-3, 5e8)])
    assert whole.trials == machines[1].trials
    assert (whole.latency, whole.bandwidth, whole.node_cores) == (2e-3, 5e8, (2, 4, 2))
    choices = predictions(whole, Question(batch_sizes=(256,)), 10)
    assert {one.machines for one in choices} == {1, 2, 3}
    assert max(one.workers for one in choices) == 8
    save_machine(whole, path := tmp_path / "cluster.json")
    assert load_machine(path) == whole


def test_workers_of_one_machine_have_no_link():
    whole = of_cluster([machine()], [])
    assert whole.node_cores == (2,)
    assert whole.latency == 0
    assert {one.machines for one in predictions(whole, Question(batch_sizes=(256,)), 10)} == {1}


def test_the_slowest_link_decides():
    alike = [machine(example=1e-4)] * 2
    question = Question(batch_sizes=(256,), policies=("bsp",), workers=4)

    def best(*link):
        return predictions(of_cluster(alike, [link]), question, 1000)[0].machines

    assert best(1e-5, 1e10) == 2
    assert best(5e-2, 1e10) == 1


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_link_is_measured(size, monkeypatch):
    from distsgd.transport import link_trial as trial

    monkeypatch.setattr(trial, "_SECONDS", 0.01)
    echo = trial.LinkEcho("127.0.0.1")
    latency, bandwidth = trial.link_trial("127.0.0.1", echo.port, echo.token, size)
    assert 0 < latency < 1
    assert bandwidth > 1e5
