"""The habits of the repository, where a test can hold them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
EXPECTED = {
    "pyproject.toml", "README.md", "distsgd", "cluster", "tests", "scripts", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md",
}  # fmt: skip


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("this is no git checkout")
    return done.stdout.splitlines()


def test_top_level() -> None:
    names = {path.split("/")[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= EXPECTED


def test_the_sample_is_small() -> None:
    sample = TOP / "distsgd" / "data" / "sample"
    assert sum(path.stat().st_size for path in sample.iterdir()) <= 6.2e6


def test_files_say_what_is_in_them() -> None:
    for path in (TOP / "distsgd").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert re.match(r'"""[A-Z`]', text), path


def test_the_changelog_names_this_version() -> None:
    from distsgd import __version__

    assert f"## {__version__}" in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
