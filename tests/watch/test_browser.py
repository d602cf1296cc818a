"""The page in a headless Chromium: numbers, live updates, keyboard, hostile names, the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Chromium
from support import PATIENCE, Run, command_line

from distsgd.runs.folder import RunFolder
from distsgd.runs.metrics import MetricsWriter, epoch_rows

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; install the package chromium"
)

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "3")
HOSTILE = "<img src=x onerror=document.title='hit'> [b]\u202e 🐈 \x1b[31m\n&amp;"
SHOWN = "<img src=x onerror=document.title='hit'> [b]\\u202e 🐈 \\x1b[31m\\x0a&amp;"
READY = "document.querySelectorAll('.u-over').length > 2"

LEGEND = """Object.fromEntries([...document.querySelectorAll('figure.card')].map(card => [
  card.querySelector('h2').textContent,
  Object.fromEntries([...card.querySelectorAll('.legend button')].map(
    button => [button.children[1].textContent, button.children[2].textContent]))]))"""
FACTS = """Object.fromEntries([...document.querySelectorAll('.facts div')].map(
  pair => [pair.children[0].textContent, pair.children[1].textContent]))"""


@pytest.fixture
def run(distsgd_here: Run) -> Path:
    return Path(json.loads(distsgd_here(*TRAIN, "--json").stdout)["run_dir"])


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    opened = Chromium(tmp_path)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture
def link(tmp_path: Path, run: Path) -> Iterator[str]:
    """The page of a `distsgd watch` in a process of its own."""
    process = subprocess.Popen(
        [*command_line("watch", "--json", "--no-open")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    while "}" not in text:
        text += process.stdout.readline()
    yield json.loads(text)["url"]
    process.terminate()
    assert process.wait(PATIENCE) == 0
    process.stdout.close()


def of(value: float) -> str:
    """A number as the page shows it."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def test_a_run_live_and_by_keyboard(run: Path, link: str, browser: Chromium) -> None:
    browser.size(1280)
    browser.go(link)
    browser.wait(READY)
    rows = epoch_rows(run / "metrics.jsonl")
    legend: dict[str, Any] = browser.run(LEGEND)
    assert legend["Loss"]["test"] == of(rows[-1]["test_loss"])
    assert legend["Loss"]["training"] == of(rows[-1]["train_loss"])
    assert legend["Accuracy"]["test"] == of(100 * rows[-1]["test_accuracy"])
    assert browser.run(FACTS)["epochs ended"] == "3"
    browser.wait("document.querySelectorAll('.tiles canvas').length >= 10")
    assert browser.run("document.documentElement.scrollWidth") <= 1280

    # An epoch that is appended is in the page within a second of the event.
    writer = MetricsWriter(run / "metrics.jsonl")
    writer.write({**rows[-1], "kind": "epoch", "epoch": 4, "test_loss": 0.125})
    began = time.monotonic()
    browser.wait(f"({LEGEND}).Loss.test === '0.125'")
    assert time.monotonic() - began < 10  # beside other work; 1 s is measured by scripts

    # A killed training is crashed: its lock is gone, and no file has changed.
    (run / "report.json").unlink()
    folder = RunFolder(run)
    folder.hold()
    browser.wait("document.querySelector('.state').textContent === 'training'")
    folder.release()
    browser.wait("document.querySelector('.state').textContent === 'crashed'")

    # Keyboard: the axis, a legend's button, the slider, the readings of a curve.
    browser.run("document.getElementById('axis').focus()")
    browser.press("u")  # the option "update"
    browser.wait("document.querySelector('.plot').getAttribute('aria-label').includes('by update')")
    browser.run("document.querySelector('.legend button').focus()")
    browser.press("Enter")
    browser.wait("document.activeElement.getAttribute('aria-pressed') === 'false'")
    browser.run("document.querySelector('.plot').focus()")
    browser.press("ArrowLeft")
    browser.wait("document.querySelector('figure [aria-live]').textContent.startsWith('update ')")
    browser.run("document.getElementById('checkpoint').focus()")
    browser.press("Home")
    browser.wait("document.querySelector('output').textContent.startsWith('update 0,')")
    browser.run("document.querySelector('.proofs button').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('.verdict').className !== 'verdict'")


def test_names_are_text(run: Path, link: str, browser: Chromium) -> None:
    hostile = run.parent / HOSTILE
    run.rename(hostile)
    browser.size(400)
    browser.go(link)
    browser.wait(READY)
    assert browser.run("document.querySelector('h1').textContent") == SHOWN
    assert browser.run("document.title").startswith(SHOWN.split("\\x1b")[0].strip()[:20])
    assert browser.run("document.querySelectorAll('main img, nav img').length") == 0
    assert browser.run("document.querySelector('#runs .name').textContent") == SHOWN
    assert browser.run("document.documentElement.scrollWidth") <= 400


def test_a_report_is_one_file(run: Path, distsgd_here: Run, browser: Chromium) -> None:
    distsgd_here(*TRAIN, "--seed", "1", "--run-dir", run.parent / "second")
    for runs, headings in (([run], 1), ([run, run.parent / "second"], 1)):
        done = distsgd_here("report", *runs, "--out", run.parent / "report.html", "--json")
        path = Path(json.loads(done.stdout)["path"])
        assert path.stat().st_size < 2_000_000
        browser.size(1280)
        browser.go(path.as_uri())
        browser.wait(READY)
        legend = browser.run(LEGEND)
        rows = epoch_rows(run / "metrics.jsonl")
        if len(runs) == 1:
            assert legend["Loss"]["test"] == of(rows[-1]["test_loss"])
            browser.wait("document.querySelectorAll('.tiles canvas').length >= 10")
        browser.run("document.getElementById('axis').value = 'seconds'")
        browser.run("document.getElementById('axis').dispatchEvent(new Event('change'))")
        browser.wait(
            "document.querySelector('.plot').getAttribute('aria-label').includes('by seconds')"
        )
        assert browser.run("document.querySelectorAll('h1').length") == headings


@pytest.mark.thorough
@pytest.mark.network
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(
    run: Path, link: str, browser: Chromium, tmp_path: Path, width: int, dark: bool
) -> None:
    """The checks of axe-core, which is fetched for this test and no part of the package."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine")
    done = subprocess.run([npm, "pack", "--silent", "axe-core"], cwd=tmp_path, capture_output=True)
    if done.returncode:
        pytest.skip("axe-core cannot be fetched")
    (archive,) = tmp_path.glob("axe-core-*.tgz")
    with tarfile.open(archive) as content:
        member = content.extractfile("package/axe.min.js")
        assert member is not None
        axe = member.read().decode()
    browser.prefer(dark=dark)
    browser.size(width)
    browser.go(link)
    browser.wait(READY)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    browser.run(axe + ";0")
    found = browser.run(
        "axe.run().then(all => all.violations.map(one => [one.id, one.impact, one.nodes[0].html]))"
    )
    assert found == []
