"""From settings and a dataset to the job that a runtime carries out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distsgd.config.class_weights import factors_of
from distsgd.config.settings import TrainConfig
from distsgd.config.without import left_out_rows
from distsgd.core.arrays import Floats
from distsgd.core.model import EXACT, SMALL_PRODUCTS
from distsgd.core.optim import Schedule
from distsgd.core.plan import Plan, validation_rows
from distsgd.data.dataset import Dataset
from distsgd.data.remote.addresses import is_uri
from distsgd.data.row_cache import choose_cache
from distsgd.engine.job import Job

__all__ = ["first_weights", "held_out_rows", "make_job"]


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
    held_out = held_out_rows(config, dataset)
    plan = Plan(
        seed=config.seed,
        sampling=config.sampling,
        examples=len(dataset.train) - len(held_out),
        batch_size=config.batch_size,
        slot_size=config.slot_size,
        epochs=config.epochs,
        shards=_rows_of_shards(dataset, held_out) if config.shuffle == "shard" else (),
        window=config.shuffle_window,
        held_out=held_out,
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
    exact = config.arithmetic == EXACT
    factors = factors_of(config.class_weight, dataset, held_out, largest=exact)
    without = left_out_rows(config.without, dataset)
    if without and exact and factors.largest is None:
        factors = factors._replace(largest=1.0)
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
        mean_weight=factors.mean,
        class_factors=factors.classes,
        largest_factor=factors.largest,
        without=without,
        cache=(
            "shards"
            if dataset.streamed
            else choose_cache(
                config.cache,
                config.cache_budget,
                preprocessing,
                len(dataset.train),
                config.dtype,
                dataset.manifest.values,
            )
        ),
        found=dataset.train.verify(),
    )


def held_out_rows(config: TrainConfig, dataset: Dataset) -> NDArray[np.int64]:
    """The training rows for validation; shards in part are chosen from without their labels.

    Raises:
        CorruptDataError: a shard of the training set is not what the manifest says.
    """
    if not config.validation:
        return np.empty(0, np.int64)
    rows = len(dataset.train)
    labels = None if config.streams else dataset.train.labels
    return validation_rows(config.seed, config.validation, rows, labels)


def _rows_of_shards(dataset: Dataset, held_out: NDArray[np.int64]) -> tuple[int, ...]:
    """How many rows of each training shard are trained on."""
    rows = np.array([entry.rows for entry in dataset.manifest.train])
    ends = np.cumsum([0, *rows])
    return tuple((rows - np.diff(np.searchsorted(held_out, ends))).tolist())


def first_weights(config: TrainConfig, job: Job) -> Floats:
    """The flat parameters that a run with these settings starts from."""
    assert config.init_scale is not None
    return job.architecture.initial(config.seed, config.init_scale, job.dtype)
