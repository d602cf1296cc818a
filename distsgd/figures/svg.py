"""A chart as a small SVG element without matplotlib, which in a notebook is the user's own.

Axes and text have the colour of the text around them, so that it fits light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from distsgd.figures.charts import LIGHT, Chart, Line

__all__ = ["chart_svg", "ticks"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 22, 34
_MOST_POINTS = 400


def chart_svg(chart: Chart, width: int = 420, height: int = 240) -> str:
    """A chart of lines as SVG; empty if it has no line with two points.

    Args:
        chart: of the form "lines".
        width: in pixels.
        height: likewise.
    """
    lines = [line for line in chart.lines if sum(y is not None for y in line.y) > 1]
    points = [(x, y) for line in lines for x, y in _points(line, chart.log_y)]
    if not points or chart.form != "lines":
        return ""
    (left, right), (low, high) = (_range(values) for values in zip(*points, strict=True))
    low = 0.0 if chart.from_zero else low
    scale = math.log10 if chart.log_y else float
    across = _scaled(left, right, _LEFT, width - _RIGHT)
    up = _scaled(scale(low), scale(high), height - _BOTTOM, _TOP)
    parts = [f'<text x="{_LEFT}" y="14" font-weight="bold">{escape(chart.y_label)}</text>']
    base = height - _BOTTOM
    for value in ticks(low, high, chart.log_y):
        y = up(scale(value))
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="currentColor" opacity="0.15"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in ticks(left, right):
        parts.append(
            f'<text x="{across(value):.1f}" y="{base + 14}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<text x="{(width + _LEFT) / 2:.0f}" y="{height - 4}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )
    for mark in chart.marks:
        if left <= mark.x <= right:
            x = f"{across(mark.x):.1f}"
            parts.append(
                f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{base}" stroke="currentColor" '
                f'opacity="0.5" stroke-dasharray="2 3"><title>{escape(mark.text)}</title></line>'
            )
    for line in lines:
        parts += _curve(line, chart.log_y, across, lambda y: up(scale(y)))
    label = escape(f"{chart.title}: {', '.join(line.name for line in lines)}", quote=True)
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" '
        f'fill="currentColor">{"".join(parts)}{_legend(lines, width)}</svg>'
    )


def _points(line: Line, log: bool) -> Iterator[tuple[float, float]]:
    """The points of a curve that can be drawn, thinned evenly, the last one kept."""
    found = [
        (x, y)
        for x, y in zip(line.x, line.y, strict=True)
        if x is not None and y is not None and math.isfinite(y) and (y > 0 or not log)
    ]
    step = max(1, len(found) // _MOST_POINTS)
    yield from found[::step]
    if found and (len(found) - 1) % step:
        yield found[-1]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _scaled(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) * (end - start) / ((high - low) or 1.0)


def _curve(
    line: Line, log: bool, across: Callable[[float], float], up: Callable[[float], float]
) -> Iterator[str]:
    colour = LIGHT.lines[line.colour % len(LIGHT.lines)]
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in _points(line, log))
    thin = line.style == "faint"
    dashes = ' stroke-dasharray="5 3"' if line.style == "dashed" else ""
    yield (
        f'<polyline points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="{1 if thin else 2}" opacity="{0.45 if thin else 1}"{dashes}/>'
    )


def _legend(lines: Sequence[Line], width: int) -> str:
    parts, y = [], 14
    for number, line in enumerate(lines):
        colour = LIGHT.lines[line.colour % len(LIGHT.lines)]
        x = width - _RIGHT - 84 * (len(lines) - number)
        parts.append(
            f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>'
            f'<text x="{x + 8}" y="{y}">{escape(line.name[:14])}</text>'
        )
    return "".join(parts)


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """About five round numbers from ``low`` to ``high``; powers of ten on a long logarithmic axis.

    Args:
        low: lower end.
        high: upper end, above it.
        log: of a logarithmic axis.
    """
    if log and high / low > 100:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        return [10.0**power for power in powers]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
