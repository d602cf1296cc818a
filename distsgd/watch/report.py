"""The page frozen into one file: data, styles, scripts and pictures are inside, nothing outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from distsgd.errors import DistsgdError
from distsgd.figures.of_runs import AXES
from distsgd.version import __version__
from distsgd.watch.listing import identity
from distsgd.watch.pictures import example_picture, template_picture
from distsgd.watch.views import RunView, view

__all__ = ["frozen_page"]

_MODULES = ("dom.js", "plots.js", "panels.js", "source.js", "list.js", "app.js")
"""In the order in which each finds what it imports."""

_POINTS, _POINTS_OF_MANY = 1000, 400
"""Points of a curve, of one run and of several."""

_PICTURE_BYTES = 700_000
"""Most bytes of the pictures of templates in a file."""

_MOST_CHECKPOINTS = 40
_QUALITY = 82


def frozen_page(folders: Sequence[Path]) -> str:
    """The page of some runs, as one HTML file.

    Args:
        folders: of the runs.

    Raises:
        RunError: one cannot be read.
    """
    runs = [RunView(path, _POINTS if len(folders) == 1 else _POINTS_OF_MANY) for path in folders]
    for run in runs:
        run.read()
    content: dict[str, Any] = {
        "version": __version__,
        **view(runs, tuple(AXES)),
        "templates": {},
        "examples": {},
    }
    if len(runs) == 1:
        _add_pictures(content, runs[0])
    return _html(content, runs[0].folder.name if len(runs) == 1 else f"{len(runs)} runs")


def _add_pictures(content: dict[str, Any], run: RunView) -> None:
    """Templates of some checkpoints, and the surest mistakes."""
    (shown,) = content["runs"]
    found = dict(_templates(run.folder, shown.get("checkpoints", []), shown.get("best")))
    content["templates"][identity(run.folder)] = found
    shown["checkpoints"] = [one for one in shown["checkpoints"] if str(one["version"]) in found]
    wrong = [row["index"] for row in shown.get("surest_wrong", [])]
    with suppress(DistsgdError, OSError):
        picture = example_picture(run.folder, wrong, "WEBP", _QUALITY)
        if picture is not None:
            content["examples"][identity(run.folder)] = _uri(picture)


def _templates(
    folder: Path, checkpoints: Sequence[dict[str, Any]], best: int | None
) -> Iterator[tuple[str, str]]:
    """Version -> picture, of checkpoints evenly over the run, as many as there is room for."""
    versions = [one["version"] for one in checkpoints]
    if not versions:
        return
    first = _template(folder, versions[-1])
    if first is None:
        return
    room = max(2, min(_MOST_CHECKPOINTS, _PICTURE_BYTES // len(first)))
    chosen = set(_evenly(versions, room))
    if best is not None and best in versions:
        chosen.add(best)
    for version in sorted(chosen):
        picture = first if version == versions[-1] else _template(folder, version)
        if picture is not None:
            yield str(version), picture


def _template(folder: Path, version: int) -> str | None:
    with suppress(DistsgdError, OSError):
        picture = template_picture(folder, version, "WEBP", _QUALITY)
        return None if picture is None else _uri(picture)
    return None  # it has just been thinned out


def _evenly(versions: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of them, the first and the last among them."""
    if len(versions) <= most:
        return list(versions)
    return [versions[round(at * (len(versions) - 1) / (most - 1))] for at in range(most)]


def _uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


def _html(content: dict[str, Any], title: str) -> str:
    """The page with everything inside; its policy allows these scripts and styles alone."""
    style = _read("uPlot.min.css") + _read("style.css")
    library = _read("uPlot.iife.min.js")
    script = f'(() => {{\n"use strict";\n{"".join(map(_as_part, _MODULES))}\n}})();\n'
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_allowed(library)} {_allowed(script)}; "
        f"style-src {_allowed(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _read("index.html")
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n'
    )
    page = re.sub(r"<link [^>]*>\n", "", page)
    page = re.sub(r"<script [^>]*></script>\n", "", page)
    page = re.sub(r'<nav aria-label="Runs".*?</nav>\n', "", page, flags=re.DOTALL)
    page = page.replace("<title>distsgd</title>\n", f"<title>{_escaped(title)}</title>\n{head}")
    page = page.replace('<html lang="en">', '<html lang="en" class="frozen">')
    end = (
        f'<script type="application/json" id="frozen">{data}</script>\n'
        f"<script>{library}</script>\n<script>{script}</script>\n</body>"
    )
    return page.replace("</body>", end)


def _escaped(text: str) -> str:
    """Text for a title; the page shows names itself."""
    shown = text.encode("utf-8", "replace").decode()
    return shown.replace("&", "&amp;").replace("<", "&lt;")


def _allowed(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _read(name: str) -> str:
    top = files("distsgd").joinpath("watch", "page")
    inner = top.joinpath("uplot", name) if name.startswith("uPlot") else top.joinpath(name)
    return inner.read_text("utf-8").replace("\r\n", "\n")


def _as_part(name: str) -> str:
    """A module as a part of one script: all are in one scope, and their names are distinct."""
    text = re.sub(r"^import .*;$", "", _read(name), flags=re.MULTILINE)
    return re.sub(r"^export (?=\w)", "", text, flags=re.MULTILINE)
