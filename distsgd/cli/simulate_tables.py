"""How simulations are shown to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distsgd.cli.output import count, percent, print_pairs, print_table
from distsgd.simulation.results import Comparison, CurvePoint, SimulationResult

__all__ = ["show_comparison", "show_result"]

_ROWS = 12
"""Most rows of the curve that are shown; --json has them all."""


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.4g} s"


def show_result(result: SimulationResult) -> None:
    """The curve of one simulation, and what it came to."""
    print_table(
        ("virtual seconds", "updates", "training loss", "test accuracy"),
        [
            (f"{point.seconds:.4g}", count(point.update), f"{point.train_loss:.4f}",
             percent(point.test_accuracy))
            for point in _thinned(result.curve)
        ],
    )  # fmt: skip
    print_pairs(_pairs(result))


def _pairs(result: SimulationResult) -> Iterator[tuple[str, str]]:
    yield "policy", f"{result.policy}, {len(result.waiting_shares)} workers"
    yield "ended", f"{result.status} after {_seconds(result.seconds)}"
    if result.target_loss is not None:
        yield f"to loss {result.target_loss:g}", _seconds(result.time_to_loss)
    if result.target_accuracy is not None:
        yield f"to {percent(result.target_accuracy)}", _seconds(result.time_to_accuracy)
    yield "updates", count(result.updates)
    yield "test accuracy", percent(result.test_accuracy)
    least, most = min(result.waiting_shares), max(result.waiting_shares)
    yield "waiting", f"{percent(result.waiting_share)} ({percent(least)} to {percent(most)})"
    yield "staleness", _histogram(result.staleness)
    yield "dropped, requeued", f"{count(result.dropped)}, {count(result.requeued)}"
    yield "weights", f"sha256 {result.weights_sha256}"


def _histogram(staleness: dict[str, int]) -> str:
    total = sum(staleness.values()) or 1
    shown = [f"{age}: {percent(n / total)}" for age, n in list(staleness.items())[:10]]
    return ", ".join(shown) + (", ..." if len(staleness) > 10 else "")


def _thinned(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most so many points, evenly spaced, the first and the last among them."""
    if len(curve) <= _ROWS:
        return list(curve)
    return [curve[i * (len(curve) - 1) // (_ROWS - 1)] for i in range(_ROWS)]


def show_comparison(found: Comparison) -> None:
    """One row a policy."""
    headings = ["policy"]
    if found.target_loss is not None:
        headings.append(f"s to loss {found.target_loss:g}")
    if found.target_accuracy is not None:
        headings.append(f"s to {percent(found.target_accuracy)}")
    headings += ["s", "loss", "accuracy", "waiting", "staleness", "updates", "dropped", "requeued"]
    rows = []
    for row in found.rows:
        cells = [row.policy + (f" ({row.diverged} diverged)" if row.diverged else "")]
        if found.target_loss is not None:
            cells.append(_spread(row.times_to_loss))
        if found.target_accuracy is not None:
            cells.append(_spread(row.times_to_accuracy))
        cells += [
            f"{row.seconds:.4g}", f"{row.train_loss:.4f}", percent(row.test_accuracy),
            percent(row.waiting_share), f"{row.mean_staleness:.1f}", count(row.updates),
            count(row.dropped), count(row.requeued),
        ]  # fmt: skip
        rows.append(cells)
    title = f"means over {len(found.seeds)} seeds" if len(found.seeds) > 1 else ""
    print_table(headings, rows, title, optional=("dropped", "requeued", "updates", "staleness"))


def _spread(times: Sequence[float | None]) -> str:
    """Mean, least and most; or how many got there."""
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return f"{len(known)} of {len(times)}" if len(times) > 1 else "-"
    mean = f"{sum(known) / len(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4g}-{max(known):.4g})"
