"""A run as a piece of HTML for a notebook: its result, its curves, its templates.

All text is escaped: names of runs, classes and settings come from users and files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path

from distsgd.errors import DistsgdError
from distsgd.figures.charts import Tiles
from distsgd.figures.drawn import rendered, svg_element
from distsgd.figures.of_runs import build
from distsgd.runs.history import History, HistoryReader

__all__ = ["run_html"]

_MOST_TILES = 20
_TILE = 64
"""Pixels of a template in a page."""

_POINTS = 400


def run_html(folder: str | Path) -> str:
    """A run, which may be training, as HTML.

    Args:
        folder: its folder.
    """
    try:
        run = HistoryReader(folder, _POINTS).look()
    except DistsgdError as error:
        return f"<div>{escape(str(folder))}: {escape(str(error))}</div>"
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in _facts(run)
    )
    charts = "".join(_charts(run))
    return (
        f"<div><strong>{escape(run.name)}</strong> ({escape(run.state)})</div>"
        f"<table>{rows}</table><div>{charts}</div>{_templates(run)}"
    )


def _facts(run: History) -> Iterator[tuple[str, str]]:
    settings = run.settings
    parts = [str(settings.get(name)) for name in ("model", "loss") if settings.get(name)]
    yield "model", f"{', '.join(parts)} on {run.dataset.get('name') or settings.get('dataset')}"
    accuracy = [share for share in run.epochs.get("test_accuracy", []) if share is not None]
    if accuracy:
        yield "test accuracy", f"{accuracy[-1]:.1%}"
    held_out = [share or 0.0 for share in run.epochs.get("validation_accuracy", [])]
    if held_out:
        best = max(range(len(held_out)), key=held_out.__getitem__)
        epoch = run.epochs["epoch"][best]
        last = f"{held_out[-1]:.1%}, at best {held_out[best]:.1%} (epoch {epoch})"
        yield "validation accuracy", last
    yield "updates", f"{run.updates:,} of {run.updates_planned or run.updates:,}"
    if run.seconds > 0:
        rate = run.examples / run.seconds
        yield "time of steps", f"{run.seconds:.1f} s, {rate:,.0f} images/s"
    if run.error:
        yield "problem", run.error
    if chosen := ", ".join(f"{name}={value}" for name, value in run.chosen.items()):
        yield "settings", chosen
    if run.user_tags:
        yield "tags", " ".join(run.user_tags)
    yield "folder", run.folder


def _charts(run: History) -> Iterator[str]:
    for name in ("loss", "accuracy"):
        with suppress(DistsgdError):  # nothing was recorded yet
            yield svg_element(rendered(build(name, [run]), "svg").decode(), name)


def _templates(run: History) -> str:
    with suppress(DistsgdError):  # no images, or a checkpoint that was removed meanwhile
        figure = build("templates", [run])
        if isinstance(figure, Tiles):
            return f"<div>{''.join(_tiles(figure))}</div>"
    return ""


def _tiles(figure: Tiles) -> Iterator[str]:
    for tile in figure.tiles[:_MOST_TILES]:
        picture = tile.to_json()["png"]
        name = escape(tile.caption, quote=True)
        yield (
            '<figure style="display:inline-block;margin:2px;text-align:center">'
            f'<img src="{picture}" alt="template of {name}" width="{_TILE}" height="{_TILE}" '
            f'style="image-rendering:pixelated"/><figcaption>{name}</figcaption></figure>'
        )
