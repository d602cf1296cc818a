"""The lecture as one HTML page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.data.atomic import replace_file
from distsgd.errors import UsageError, storage_error
from distsgd.lecture.drawing import formula_svg
from distsgd.lecture.page.findings import Check
from distsgd.lecture.page.lecture import Chapter, Lecture
from distsgd.spelling import spelled
from distsgd.version import __version__

__all__ = ["LANGUAGES", "lecture_page", "page_path", "texts", "write_page"]

LANGUAGES = ("en", "ko")


def page_path(folder: Path, language: str) -> Path:
    """Path of the page. Creates the folder, so that an error comes before the computation.

    Raises:
        UsageError: the language is unknown.
        StorageError: the folder cannot be created.
    """
    if language not in LANGUAGES:
        raise UsageError(
            f"{spelled('lang')} cannot be {language}", f"Give one of {', '.join(LANGUAGES)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from None
    return folder / f"lecture-{language}.html"


def write_page(path: Path, page: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        replace_file(path, page.encode("utf-8", "backslashreplace"), shared=True)
    except OSError as error:
        raise storage_error(error, path) from None


def texts(language: str) -> dict[str, Any]:
    """Texts of the page in "en" or "ko"."""
    content = files("distsgd.lecture").joinpath("text", f"{language}.toml").read_text("utf-8")
    return tomllib.loads(content)


def lecture_page(result: Lecture, language: str) -> str:
    """The page.

    Args:
        found: what the lecture computed.
        language: "en" or "ko".
    """
    words = texts(language)
    style = files("distsgd.lecture").joinpath("text", "page.css").read_text("utf-8")
    body = "\n".join([*_head(result, words), *(_chapter(one, words) for one in result.chapters)])
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(words['title'])}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(result: Lecture, words: dict[str, Any]) -> Iterator[str]:
    yield f"<h1>{escape(words['title'])}</h1>"
    yield f"<p>{escape(words['lead'])}</p>"
    state = "fail" if result.failed else "pass"
    total = result.passed + result.failed
    summary = words["summary"].format(passed=result.passed, total=total, seconds=result.seconds)
    yield f'<p class="summary {state}">{escape(summary)}</p>'
    if result.quick:
        yield f"<p>{escape(words['quick'])}</p>"
    machine = f"distsgd {__version__}, Python {platform.python_version()}, numpy {np.__version__}"
    yield f'<p class="small">{escape(result.dataset)} · {escape(machine)}</p>'
    yield "<nav><ol>"
    for one in result.chapters:
        title = escape(words["chapters"][one.key]["title"])
        yield f'<li><a href="#{one.key}">{title}</a></li>'
    yield "</ol></nav>"


def _chapter(result: Chapter, words: dict[str, Any]) -> str:
    own = words["chapters"][result.key]
    parts = [f'<section id="{result.key}">', f"<h2>{escape(own['title'])}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in own["text"]]
    parts += [f'<div class="formula">{formula_svg(one)}</div>' for one in own.get("formulas", ())]
    for name, svg in result.figures.items():
        caption = escape(own["figures"][name])
        image = svg.replace("<svg", f'<svg role="img" aria-label="{caption}" {_least(svg)}', 1)
        parts.append(
            f'<figure id="{result.key}-{name}"><div class="picture">{image}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts.append(_table(result, own["checks"], words))
    parts += [f"<pre><code>{escape(line)}</code></pre>" for line in result.commands]
    return "\n".join([*parts, "</section>"])


def _least(svg: str) -> str:
    """The width below which its text of 10 points would have fewer than 10 pixels."""
    result = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    return f'style="min-width:{float(result[1]):.0f}px"' if result else ""


def _table(result: Chapter, names: dict[str, str], words: dict[str, Any]) -> str:
    rows = [_row(check, names[check.key], words) for check in result.checks]
    heads = "".join(f"<th>{escape(words[key])}</th>" for key in ("what", "ours", "theirs", "off"))
    return (
        f'<div class="wide"><table><thead><tr>{heads}<th></th></tr></thead>\n<tbody>'
        + "\n".join(rows) + "</tbody></table></div>"
    )  # fmt: skip


def _row(check: Check, name: str, words: dict[str, Any]) -> str:
    state = {True: "pass", False: "fail", None: "other"}[check.passed]
    cells = (("ours", check.shown), ("theirs", check.lecture), ("off", check.tolerance))
    values = "".join(
        f'<td data-label="{escape(words[key])}">{escape(cell)}</td>' if cell else "<td></td>"
        for key, cell in cells
    )
    return (
        f'<tr class="{state}"><th scope="row">{escape(name)}</th>{values}'
        f'<td class="mark">{escape(words[state])}</td></tr>'
    )
