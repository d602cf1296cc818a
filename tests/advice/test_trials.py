"""The trials that measure a machine."""

from distsgd.advice.trials import _lease_seconds
from distsgd.config.jobs import make_job
from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import open_dataset


class Orders:
    """The end of a pipe whose other end says at once what is awaited."""

    def send(self, word):
        pass

    def recv(self):
        return "go"


def test_leases_are_of_full_minibatches_over_many_epochs():
    """The last minibatch of an epoch of the sample has 3 slots, not 7."""
    config = TrainConfig(dataset="sample", batch_size=448, epochs=100_000)
    job = make_job(config, open_dataset("sample"))
    assert job.plan.slots(job.plan.steps_per_epoch - 1) == 3
    assert 0 < _lease_seconds(Orders(), job, None, 7, 0.05) < 0.05
