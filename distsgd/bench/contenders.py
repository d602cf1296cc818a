"""What is measured: forms of distsgd, a plain numpy loop, peers, and the limits of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from distsgd.core.server.consistency import POLICIES
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
        inline: ours in one process, which it is divided by; empty for that of the same minibatch.
        plain: the plain numpy loop that it is divided by; empty if that says nothing.
        needs: import name of a package that must be installed.
        kernel: OPENBLAS_CORETYPE of its process; empty for the usual one.
        shares: consecutive contenders with the same word share a process.
    """

    name: str
    what: str
    module: str
    unit: str = IMAGES
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    inline: str = ""
    plain: str = "numpy"
    needs: str = ""
    kernel: str = ""
    shares: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether it is what ours is compared with."""
        return self.module.startswith(f"{_PEERS}.")


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

HASWELL = "Haswell"
"""The kernels of OpenBLAS for processors without AVX-512, by their OPENBLAS_CORETYPE."""

TARGET = 0.40
"""Test accuracy that is timed."""

_PEERS = "distsgd.bench.peers"


def _ours(
    workers: int, batch: int, consistency: str = "bsp", channel: str = "auto", **more: Any
) -> Contender:
    """A form of distsgd.

    Args:
        workers: 0 for one process without Ray.
        batch: size of a minibatch.
        consistency: the policy.
        channel: how gradients travel.
        **more: fields of the contender; `settings` are added to those of the arguments.
    """
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
        **more.pop("settings", {}),
    }  # fmt: skip
    fields: dict[str, Any] = {
        "name": name, "what": what, "module": "distsgd.bench.ours", "batch": batch,
        "shares": "ray" if workers else "",
    }  # fmt: skip
    return Contender(**{**fields, **more, "settings": settings})


def grid(channels: Sequence[str]) -> list[Contender]:
    """Every form of distsgd on Ray."""
    return [
        _ours(workers, batch, consistency, channel)
        for consistency, workers, batch, channel in product(
            ("bsp", "ssp", "asp"), (1, 2), BATCHES, channels
        )
        if channel != "team" or POLICIES[consistency].in_team
    ]


def _beside_inline(channels: Sequence[str]) -> Iterator[Contender]:
    """Ours inline, followed at once by the workers and the peers that it is compared with."""
    yield _plain()
    yield _ours(0, 256)
    yield _ours(2, 256)
    yield _ours(2, 256, "asp")
    yield _numpy_pair(256)
    yield _plain(kernel=HASWELL)
    yield _ours(
        0, 256, name="inline-haswell-256", what="ours, inline, 256, with Haswell kernels",
        inline="inline-haswell-256", plain="numpy-haswell", kernel=HASWELL,
    )  # fmt: skip
    yield _numpy_pair(512)
    yield _ours(0, 512)
    yield _ours(2, 512)
    yield _ours(4, 512)
    yield from _distributed_peers()
    yield _ours(0, 2048)
    yield _ours(2, 2048)
    yield _ours(2, 2048, "asp")
    yield from _pair("mlp", 256, "mlp:100", {"model": "mlp:100"}, plain="")
    yield from _pair("train", 512, "with journal, checkpoints and evaluation", {"whole": True})
    yield from _pair("busy", 256, "beside a busy loop", {"busy": True})
    yield _ours(0, 64)
    yield _ours(2, 64)
    for consistency, workers, batch in (
        ("ssp", 2, 256), ("ssp", 2, 512), ("bsp", 1, 256), ("bsp", 1, 512), ("asp", 1, 256),
    ):  # fmt: skip
        yield _ours(workers, batch, consistency)
    for channel in channels:
        if channel != "auto":
            yield _ours(2, 512, "bsp", channel)


def _pair(
    word: str, batch: int, how: str, settings: dict[str, Any], **more: Any
) -> Iterator[Contender]:
    """Ours inline and with 2 workers, in another way than the usual one."""
    inline = f"inline-{word}-{batch}"
    yield _ours(
        0, batch, name=inline, what=f"ours, inline, {batch}, {how}", inline=inline,
        settings=settings, **more,
    )  # fmt: skip
    yield _ours(
        2, batch, name=f"bsp-2-{word}-{batch}", what=f"ours, 2 workers, bsp, {batch}, {how}",
        inline=inline, settings=settings, **more,
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


def _plain(kernel: str = "") -> Contender:
    end, how = (f"-{kernel.lower()}", f", with {kernel} kernels") if kernel else ("", "")
    return Contender(
        name=f"numpy{end}", what=f"one plain numpy loop, 256{how}", batch=256,
        module=f"{_PEERS}.numpy_loop", kernel=kernel, plain=f"numpy{end}",
        inline=f"inline{end}-256",
    )  # fmt: skip


def _numpy_pair(batch: int) -> Contender:
    return Contender(
        name=f"numpy-2-{batch}",
        what=f"2 processes of numpy, all-reduce in shared memory, {batch}", batch=batch,
        module=f"{_PEERS}.numpy_pair", settings={"batch_size": batch},
    )  # fmt: skip


def _distributed_peers() -> list[Contender]:
    return [
        Contender(
            name="ray-docs", what="Ray docs' parameter server, 2 workers, 256 each", batch=512,
            module=f"{_PEERS}.ray_parameter_server",
        ),
        Contender(
            name="torch-ddp", what="PyTorch DDP gloo, 2 processes, 256 each", batch=512,
            module=f"{_PEERS}.torch_sgd", settings={"processes": 2}, needs="torch",
        ),
    ]  # fmt: skip


def _peers() -> list[Contender]:
    learn: dict[str, Any] = {
        "module": f"{_PEERS}.sklearn_sgd", "batch": 256, "needs": "sklearn",
    }  # fmt: skip
    return [
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

    The two of a ratio follow one another as closely as possible: a machine that others share drifts
    within seconds.

    Args:
        channels: the values of the setting "channel".
    """
    return [*_beside_inline(channels), *_limits(), *_peers(), *_floor(), *_startup()]
