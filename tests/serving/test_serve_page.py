"""The pages of `distsgd serve` in a headless Chromium: images dropped and chosen, keyboard, token,
hostile names, colours, a narrow window."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Chromium
from PIL import Image
from serving_client import PATIENCE, TOKEN, Client, served

import distsgd
from distsgd.data.importing.import_dataset import import_dataset

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; install the package chromium"
)

MARKUP = "<img src=x onerror=document.title='hit'> [b] &amp; 🐈"
LONG = "x" * 120
RUN = f"{MARKUP}\u202e\x1b"
RUN_SHOWN = f"{MARKUP}\\u202e\\x1b"

LABELS = "[...document.querySelectorAll('#results h2')].map(one => one.textContent)"
ROWS = "[...document.querySelector('#results table').rows].map(row => row.cells[0].textContent)"
READY = "document.getElementById('images')?.hidden === false"
FITS = "document.documentElement.scrollWidth <= innerWidth"
CONTRASTS = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(one => one / 255)
      .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return colour === 'rgba(0, 0, 0, 0)' ? back(one.parentElement) : colour;
  };
  return ['#model', 'nav a', 'h1', '#drop', '#results h2', '.note', 'th'].map((name) => {
    const one = document.querySelector(name);
    const text = light(getComputedStyle(one).color), ground = light(back(one));
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  });
})()"""


def image(path: Path, red: bool, shade: int = 200) -> Path:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0 if red else 2] = shade
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve-page")


@contextmanager
def server(run: Path) -> Iterator[str]:
    """The address of a server in a thread, while entered."""
    clients: queue.Queue[tuple[Client, Any]] = queue.Queue()

    async def look(client: Client) -> None:
        clients.put((client, asyncio.get_running_loop()))
        await client.stop.wait()

    thread = threading.Thread(target=served, args=(look, run))
    thread.start()
    client, loop = clients.get(timeout=PATIENCE)
    try:
        yield client.url
    finally:
        loop.call_soon_threadsafe(client.stop.set)
        thread.join()


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A run on red and blue images, whose names are markup and long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTSGD_CACHE", str(folder / "cache"))
        for name, red in ((MARKUP, True), (LONG, False)):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(20):
                image(folder / "images" / name / f"{number}.png", red, 150 + 5 * number)
        import_dataset(folder / "images", "colours")
        distsgd.train(
            dataset="colours", workers=0, epochs=3, batch_size=8, run_dir=folder / "plain"
        )
    (folder / "plain").rename(folder / RUN)
    with server(folder / RUN) as found:
        yield found


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Chromium]:
    opened = Chromium(folder)
    yield opened
    opened.close()


@pytest.fixture
def browser(tab: Chromium) -> Iterator[Chromium]:
    tab.complaints.clear()
    tab.prefer(dark=False)
    tab.size(1280)
    yield tab
    tab.run("sessionStorage.clear()")
    tab.go("about:blank")
    assert tab.complaints == []


