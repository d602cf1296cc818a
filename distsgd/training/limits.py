"""Whether a training can be placed at all, seen before anything of it is made."""

from __future__ import annotations

import math
from collections.abc import Callable

from distsgd.config.settings import TrainConfig
from distsgd.core.model.models import make_architecture
from distsgd.data.dataset import Dataset
from distsgd.data.row_cache import choose_cache
from distsgd.errors import UsageError
from distsgd.on_ray.capacity import check_processes, free_memory, process_memory
from distsgd.training.memory import Sizes, sizes_of, what_fits

__all__ = ["check_fleet", "check_memory", "check_sizes", "size"]

_LEAST_RANGE = 256
"""Parameters that a server has at least: fewer are not worth a message."""


def check_sizes(config: TrainConfig, dataset: Dataset, *, elsewhere: bool = False) -> None:
    """See that the minibatch, the servers and the model fit the dataset and the memory.

    Args:
        config: the settings.
        dataset: what is trained on.
        elsewhere: whether workers and servers run on a cluster; their memory is not known here.

    Raises:
        UsageError: they do not; says what would do.
    """
    examples = dataset.manifest.rows("train")
    if config.batch_size > examples:
        raise UsageError(
            f"{config.given('batch_size')} is larger than the training set of {examples}",
            f"Give a number from 1 to {examples}",
        )
    features, classes = math.prod(dataset.manifest.shape), len(dataset.manifest.classes)
    parameters = make_architecture(config.model, features, classes).parameters
    most = max(4, parameters // _LEAST_RANGE)
    if config.servers > most:
        raise UsageError(
            f"{config.given('servers')} is more than W, of {parameters:,} parameters, can sensibly "
            "be cut into",
            f"Give a number from 1 to {most}",
        )
    preprocessing, cache = dataset.preprocessing(config.pixel_scale), "shards"
    if not dataset.streamed:
        cache = choose_cache(
            config.cache, config.cache_budget, preprocessing, examples, config.dtype
        )
    _check_memory(config, sizes_of(config, dataset, cache), elsewhere)


def _check_memory(config: TrainConfig, sizes: Sizes, elsewhere: bool) -> None:
    """Raises UsageError if the processes of a training need more memory than there is."""
    free, own = free_memory(), process_memory()

    def fits(sizes: Sizes) -> bool:
        needs = sizes.needs()
        here = needs.driver if elsewhere else needs.total
        largest = needs.driver if elsewhere else max(needs.driver, needs.worker, needs.server)
        return (free is None or here <= free) and (own is None or largest <= own)

    if fits(sizes):
        return
    needs, found = sizes.needs(), what_fits(sizes, fits)
    name = {"hidden": "model"}.get(found[0], found[0]) if found else "model"
    what = config.given(name)
    if name == "model":
        what += f" on {sizes.features:,} features"
    parts = ""
    if sizes.workers and not elsewhere:
        parts = (
            f" ({size(needs.driver)} in the driver, {size(needs.worker)} in each worker, "
            f"{size(needs.server)} in each server)"
        )
    limit = min(bytes_ for bytes_ in (free, own) if bytes_ is not None)
    raise UsageError(
        f"{what} takes {size(needs.driver if elsewhere else needs.total)} of memory{parts}, and "
        f"{size(limit)} are free" + (" to a process (ulimit)" if limit == own else ""),
        _less(config, found),
    )


def check_memory(what: str, needed: int, count: int, said: Callable[[int], str]) -> None:
    """See that there is memory for something of which less can be asked for.

    Args:
        what: the number as the user has written it, such as --examples 50000.
        needed: bytes that it takes.
        count: the number.
        said: how another number of it is written.

    Raises:
        UsageError: there is too little; says what fits.
    """
    known = [free for free in (free_memory(), process_memory()) if free is not None]
    if known and needed > min(known):
        fits = count * min(known) // needed
        raise UsageError(
            f"{what} takes {size(needed)} of memory, and {size(min(known))} are free",
            f"{said(fits)} fits, or anything smaller" if fits else "Free some memory",
        )


def _less(config: TrainConfig, found: tuple[str, int] | None) -> str:
    """What to do about it."""
    if found is None:
        return "Free some memory, or train where there is more"
    name, most = found
    given = config.spelling.given
    fitting = given("model", f"mlp:{most}") if name == "hidden" else given(name, most)
    return f"{fitting} fits, or anything {'larger' if name == 'slot_size' else 'smaller'}"


def size(count: int) -> str:
    """Bytes for a reader, such as "3.2 GiB" or "40 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{-(-count // 2**20)} MiB"


def check_fleet(config: TrainConfig, *, elsewhere: bool = False) -> None:
    """See that there is room for the workers and servers.

    Args:
        config: the settings.
        elsewhere: whether they run on a cluster that is yet to be joined: there, workers that find
            no room wait for nodes that join.

    Raises:
        UsageError: there is none; says what would do.
    """
    if config.workers and not elsewhere:
        few, many = sorted(("workers", "servers"), key=lambda name: int(getattr(config, name)))
        check_processes(getattr(config, many), getattr(config, few), config.given(many))
