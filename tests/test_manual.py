"""The README and the manual: their command lines and their Python run as they stand.

A block of command lines that is not run has a comment before it, `<!-- not run: WHY -->`, or its
page has one, `<!-- not run, the whole page: WHY -->`. Lines that several pages have run once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import Run, run_here
from typer.main import get_command

import distsgd
import distsgd.errors
from distsgd.cli.app import app
from distsgd.cli.docs_commands import TOPICS, anchor, html_page, page
from distsgd.cli.simulate_commands import simulate
from distsgd.simulation.scenario import fleet_from

TOP = Path(__file__).parents[1]
DOCS = TOP / "distsgd" / "docs"
FILES = [TOP / "README.md", *(DOCS / f"{topic}.md" for topic in TOPICS)]

SHORTER = {
    "distsgd train --loss svm --workers 2 --epochs 10": "--epochs 1",
    "distsgd lecture --quick": "--only losses",
    "distsgd bench --dataset sample --quick --only numpy,inline": "--only numpy",
    "distsgd gradient numeric --dataset sample --examples 100 --parameters 500":
        "--parameters 50 --workers 0",
    "distsgd search random --dataset sample --attempts 200": "--attempts 20 --workers 0",
    "distsgd search local --dataset sample --tries 200": "--tries 20",
    "distsgd landscape --run latest --plot path.png": "--points 9 --workers 0",
    "distsgd study convexity --dataset sample": "--segments 2 --examples 20",
    "distsgd study descent --dataset sample --epochs 3": "--epochs 1",
    "distsgd study sampling --dataset sample --epochs 3": "--epochs 1",
}  # fmt: skip
"""Lines that take long are run in part."""

BLOCK = re.compile(
    r"^(?:<!-- (?P<not_run>not run: .*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def blocks(path: Path, language: str) -> Iterator[tuple[str, bool]]:
    """The code of a page in a language, and whether it is run."""
    text = path.read_text(encoding="utf-8")
    page_runs = "<!-- not run, the whole page: " not in text
    for found in BLOCK.finditer(text):
        if found["language"] == language:
            yield found["text"], page_runs and not found["not_run"]


def lines(path: Path, runs: bool) -> list[str]:
    return [line for text, run in blocks(path, "sh") if run == runs for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files that the pages assume."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (200, 100), (30, 90, 160)).save("photo.png")
    rows = [f"{n % 7},{n % 5},{'rose' if n % 2 else 'tulip'}\n" for n in range(100)]
    Path("flowers.csv").write_text("height,width,species\n" + "".join(rows), encoding="utf-8")
    for name, where in (("fleet.toml", "simulation.md"), ("run.toml", "command-line.md")):
        ((text, _),) = blocks(DOCS / where, "toml")
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def test_command_lines_run(cifar10: Path, folder: Path, shared_ray: None) -> None:
    everything = dict.fromkeys(line for path in FILES for line in lines(path, runs=True))
    commands = [line for line in everything if not line.startswith("./scripts/")]
    assert len(commands) >= 50 and SHORTER.keys() <= set(commands)
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "distsgd" and not {"|", ">", "&&"} & set(words), line
        own = {"DISTSGD_CACHE": str(folder / "cache")} if "flowers" in words else {}
        code, _, errors = run_here([*words, *SHORTER.get(line, "").split()], folder, own)
        assert code == 0, (line, errors)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_python_runs(path: Path, folder: Path) -> None:
    if path.stem == "runs":
        line = "train --dataset sample --workers 0 --epochs 3 --run-dir first-run --json"
        assert f"distsgd {line.removesuffix(' --json')}" in lines(path, runs=True)
        code, out, errors = run_here(shlex.split(line), folder, {})
        assert code == 0, errors
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for text, runs in blocks(path, "python"):
            if not runs:
                compile(text, str(path), "exec")
                continue
            exec(compile(text, str(path), "exec"), {"__name__": "__main__"})
    if path.stem == "runs":
        assert printed.getvalue() == f"test accuracy {json.loads(out)['test_accuracy']:.1%}\n"
        check_the_run_folder(Path("first-run"), path.read_text(encoding="utf-8"))


def check_the_run_folder(run: Path, text: str) -> None:
    """Each file of a run, and each array of a checkpoint, is on the page."""
    for file in run.rglob("*"):
        inside = re.sub(r"\d{9}", "NNNNNNNNN", str(file.relative_to(run)))
        assert inside == "checkpoints" or f"`{inside}`" in text, inside
    with np.load(next(run.glob("checkpoints/*.npz"))) as arrays:
        assert {f"`{name}`" for name in arrays} <= set(re.findall(r"`\w+`", text))
        described = set(re.findall(r"`(\w+)`", text)) | {"format", "residuals"}
        assert set(json.loads(arrays["meta"].tobytes())) - described <= {"place", "sha256"}


def test_scripts_that_are_named_are_there() -> None:
    for path in FILES:
        for name in re.findall(r"\bscripts/[\w./-]*\w", path.read_text(encoding="utf-8")):
            assert (TOP / name).exists(), (path, name)
    for line in lines(TOP / "README.md", runs=True)[:2]:
        assert os.access(TOP / line, os.X_OK)


def test_what_is_not_run_can_be_typed() -> None:
    """Commands in the text, and those of blocks that are not run, exist with their options."""
    for path in FILES:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        mentioned = [" ".join(code.split()) for code in re.findall(r"`(distsgd [^`]+)`", text)]
        skipped = [line for line in lines(path, runs=False) if line.startswith("distsgd ")]
        for line in (*mentioned, *skipped):
            check_options(line.partition("|")[0])


COMMAND: Any = get_command(app)


def check_options(line: str) -> None:
    command = COMMAND
    _, *words = shlex.split(line.replace("...", ""))
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    names = {name for one in command.params for name in one.opts} | {"--help"}
    if command.name == "submit":
        names |= {name for one in COMMAND.commands["train"].params for name in one.opts}
    assert not hasattr(command, "commands") or words in ([], ["--help"], ["--version"]), line
    assert {word for word in words if word.startswith("--")} <= names, line


def test_links_lead_somewhere() -> None:
    for path in FILES:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            name, _, section = target.partition("#")
            other = (path.parent / name).resolve()
            assert other.exists(), (path, target)
            if section:
                headings = re.findall(r"^#+ (.*)", other.read_text(encoding="utf-8"), re.MULTILINE)
                assert section in map(anchor, headings), (path, target)


def test_the_front_page_is_short_and_the_manual_complete() -> None:
    assert len(FILES[0].read_text(encoding="utf-8").splitlines()) <= 150
    assert {path.stem for path in DOCS.glob("*.md")} == set(TOPICS)
    for topic in TOPICS:
        found = page(topic)
        assert found.title and len(found.about) <= 65 and found.about.endswith("."), topic


def test_generated_parts_follow_from_the_code() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "scripts" / "manual.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}Run: python scripts/manual.py"


def test_the_table_of_a_simulated_fleet_is_complete_and_true() -> None:
    """Every flag of the fleet has an example that can be used; --rejoin with that of --fail."""
    text = (DOCS / "simulation.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\| [^|]*\| `--(\w+) (\S+)` \|", text, re.MULTILINE)
    for name, value in examples:
        if name != "scenario":
            fleet_from({"fail": dict(examples)["fail"], name: value})
    shared = signature(simulate).parameters.values()
    flags = {
        flag.name for flag in shared for option in getattr(flag.annotation, "__metadata__", ())
        if option.rich_help_panel == "The fleet"
    }  # fmt: skip
    assert {name for name, _ in examples} == flags - {"workers"}


def test_every_command_is_in_the_manual() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    overview = (DOCS / "command-line.md").read_text(encoding="utf-8")
    for name, command in COMMAND.commands.items():
        assert re.search(rf"`(distsgd )?{name}\b", overview), name
        for inner in getattr(command, "commands", {}):
            inside = rf"\bdistsgd {name} {inner}\b"
            assert re.search(inside, text) or re.search(rf"`{inner}`", overview), (name, inner)


def test_the_python_page_has_every_public_name_and_error() -> None:
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    for name in distsgd.__all__:
        assert name.startswith("__") or re.search(rf"\b{name}\b", text), name
    for name in distsgd.errors.__all__:
        kind = getattr(distsgd.errors, name)
        if isinstance(kind, type) and issubclass(kind, distsgd.errors.DistsgdError):
            assert f"`{name}`" in text, name


def test_topics_are_listed_and_shown(distsgd_here: Run) -> None:
    listed = distsgd_here("docs").stdout
    assert all(f"  {topic} " in listed for topic in TOPICS)
    shown = distsgd_here("docs", "faults").stdout
    assert shown.startswith("# Faults and recovery\n") and "<!--" not in shown
    assert json.loads(distsgd_here("docs", "faults", "--json").stdout)["markdown"] == shown[:-1]
    assert len(json.loads(distsgd_here("docs", "--json").stdout)["topics"]) == len(TOPICS)
    wrong = distsgd_here("docs", "fault")
    assert wrong.returncode == 2 and "Did you mean faults?" in wrong.stderr


def test_the_html_page_has_every_page_and_its_links_lead_somewhere() -> None:
    html = html_page()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and set(TOPICS) <= set(ids)
    links = re.findall(r'href="([^"]+)"', html)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://")) for link in links)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)', html))
    assert "<table>" in html and "not run" not in html


def test_open_shows_the_page_or_says_where_it_is(
    distsgd_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    env = {"DISTSGD_CACHE": str(tmp_path / "cache"), "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    without = distsgd_here("docs", "--open", env={**env, "BROWSER": ""})
    path = Path(without.stdout.strip())
    assert path.is_file() and "open this file" in without.stderr and not opened
    done = distsgd_here("docs", "data", "--open", "--json", env={**env, "BROWSER": "browser"})
    assert json.loads(done.stdout) == {"path": str(path), "opened": True}
    assert opened == [f"{path.as_uri()}#data"]


def test_files_that_contributing_names_are_there() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = {"distsgd/core/server/consistency/double.py"}
    named = set(re.findall(r"`((?:distsgd|tests|scripts)/[\w./-]+)`", text))
    assert [name for name in sorted(named - examples) if not (TOP / name).exists()] == []


def test_every_script_is_described() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in [*FILES, TOP / "CONTRIBUTING.md"])
    names = {path.name for path in (TOP / "scripts").iterdir() if path.is_file()} - {"_setup"}
    assert {name for name in names if f"scripts/{name}" not in text} == set()
