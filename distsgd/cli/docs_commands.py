"""``distsgd docs``: the manual, in the terminal or as one HTML page."""

from __future__ import annotations

import base64
import difflib
import os
import re
from collections.abc import Callable, Iterator
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import typer

from distsgd.cli.output import JsonFlag, print_json, print_pairs, say, show, show_markdown
from distsgd.errors import UsageError, storage_error
from distsgd.version import __version__

__all__ = ["TOPICS", "Page", "add_to", "anchor", "html_page", "page"]

TOPICS = (
    "quickstart", "concepts", "command-line", "settings", "models", "exact", "python", "runs",
    "watch", "metrics", "data", "estimator", "tune", "serve", "consistency", "faults", "proof",
    "fork", "diff", "blame", "simulation", "advise", "cluster", "service", "lecture", "benchmarks",
    "internals", "faq",
)  # fmt: skip
"""The pages, in the order in which a reader needs them."""

_COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_PICTURE = re.compile(r'src="pictures/([\w-]+\.webp)"')
_REPOSITORY = "../../"


class Page(NamedTuple):
    """A page of the manual.

    Attributes:
        topic: its name, one of `TOPICS`.
        title: its heading.
        about: its first paragraph, one sentence.
        markdown: its text, without comments.
    """

    topic: str
    title: str
    about: str
    markdown: str


def page(topic: str) -> Page:
    """A page of the manual.

    Raises:
        UsageError: there is no such topic; names the nearest one.
    """
    if topic not in TOPICS:
        near = difflib.get_close_matches(topic.lower().removesuffix(".md"), TOPICS, 1, 0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Topics: {', '.join(TOPICS)}"
        raise UsageError(f"the manual has no page '{topic}'", hint)
    text = files("distsgd").joinpath("docs", f"{topic}.md").read_text("utf-8")
    text = _COMMENT.sub("", text)
    heading, about, _ = text.split("\n\n", 2)
    return Page(topic, heading.removeprefix("# "), " ".join(about.split()), text)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="docs")(docs)


def docs(
    topic: Annotated[str | None, typer.Argument(help="A page; without one, list them.")] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the whole manual in the browser, as one page.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Read the manual.

    Example: distsgd docs data
    """
    if open_:
        _open(page(topic).topic if topic else "", json)
    elif topic:
        found = page(topic)
        if json:
            print_json(found._asdict())
        else:
            show_markdown(found.markdown, _linked(found.markdown, _for_terminal))
    elif json:
        pages = map(page, TOPICS)
        print_json(
            {"topics": [{"topic": p.topic, "title": p.title, "about": p.about} for p in pages]}
        )
    else:
        print_pairs((name, page(name).about) for name in TOPICS)
        show("Show a page: distsgd docs TOPIC. All of them in a browser: distsgd docs --open")


def _open(topic: str, json: bool) -> None:
    """Write the HTML page, and show it where there is a browser."""
    import webbrowser

    from distsgd.data.atomic import replace_file
    from distsgd.data.locations import cache_folder

    path = cache_folder().absolute() / f"manual-{__version__}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html_page().encode())
    except OSError as error:
        raise storage_error(error, path, "Set DISTSGD_CACHE to a folder of yours") from None
    screen = any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    opened = screen and webbrowser.open(path.as_uri() + (f"#{topic}" if topic else ""))
    if json:
        print_json({"path": str(path), "opened": opened})
        return
    if not opened:
        say("no browser was found; open this file in one:")
    show(str(path))


def _linked(text: str, internal: Callable[[str, str, str], str]) -> str:
    """Markdown whose links between pages are replaced, and those to the repository are no links.

    Args:
        text: of a page.
        internal: called with the text of a link, its topic and its section ("" for none).
    """

    def replaced(found: re.Match[str]) -> str:
        words, target = found.groups()
        if target.startswith(_REPOSITORY):
            path = target.removeprefix(_REPOSITORY)
            return f"`{path}`" if words == path else f"{words} (`{path}` of the repository)"
        name, _, section = target.partition("#")
        if not name.endswith(".md"):
            return found[0]
        return internal(words, name.removesuffix(".md"), section)

    return _LINK.sub(replaced, text)


def _for_terminal(words: str, topic: str, section: str) -> str:
    return f"{words} (`distsgd docs {topic}`)"


def _for_html(words: str, topic: str, section: str) -> str:
    return f"[{words}](#{topic}{f'-{section}' if section else ''})"


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading, for links to it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def html_page() -> str:
    """The whole manual, with a table of contents; it needs no other file and no network."""
    pages = [page(topic) for topic in TOPICS]
    bodies, contents = [], []
    for one in pages:
        body, sections = _body(one)
        bodies.append(f"<article>\n{body}</article>\n")
        items = "".join(f'<li><a href="#{name}">{escape(text)}</a>' for name, text in sections)
        contents.append(f'<li><a href="#{one.topic}">{escape(one.title)}</a><ul>{items}</ul>\n')
    style = files("distsgd").joinpath("docs", "manual.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>distsgd {__version__}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<nav>\n<h1>distsgd {__version__}</h1>\n<ul>\n{''.join(contents)}</ul>\n</nav>\n"
        f"<main>\n{''.join(bodies)}</main>\n</body>\n</html>\n"
    )


def _body(one: Page) -> tuple[str, list[tuple[str, str]]]:
    """A page as HTML, and the names and texts of its sections."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(_linked(one.markdown, _for_html))
    sections = []
    for opening, inline in _headings(tokens):
        name = one.topic
        if opening.tag != "h1":
            name += f"-{anchor(inline.content)}"
            sections.append((name, inline.content))
        opening.attrSet("id", name)
    html: str = parser.renderer.render(tokens, parser.options, {})
    return _PICTURE.sub(_embedded, html), sections


def _embedded(found: re.Match[str]) -> str:
    """A picture of the manual as part of its page."""
    picture = files("distsgd").joinpath("docs", "pictures", found[1]).read_bytes()
    return f'src="data:image/webp;base64,{base64.b64encode(picture).decode()}"'


def _headings(tokens: list[Any]) -> Iterator[tuple[Any, Any]]:
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            yield before, token
