"""What a benchmark came to: rows, bars, and how they read.

The bars: what the figures should come to, and whether they do.

A report as a file to commit: markdown, without a date.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from distsgd.bench.contenders import IMAGES, Contender
from distsgd.bench.environment import Measurement, ratio

__all__ = [
    "BARS",
    "Bar",
    "Report",
    "judge",
    "judged",
    "make_rows",
    "markdown",
    "tables",
]


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
        flag: what /proc/cpuinfo has to say of the processor, for the bar to hold there.
    """

    what: str
    sign: str
    target: float
    of: str
    over: str = ""
    unit: str = "x"
    flag: str = ""


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
    Bar("2 workers bsp, 256, over ours inline", ">=", 1.7, "bsp-2-256", "inline-256"),
    Bar("2 workers bsp, 512, over ours inline", ">=", 1.8, "bsp-2-512", "inline-512"),
    Bar("2 workers bsp, 2048, over ours inline", ">=", 1.85, "bsp-2-2048", "inline-2048"),
    Bar("2 workers bsp, mlp:100, 256, over ours inline", ">=", 1.75,
        "bsp-2-mlp-256", "inline-mlp-256"),
    Bar("2 workers asp, 256 a worker, over ours inline", ">=", 1.85, "asp-2-256", "inline-256"),
    Bar("the whole of train, 2 workers over inline, 512", ">=", 1.7,
        "bsp-2-train-512", "inline-train-512"),
    Bar("beside a busy loop, 2 workers over inline, 256", ">=", 1.0,
        "bsp-2-busy-256", "inline-busy-256"),
    Bar("4 workers bsp, 512, over 2 workers", ">=", 0.8, "bsp-4-512", "bsp-2-512"),
    Bar("2 workers bsp, 256, over 2 processes of numpy", ">=", 0.9, "bsp-2-256", "numpy-2-256"),
    Bar("2 workers bsp, 512, over 2 processes of numpy", ">=", 0.9, "bsp-2-512", "numpy-2-512"),
    Bar("2 workers bsp, 512, over Ray docs' parameter server", ">=", 10, "bsp-2-512", "ray-docs"),
    Bar("2 workers bsp, 512, over PyTorch DDP", ">=", 6, "bsp-2-512", "torch-ddp"),
    Bar("ours inline, 256, over one plain numpy loop, with AVX-512", ">=", 1.4,
        "inline-256", "numpy", flag="avx512f"),
    Bar("ours inline, 256, over one plain numpy loop, with Haswell kernels", ">=", 1.1,
        "inline-haswell-256", "numpy-haswell"),
    Bar("slot products over the sgemm peak of one thread", ">=", 0.5, "slot-products", "sgemm"),
    Bar("2 workers bsp, 512, over partial_fit, log loss", ">=", 20, "bsp-2-512", "sklearn-log"),
    Bar("2 workers bsp, 512, over partial_fit, hinge", ">=", 20, "bsp-2-512", "sklearn-hinge"),
    Bar("train --epochs 1 --workers 2 over bare Ray", "<=", 2.0, "train-1-epoch", "ray"),
    Bar("distsgd --help", "<=", 0.5, "help", unit="s"),
    Bar("import distsgd", "<=", 0.3, "import", unit="s"),
    Bar("to 40 % test accuracy, over PyTorch DDP", "<", 1, "accuracy", "accuracy-ddp"),
)  # fmt: skip
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


_DECIMALS = {IMAGES: 0, "s": 2}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender.

    Attributes:
        name: what `--only` calls it.
        what: what it is.
        unit: of the figures.
        median: over the rounds; None if it was not measured.
        least: the least of the rounds.
        most: the most of the rounds.
        over_plain: how many times the plain numpy loop; None where that says nothing.
        over_inline: how many times ours in one process, with the same minibatch; likewise.
        rounds: the figure of every round.
        skipped: why it was not measured, or not in every round.
        channel: how gradients travelled, where the contender says.
        server_busy: share of the time that our server was busy, where it is known.
        test_accuracy: what training reached, where that counts.
    """

    name: str
    what: str
    unit: str
    median: float | None
    least: float | None
    most: float | None
    over_plain: float | None
    over_inline: float | None
    rounds: tuple[float, ...]
    skipped: str
    channel: str | None = None
    server_busy: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A benchmark.

    Attributes:
        command: the command line that repeats it.
        dataset: name or path.
        rounds: how many.
        seconds: how long each contender was measured in a round.
        environment: hardware and versions.
        others_busy: cores that were busy with something else between the measurements.
        rows: of every contender, in order.
        bars: of those that there are.
        wall_seconds: how long all of it took.
    """

    command: str
    dataset: str
    rounds: int
    seconds: float
    environment: dict[str, str]
    others_busy: float
    rows: tuple[Row, ...]
    bars: tuple[Outcome, ...]
    wall_seconds: float


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column is words, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_rows(
    contenders: Sequence[Contender], measured: Mapping[str, Measurement]
) -> tuple[Row, ...]:
    """One row a contender."""
    return tuple(_row(contender, measured) for contender in contenders)