def test_images_are_dropped_and_chosen_by_keyboard_alone(
    url: str, browser: Chromium, folder: Path
) -> None:
    red, blue = image(folder / f"{MARKUP}.png", True), image(folder / "blue.png", False)
    browser.go(f"{url}/#token={TOKEN}")
    browser.wait(READY)
    assert browser.run("location.href") == f"{url}/"  # the token is in no history
    browser.drop(red)
    browser.wait(f"({LABELS}).length === 1")
    assert browser.run(LABELS) == [MARKUP]
    assert sorted(browser.run(ROWS)) == sorted([MARKUP, LONG])
    note = browser.run("document.querySelector('.note').textContent")
    assert note.startswith(f"{MARKUP}.png; {RUN_SHOWN}, update ")
    assert browser.run("document.querySelectorAll('#results canvas').length") == 1
    assert browser.run("document.getElementById('model').textContent").startswith(RUN_SHOWN)

    # Tab alone leads to the input: the link first, and then the input.
    for _ in range(2):
        browser.press("Tab")
    assert browser.run("document.activeElement.id") == "file"
    assert browser.run("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    browser.choose(blue, red)
    browser.wait(f"({LABELS}).length === 3")
    assert browser.run(LABELS) == [MARKUP, LONG, MARKUP]
    (folder / "broken.png").write_bytes(b"\x89PNG, or not")
    browser.choose(folder / "broken.png")
    browser.wait("document.getElementById('problem').textContent.includes('not a readable image')")
    (told,) = browser.complaints  # of the browser: it names each answer that is an error
    assert "422" in told
    browser.complaints.clear()
    browser.choose(red)  # the same file as before, again
    browser.wait(f"({LABELS}).length === 4")
    assert browser.run("document.getElementById('problem').textContent") == ""

    # Names are text, and nothing is wider than a narrow window, light or dark.
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title") == "distsgd serve"
    for dark in (False, True):
        browser.prefer(dark=dark)
        for width in (400, 1280):
            browser.size(width)
            assert browser.run(FITS)
        assert min(browser.run(CONTRASTS)) >= 4.5
        back = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (int(back.split("(")[1].split(",")[0]) < 128) == dark


def test_the_token_is_asked_for(url: str, browser: Chromium) -> None:
    def wait_for_form() -> None:
        browser.wait("document.activeElement?.id === 'token'")

    browser.go(url)
    wait_for_form()
    assert not browser.run(READY) and not browser.run(
        "document.getElementById('model').textContent"
    )
    browser.send("Input.insertText", text="wrong")
    browser.press("Enter")
    browser.wait("document.getElementById('problem').textContent.includes('token is wrong')")
    assert all("401" in told for told in browser.complaints)
    browser.complaints.clear()
    browser.run(
        "document.getElementById('token').value = ''; document.getElementById('token').focus()"
    )
    browser.send("Input.insertText", text=TOKEN)
    browser.press("Enter")
    browser.wait(READY)
    assert browser.run("document.getElementById('enter').hidden")
    assert browser.run("document.getElementById('problem').textContent") == ""
    assert browser.run(f"!document.documentElement.outerHTML.includes('{TOKEN}')")


def test_the_description_is_a_page(url: str, browser: Chromium) -> None:
    browser.go(f"{url}/#token={TOKEN}")
    browser.wait(READY)
    browser.press("Tab")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#paths section').length >= 5")
    assert browser.run("location.pathname") == "/docs"
    assert browser.run("document.querySelector('h1').textContent").endswith(RUN_SHOWN)
    assert "--data-binary @photo.png" in browser.run(
        "document.getElementById('examples').textContent"
    )
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert browser.run("document.querySelectorAll('img').length") == 0
    for dark in (False, True):
        browser.prefer(dark=dark)
        browser.size(400)
        assert browser.run(FITS)


def test_columns_are_filled_in_by_keyboard(
    folder: Path, browser: Chromium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTSGD_CACHE", str(folder / "cache"))
    lines = [f"{n % 7},{(n * 5) % 11 / 4},{'hi' if n % 7 > 3 else 'lo'}" for n in range(200)]
    (folder / "t.csv").write_text("\n".join(["<b>u</b>,v,label", *lines]))
    import_dataset(folder / "t.csv", "t")
    distsgd.train(dataset="t", workers=0, epochs=5, batch_size=16, run_dir=folder / "table")
    with server(folder / "table") as url:
        browser.go(f"{url}/#token={TOKEN}")
        browser.wait("document.getElementById('columns')?.hidden === false")
        names = "[...document.querySelectorAll('#fields label')].map(one => one.textContent)"
        assert browser.run(names) == ["<b>u</b>", "v"]
        browser.press("Tab")
        for value in ("6", "1.5"):
            browser.press("Tab")
            browser.send("Input.insertText", text=value)
        browser.press("Enter")
        browser.wait(f"({LABELS}).length === 1")
        assert browser.run(LABELS) == ["hi"]
        browser.size(400)
        assert browser.run(FITS)
