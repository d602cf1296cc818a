from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from figures.histories import history
from PIL import Image

from distsgd.figures.charts import Chart, Tile, Tiles
from distsgd.figures.drawn import SIZES, draw, look, new_figure, rendered
from distsgd.figures.of_runs import FIGURES, build

SEVERAL = [history(f"{c}{s}", consistency=c, seed=s) for c in ("bsp", "asp") for s in (0, 1)]


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "templates"])
def test_every_figure_is_drawn(name: str) -> None:
    rendered(build(name, [history()]), "svg")
    if FIGURES[name].several:
        rendered(build(name, SEVERAL), "svg", "column", dark=True)


def test_templates_are_drawn() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for number in (10, 100):
        tiles = tuple(Tile(f"class {i}", pixels) for i in range(number))
        rendered(Tiles(name="templates", title="Templates", tiles=tiles), "png")
    assert Tile("a", pixels).to_json()["png"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(form: str) -> None:
    loss = build("loss", [history()])
    first = rendered(loss, form)
    assert first == rendered(loss, form)
    assert first != rendered(loss, form, dark=True)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form]
    assert first.startswith(start)


def test_sizes() -> None:
    loss = build("loss", [history()])
    with Image.open(io.BytesIO(rendered(loss, "png", "slide"))) as image:
        assert image.size == (1920, 1080)
    for size, (width, *_) in SIZES.items():
        assert draw(loss, size).get_figwidth() == width


@pytest.mark.parametrize("name", ["$x_1^$", "a\x1b[31mb", "<b>&amp;", "\\frac", "🙂 한글"])
def test_names_are_text(name: str) -> None:
    chart = build("loss", [history(name)])
    assert isinstance(chart, Chart)
    line = replace(chart.lines[0], name=name)
    rendered(replace(chart, lines=(line, *chart.lines), y_label=name, note=name), "svg")


def test_the_look_ends_with_the_drawing() -> None:
    before = dict(mpl.rcParams)
    with look(points=30):
        assert mpl.rcParams["font.size"] == 30
        new_figure().add_subplot().plot([1, 2])
    assert dict(mpl.rcParams) == before