def _row(contender: Contender, measured: Mapping[str, Measurement]) -> Row:
    found, trains = measured[contender.name], contender.unit == IMAGES
    inline = contender.inline or f"inline-{contender.batch}"
    return Row(
        name=contender.name,
        what=contender.what,
        unit=contender.unit,
        median=found.median,
        least=found.least,
        most=found.most,
        over_plain=ratio(measured, contender.name, contender.plain) if trains else None,
        over_inline=ratio(measured, contender.name, inline) if trains else None,
        rounds=tuple(found.values.values()),
        skipped=found.skipped,
        **found.details,
    )


def judged(measured: Mapping[str, Measurement], flags: Container[str]) -> tuple[Outcome, ...]:
    """The bars whose contenders were wanted.

    Args:
        measured: by name of the contender.
        flags: of this processor.
    """
    return tuple(
        judge(bar, measured)
        for bar in BARS
        if {bar.of, bar.over or bar.of} <= measured.keys() and (not bar.flag or bar.flag in flags)
    )


def tables(report: Report) -> list[Table]:
    """The report as tables; one without rows is left out."""
    throughput = [row for row in report.rows if row.unit == IMAGES]
    floor = [row for row in report.rows if row.unit.startswith("G")]
    processes = [row for row in report.rows if row.unit == "s"]
    all_tables = [
        Table(
            "Training, in images a second",
            ("what", "images/s (median, least to most)", "over numpy loop", "over our inline"),
            tuple((_what(row), _figure(row), _times(row.over_plain), _times(row.over_inline))
                  for row in throughput),
        ),
        Table(
            "The floor, one thread",
            ("what", "median, least to most"),
            tuple((_what(row), _figure(row, with_unit=True)) for row in floor),
        ),
        Table(
            "Whole processes",
            ("what", "seconds (median, least to most)"),
            tuple((_what(row), _figure(row)) for row in processes),
        ),
        bar_table(report.bars),
    ]  # fmt: skip
    return [table for table in all_tables if table.rows]


def bar_table(bars: Sequence[Outcome]) -> Table:
    """The bars: target, what was got, and whether it is met."""
    words = {True: "met", False: "not met", None: "not measured"}
    return Table(
        "Bars",
        ("what", "target", "got", ""),
        tuple((bar.what, bar.target, _got(bar), words[bar.met]) for bar in bars),
    )


def _got(bar: Outcome) -> str:
    return "" if bar.got is None else f"{bar.got:.2f} {bar.unit}"


def _what(row: Row) -> str:
    notes = []
    if row.channel and row.channel not in row.what:
        notes.append(row.channel)
    if row.server_busy is not None:
        notes.append(f"server busy {row.server_busy:.0%}".replace("%", " %"))
    if row.test_accuracy is not None:
        notes.append(f"reached {row.test_accuracy:.1%}".replace("%", " %"))
    return f"{row.what} ({', '.join(notes)})" if notes else row.what


def _figure(row: Row, with_unit: bool = False) -> str:
    if row.median is None:
        return f"skipped: {row.skipped}"
    digits = _DECIMALS.get(row.unit, 1)
    median, least, most = (f"{n:,.{digits}f}" for n in (row.median, row.least, row.most))
    text = median if len(row.rounds) == 1 else f"{median} ({least} to {most})"
    return f"{text} {row.unit}" if with_unit else text


def _times(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def markdown(report: Report) -> str:
    """The whole file."""
    parts = ["# Benchmark", f"```sh\n{report.command}\n```", _method(report)]
    parts.append("\n".join(f"- {name}: {value}" for name, value in report.environment.items()))
    for table in tables(report):
        parts.append(f"## {table.title}")
        parts.append(_table(table))
    return "\n\n".join(parts) + "\n"


def _method(report: Report) -> str:
    rounds = "1 round" if report.rounds == 1 else f"{report.rounds} rounds"
    return (
        f"Dataset {report.dataset}; {rounds}, every other one in reverse, {report.seconds:g} s of "
        f"steps each; one BLAS thread a process; {report.wall_seconds:.0f} s in all. Figures are "
        "medians over the rounds; ratios are medians of the ratios within a round. Cores busy with "
        f"something else meanwhile: {report.others_busy:.1f}."
    )


def _table(table: Table) -> str:
    lines = [table.headings, ("---", *("---:",) * (len(table.headings) - 1)), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
