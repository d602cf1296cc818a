"""The bars: what the figures should come to, and whether they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distsgd.bench.measurement import Measurement, ratio

__all__ = ["BARS", "Bar", "Outcome", "judge"]


@dataclass(frozen=True)
class Bar:
    """One bar: a ratio of two contenders, or what one of them came to.

    Attributes:
        what: for people.
        sign: ">=", "<=" or "<".
        target: what the figure is held against.
        of: the contender.
        over: the one that it is divided by; empty for none.
        unit: of the figure: "x" for a ratio.
    """

    what: str
    sign: str
    target: float
    of: str
    over: str = ""
    unit: str = "x"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a bar.

    Attributes:
        what: the bar.
        target: such as ">= 1.75 x".
        got: the figure; None if it was not measured.
        unit: of the figure.
        met: whether it is as it should be; None if it was not measured.
    """

    what: str
    target: str
    got: float | None
    unit: str
    met: bool | None


BARS = (
    Bar("2 workers bsp, 512, over ours inline, 512", ">=", 1.75, "bsp-2-512", "inline-512"),
    Bar("2 workers bsp, 256, over ours inline, 256", ">=", 1.6, "bsp-2-256", "inline-256"),
    Bar(
        "2 workers asp, 256 a worker, over ours inline, 256", ">=", 1.85, "asp-2-256", "inline-256"
    ),
    Bar("ours inline, 256, over one plain numpy loop", ">=", 1.4, "inline-256", "numpy"),
    Bar("slot products over the sgemm peak of one thread", ">=", 0.5, "slot-products", "sgemm"),
    Bar("2 workers bsp, 512, over Ray docs' parameter server", ">=", 8, "bsp-2-512", "ray-docs"),
    Bar("2 workers bsp, 512, over PyTorch DDP", ">=", 5, "bsp-2-512", "torch-ddp"),
    Bar("2 workers bsp, 512, over partial_fit, log loss", ">=", 20, "bsp-2-512", "sklearn-log"),
    Bar("2 workers bsp, 512, over partial_fit, hinge", ">=", 20, "bsp-2-512", "sklearn-hinge"),
    Bar("train --epochs 1 --workers 2 over bare Ray", "<=", 2.0, "train-1-epoch", "ray"),
    Bar("distsgd --help", "<=", 0.5, "help", unit="s"),
    Bar("import distsgd", "<=", 0.3, "import", unit="s"),
    Bar("to 40 % test accuracy, over PyTorch DDP", "<", 1, "accuracy", "accuracy-ddp"),
)
"""Throughput: more is better. Whole processes: less is."""


def judge(bar: Bar, measured: Mapping[str, Measurement]) -> Outcome:
    """Hold what was measured against a bar."""
    if bar.over:
        got = ratio(measured, bar.of, bar.over)
    else:
        got = measured[bar.of].median if bar.of in measured else None
    met = None if got is None else {
        ">=": got >= bar.target, "<=": got <= bar.target, "<": got < bar.target,
    }[bar.sign]  # fmt: skip
    return Outcome(
        what=bar.what,
        target=f"{bar.sign} {bar.target:g} {bar.unit}",
        got=got,
        unit=bar.unit,
        met=met,
    )
