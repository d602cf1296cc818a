"""Writes the parts of the manual and of the README that follow from the code.

    python scripts/manual.py [--check]

Each part lies between the comments `<!-- generated: NAME -->` and `<!-- end -->`. With --check
nothing is written, and the exit code is 1 if something would be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from distsgd.cli.docs_commands import TOPICS, page
from distsgd.config.recipes import LEARNING_RATES, REGULARIZATION, TWO_LAYER_LEARNING_RATES
from distsgd.config.settings import SETTINGS
from distsgd.config.table import GROUPS

TOP = Path(__file__).resolve().parents[1]
DOCS = TOP / "distsgd" / "docs"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(headings), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings() -> str:
    rows = []
    for group in GROUPS:
        rows.append((f"**{group}**", "", "", "", ""))
        for name, one in SETTINGS.items():
            if one.group == group:
                flag = f"`--{name.replace('_', '-')}`" if one.flag else "`--set`"
                star = " *" if one.resumable else ""
                values = one.values.removeprefix("one of ")
                rows.append(
                    (
                        f"`{name}`{star}",
                        flag,
                        one.usually or "false",
                        values,
                        one.help.removesuffix("."),
                    )
                )
    return table(("setting", "flag", "default", "values", "meaning"), rows)


def learning_rates() -> str:
    rules = list(LEARNING_RATES["softmax"])
    rows = [
        (f"{model}, {loss}", *(f"{rates[loss][rule]:g}" for rule in rules))
        for model, rates in (("linear", LEARNING_RATES), ("two layers", TWO_LAYER_LEARNING_RATES))
        for loss in REGULARIZATION
    ]
    return table(("", *rules), rows)


def pages() -> str:
    cells = [(f"[{topic}](distsgd/docs/{topic}.md)", page(topic).about) for topic in TOPICS]
    half = -(-len(cells) // 2)
    right = [*cells[half:], ("", "")]  # for an odd number of pages
    rows = ((*one, *other) for one, other in zip(cells[:half], right, strict=False))
    return table(("page", "about") * 2, rows)


PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    DOCS / "settings.md": {"settings": settings},
    DOCS / "models.md": {"learning rates": learning_rates},
    TOP / "README.md": {"pages": pages},
}


def generated(path: Path) -> str:
    """The text of a file with its parts made again."""
    text = path.read_text(encoding="utf-8")
    for name, make in PARTS[path].items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->\n"
        before, _, rest = text.partition(start)
        assert rest, f"{path} has no part {name}"
        _, _, after = rest.partition(end)
        text = f"{before}{start}{make()}{end}{after}"
    return text


def main() -> int:
    stale = [path for path in PARTS if generated(path) != path.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path} is out of date")
        return bool(stale)
    for path in stale:
        path.write_text(generated(path), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
