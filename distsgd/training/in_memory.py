"""Train without a run folder: from settings and a dataset to weights, with nothing kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

from distsgd.config.jobs import first_weights, make_job
from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.data.dataset import Dataset
from distsgd.engine import events
from distsgd.engine.blas import best_products, one_blas_thread
from distsgd.engine.inline import train_inline
from distsgd.engine.job import Job, Snapshot
from distsgd.errors import DivergedError, RuntimeFailure

__all__ = ["Epoch", "Fit", "fit"]


@dataclass(frozen=True, eq=False)
class Epoch:
    """The state after an epoch.

    Attributes:
        number: of the epoch, from 1.
        loss: mean loss of its minibatches, each before its update, with the penalty after it.
        accuracy: likewise.
        weights: flat parameters after it.
    """

    number: int
    loss: float
    accuracy: float
    weights: Floats


@dataclass(frozen=True, eq=False)
class Fit:
    """What a training came to.

    Attributes:
        job: what was trained.
        weights: flat parameters, shape (parameters,).
        epochs: that were completed.
        updates: of the weights.
    """

    job: Job
    weights: Floats
    epochs: int
    updates: int


def fit(
    config: TrainConfig,
    dataset: Dataset,
    follow: Callable[[Epoch], bool] = lambda epoch: False,
    start: Floats | None = None,
) -> Fit:
    """Train by the same server, plan and kernels as a run, without its journal and checkpoints.

    Nothing is left to resume from: what fails has to be trained again.

    Args:
        config: the settings. With workers, the dataset must be in a folder that they can open.
        dataset: what to train on.
        follow: called after each epoch; returns whether to stop.
        start: flat parameters to begin with; None for the first weights of the settings.

    Raises:
        DivergedError: the loss is no longer finite.
        RuntimeFailure: workers or servers could not do their work.
        UsageError: a setting cannot be used on this dataset.
    """
    stop = Event()
    with one_blas_thread(check_at_end=False):  # each update checks
        job = make_job(config, dataset, best_products())
        weights = first_weights(config, job) if start is None else start
        epochs = 0
        for event in _events(config, job, Snapshot(0, weights, {}), dataset, stop.is_set):
            if isinstance(event, events.EpochEnded):
                epochs = event.epoch + 1
                after = event.snapshot.weights
                loss = event.loss + job.architecture.penalty(after, job.regularization)
                if follow(Epoch(epochs, loss, event.accuracy, after)):
                    stop.set()
            elif isinstance(event, events.Ended):
                if (found := event.diverged) is not None:
                    rate = float(f"{found.learning_rate / 10:.3g}")
                    remedy = config.spelling.given("learning_rate", rate)
                    raise DivergedError(found.step, found.loss, found.learning_rate, remedy)
                return Fit(job, event.snapshot.weights, epochs, event.snapshot.version)
    raise RuntimeFailure("training ended without its last event", "This is a bug; please report it")


def _events(
    config: TrainConfig,
    job: Job,
    start: Snapshot,
    dataset: Dataset,
    should_stop: Callable[[], bool],
) -> Iterator[events.Event]:
    """The events of a training in this process, or by workers on a Ray of our own."""
    if config.workers == 0:
        yield from train_inline(job, start, should_stop, dataset.train)
        return
    from distsgd.on_ray.driver import train_on_ray
    from distsgd.on_ray.session import ray_session

    with ray_session(cpus=config.workers + config.servers):
        yield from train_on_ray(job, start, config.workers, should_stop, config.channel)
