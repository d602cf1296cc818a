"""From settings and a dataset to the job that a runtime carries out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distsgd.config.settings import TrainConfig
from distsgd.core.arrays import Floats
from distsgd.core.model import EXACT, SMALL_PRODUCTS
from distsgd.core.optim import Schedule
from distsgd.core.plan import Plan
from distsgd.data.dataset import Dataset
from distsgd.data.remote.addresses import is_uri
from distsgd.data.row_cache import choose_cache
from distsgd.engine.job import Job

__all__ = ["first_weights", "make_job"]


def make_job(config: TrainConfig, dataset: Dataset, products: str = SMALL_PRODUCTS) -> Job:
    """The job that the settings describe on this dataset.

    Args:
        config: the settings.
        dataset: what to train on.
        products: how slots are multiplied, see `SMALL_PRODUCTS`: for a run, as it began.

    Raises:
        UsageError: a setting cannot be used on it.
        CorruptDataError: a shard of the training set is not what the manifest says.
    """
    plan = Plan(
        seed=config.seed,
        sampling=config.sampling,
        examples=len(dataset.train),
        batch_size=config.batch_size,
        slot_size=config.slot_size,
        epochs=config.epochs,
        shards=(
            tuple(entry.rows for entry in dataset.manifest.train)
            if config.shuffle == "shard"
            else ()
        ),
        window=config.shuffle_window,
    )
    assert config.regularization is not None and config.warmup_epochs is not None
    schedule = Schedule(
        name=config.schedule,
        learning_rate=config.peak_learning_rate,
        total=plan.total_steps,
        warmup=round(config.warmup_epochs * plan.steps_per_epoch),
        every=max(1, round(config.step_epochs * plan.steps_per_epoch)),
        factor=config.step_factor,
        exact=config.arithmetic == EXACT,
    )
    preprocessing = dataset.preprocessing(config.pixel_scale)
    if config.arithmetic == EXACT:
        preprocessing = replace(preprocessing, mean=np.rint(preprocessing.mean))
    return Job(
        folder=str(dataset.folder.resolve()),
        classes=len(dataset.manifest.classes),
        preprocessing=preprocessing,
        model=config.model,
        loss=config.loss,
        regularization=config.regularization,
        optimizer=config.optimizer,
        momentum=config.momentum,
        dtype=config.dtype,
        plan=plan,
        schedule=schedule,
        log_every=config.log_every,
        policy=config.policy(),
        compress=config.compress,
        servers=config.servers,
        error_feedback=config.error_feedback,
        save_seconds=config.checkpoint_seconds,
        hang_seconds=config.hang_seconds,
        verify=config.verify,
        placement=config.placement,
        # A dataset here is not looked for at the address that the settings of a run have for it.
        dataset=config.dataset if dataset.remote or not is_uri(config.dataset) else "",
        digest=dataset.manifest.digest,
        cache_limit=config.cache_limit,
        team=config.channel in ("auto", "team"),
        arithmetic=config.arithmetic,
        products=products,
        cache=(
            "shards"
            if dataset.streamed
            else choose_cache(
                config.cache,
                config.cache_budget,
                preprocessing,
                plan.examples,
                config.dtype,
                dataset.manifest.values,
            )
        ),
        found=dataset.train.verify(),
    )


def first_weights(config: TrainConfig, job: Job) -> Floats:
    """The flat parameters that a run with these settings starts from."""
    assert config.init_scale is not None
    return job.architecture.initial(config.seed, config.init_scale, job.dtype)
