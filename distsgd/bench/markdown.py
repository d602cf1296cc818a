"""A report as a file to commit: markdown, without a date."""

from __future__ import annotations

from distsgd.bench.report import Report, Table, tables

__all__ = ["markdown"]


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
        f"Dataset {report.dataset}; {rounds}, interleaved, {report.seconds:g} s of steps each; "
        f"one BLAS thread a process; {report.wall_seconds:.0f} s in all. Figures are medians over "
        "the rounds; ratios are medians of the ratios within a round. Cores busy with "
        f"something else meanwhile: {report.others_busy:.1f}."
    )


def _table(table: Table) -> str:
    lines = [table.headings, ("---", *("---:",) * (len(table.headings) - 1)), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
