"""What is measured: forms of distsgd, a plain numpy loop, peers, and the limits of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from distsgd.errors import UsageError

__all__ = [
    "IMAGES",
    "TARGET",
    "Contender",
    "choose",
    "grid",
    "usual_contenders",
]


IMAGES, GFLOPS, GIGABYTES, SECONDS = "images/s", "GFLOP/s", "GB/s", "s"
"""Units."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a table.

    Attributes:
        name: unique; what the argument `only` chooses by.
        what: description for people.
        module: run as ``python -m MODULE``, which measures and prints the value.
        unit: of the value.
        settings: passed to the module.
        batch: global minibatch, 0 where there is none.
        needs: import name of a package that must be installed.
        shares: consecutive contenders with the same word share a process.
    """

    name: str
    what: str
    module: str
    unit: str = IMAGES
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    needs: str = ""
    shares: str = ""


def choose(
    only: str | None, usual: Sequence[Contender], others: Sequence[Contender]
) -> list[Contender]:
    """The contenders that are chosen, in their usual order.

    Args:
        only: names by commas, or what several names begin with ("inline" for inline-64,
            inline-256, ...); None for the usual ones.
        usual: measured by default, and matched by prefixes.
        others: further ones, matched by full name.

    Raises:
        UsageError: nothing has a name.
    """
    if only is None:
        return list(usual)
    known = {contender.name: contender for contender in (*usual, *others)}
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in only.split(","))):
        prefixed = {one.name for one in usual if one.name.startswith(f"{word}-")}
        matches = {word} if word in known else prefixed
        if not matches:
            names = ", ".join(one.name for one in usual)
            raise UsageError(f"--only: there is no {word}", f"There are: {names}")
        chosen |= matches
    if not chosen:
        raise UsageError("--only names nothing", "Give names by commas: --only numpy,inline")
    return [contender for name, contender in known.items() if name in chosen]


BATCHES = (64, 256, 512, 2048)
"""Global minibatches that distsgd is measured with."""

TARGET = 0.40
"""Test accuracy that is timed."""

_PEERS = "distsgd.bench.peers"


def _ours(
    workers: int, batch: int, consistency: str = "bsp", channel: str = "auto", **more: Any
) -> Contender:
    end = "" if channel == "auto" else f"-{channel}"
    if workers == 0:
        name, what = f"inline-{batch}", f"ours, inline, {batch}"
    else:
        name = f"{consistency}-{workers}-{batch}{end}"
        each = " a worker" if consistency == "asp" else ""
        by = "" if channel == "auto" else f", channel {channel}"
        fleet = "1 worker" if workers == 1 else f"{workers} workers"
        what = f"ours, {fleet}, {consistency}, {batch}{each}{by}"
    settings = {
        "workers": workers, "batch_size": batch, "consistency": consistency, "channel": channel,
    }  # fmt: skip
    return Contender(
        name=more.get("name", name), what=more.get("what", what), module="distsgd.bench.ours",
        batch=batch, settings={**settings, **more.get("settings", {})},
        shares="ray" if workers else "",
    )  # fmt: skip


def _inline() -> list[Contender]:
    return [_ours(0, batch) for batch in BATCHES]


def grid(channels: Sequence[str]) -> list[Contender]:
    """Every form of distsgd on Ray."""
    return [
        _ours(workers, batch, consistency, channel)
        for consistency, workers, batch, channel in product(
            ("bsp", "ssp", "asp"), (1, 2), BATCHES, channels
        )
    ]


def _on_ray(channels: Sequence[str]) -> Iterator[Contender]:
    """The forms of distsgd that are measured by default."""
    for batch in BATCHES:
        yield _ours(2, batch)
    for consistency, workers, batch in (
        ("asp", 2, 256), ("asp", 2, 2048), ("ssp", 2, 256), ("ssp", 2, 512),
        ("bsp", 1, 256), ("bsp", 1, 512), ("asp", 1, 256),
    ):  # fmt: skip
        yield _ours(workers, batch, consistency)
    for channel in channels:
        if channel != "auto":
            yield _ours(2, 512, "bsp", channel)
    yield _ours(
        2, 512, name="train-2-512", settings={"whole": True},
        what="ours, 2 workers, bsp, 512, with journal, checkpoints and evaluation",
    )  # fmt: skip


def _limits() -> list[Contender]:
    """Limits of two workers on this machine."""
    limits = [
        (f"limit-{batch}", "server", batch, f"limit: 2 workers and the least of servers, {batch}")
        for batch in (256, 512)
    ]
    what = "limit: 2 loops that share nothing, 512 each"
    limits.append(("limit-independent-512", "independent", 512, what))
    return [
        Contender(
            name=name, what=what, batch=batch, module="distsgd.bench.limits",
            settings={"limit": limit, "batch_size": batch}, shares="limits",
        )
        for name, limit, batch, what in limits
    ]  # fmt: skip


def _floor() -> list[Contender]:
    names = {
        "sgemm": ("sgemm of 1024 x 1024 x 1024, one thread: the peak", GFLOPS),
        "memory": ("memory read, one thread", GIGABYTES),
        "slot-products": ("ours, the two products of a slot alone", GFLOPS),
        "slot-kernel": ("ours, the whole slot gradient, without gathering rows", GFLOPS),
    }
    return [
        Contender(name=name, what=what, unit=unit, module="distsgd.bench.floor", shares="floor")
        for name, (what, unit) in names.items()
    ]


def _plain() -> Contender:
    return Contender(
        name="numpy", what="one plain numpy loop, 256", batch=256, module=f"{_PEERS}.numpy_loop"
    )


def _peers() -> list[Contender]:
    learn: dict[str, Any] = {
        "module": f"{_PEERS}.sklearn_sgd", "batch": 256, "needs": "sklearn",
    }  # fmt: skip
    return [
        Contender(
            name="ray-docs", what="Ray docs' parameter server, 2 workers, 256 each", batch=512,
            module=f"{_PEERS}.ray_parameter_server",
        ),
        Contender(
            name="torch-ddp", what="PyTorch DDP gloo, 2 processes, 256 each", batch=512,
            module=f"{_PEERS}.torch_sgd", settings={"processes": 2}, needs="torch",
        ),
        Contender(
            name="torch", what="PyTorch, one process, 256", batch=256,
            module=f"{_PEERS}.torch_sgd", settings={"processes": 1}, needs="torch",
        ),
        Contender(
            name="sklearn-log", what="scikit-learn partial_fit, log loss, 256",
            settings={"loss": "log_loss"}, **learn,
        ),
        Contender(
            name="sklearn-hinge", what="scikit-learn partial_fit, hinge, 256",
            settings={"loss": "hinge"}, **learn,
        ),
    ]  # fmt: skip


def _startup() -> list[Contender]:
    names = {
        "import": "import distsgd",
        "help": "distsgd --help",
        "ray": "import ray, ray.init(), ray.shutdown()",
        "ray-light": "the same without Ray's dashboard",
        "train-1-epoch": "distsgd train --epochs 1 --workers 2",
        "accuracy": f"ours, 2 workers, to {TARGET:.0%} test accuracy".replace("%", " %"),
        "accuracy-ddp": f"PyTorch DDP, 2 processes, to {TARGET:.0%}".replace("%", " %"),
    }
    return [
        Contender(
            name=name, what=what, unit=SECONDS, module="distsgd.bench.startup",
            needs="torch" if name == "accuracy-ddp" else "",
        )
        for name, what in names.items()
    ]  # fmt: skip


def usual_contenders(channels: Sequence[str]) -> list[Contender]:
    """The contenders that are measured by default, in order.

    Args:
        channels: the values of the setting "channel".
    """
    return [
        _plain(), *_inline(), *_on_ray(channels), *_limits(), *_peers(), *_floor(), *_startup(),
    ]  # fmt: skip
