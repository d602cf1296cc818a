"""The page in a real browser, without a window and without a network, wide and narrow."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import numpy as np
import pytest
from PIL import Image
from support import PATIENCE

from distsgd.lecture.page.findings import Options
from distsgd.lecture.page.html import LANGUAGES, lecture_page
from distsgd.lecture.page.lecture import give_lecture

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine; install the package chromium"
)

MEASURE = """<script>
const wide = document.documentElement.scrollWidth;
const shown = [...document.querySelectorAll("figure svg, .formula svg")].map(
  svg => svg.getBoundingClientRect()).filter(r => r.width > 20 && r.height > 10).length;
const size = Math.min(...[...document.querySelectorAll("p, th, td, li, figcaption, code")].map(
  e => parseFloat(getComputedStyle(e).fontSize)));
const scale = Math.min(...[...document.querySelectorAll("figure svg")].map(
  svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width));
const out = [...document.querySelectorAll("td, th, p, h1, h2, figcaption")].filter(
  e => e.getBoundingClientRect().right > wide + 1).length;
parent.document.body.setAttribute("data-found", JSON.stringify({wide, shown, size, scale, out}));
</script></body>"""


@pytest.fixture(scope="module")
def found():
    chapters = ["losses", "landscapes", "formulas", "chain_rule", "steps", "samplings"]
    return give_lecture(Options(dataset="sample", quick=True, workers=0), only=chapters)


def browse(tmp_path, width, *options):
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--hide-scrollbars", "--enable-logging=stderr", f"--window-size={width},4000",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         *options],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    return done.stdout


def write_framed(path, page, width):
    """A window is never narrower than 500 pixels; a frame may be."""
    frame = f'<iframe width="{width}" height="3000" style="border:0" srcdoc="{escape(page)}">'
    path.write_text(f"<!DOCTYPE html><body>{frame}</iframe></body>", encoding="utf-8")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("language", LANGUAGES)
def test_it_can_be_read(found, tmp_path, language, width):
    page = lecture_page(found, language)
    write_framed(tmp_path / "page.html", page.replace("</body>", MEASURE), width)
    address = (tmp_path / "page.html").as_uri()
    dom = browse(tmp_path, 1400, "--dump-dom", address)
    seen = json.loads(unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert seen["wide"] <= width and seen["out"] == 0
    assert seen["shown"] == page.count("<figure") + page.count('<div class="formula"')
    assert seen["size"] >= 13  # pixels, of the smallest text
    assert 10 * seen["scale"] >= 9.5  # of text in figures, drawn with 10 points


def test_it_is_drawn(found, tmp_path):
    (tmp_path / "page.html").write_text(lecture_page(found, "en"), encoding="utf-8")
    picture = tmp_path / "page.png"
    browse(tmp_path, 1280, f"--screenshot={picture}", (tmp_path / "page.html").as_uri())
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    rows = (pixels.min(axis=2) < 250).any(axis=1)
    colours = pixels.max(axis=2) - pixels.min(axis=2) > 60
    assert pixels.shape[:2] == (4000, 1280)
    assert rows.reshape(8, -1).any(axis=1).all() and colours.mean() > 0.005
