"""A headless Chromium, driven over the DevTools protocol with the aiohttp that is there anyway."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
from support import PATIENCE, wait_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

_CODES = {
    "Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
    "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip
_PATIENCE = 60.0


class Chromium:
    """One tab.

    Args:
        folder: for its profile.
        dark: whether it prefers dark colours.

    Attributes:
        complaints: errors and warnings of its console so far.
    """

    def __init__(self, folder: Path, *, dark: bool = False) -> None:
        assert CHROMIUM is not None
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._chooser = 0
        self._process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run",
             "--disable-background-networking", "--disable-component-update",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
             f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = folder / "profile" / "DevToolsActivePort"
        try:
            wait_for(lambda: port.exists() and port.read_text().count("\n") >= 1)
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self._connect(int(port.read_text().split()[0])))
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.prefer(dark=dark)
        except BaseException:
            self._process.kill()
            raise

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = await answer.json()
        (address,) = (tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self._socket = await self._session.ws_connect(address, max_msg_size=1 << 28)

    def close(self) -> None:
        async def end() -> None:
            await self._socket.close()
            await self._session.close()

        self._process.terminate()
        self._loop.run_until_complete(end())
        self._process.wait(PATIENCE)
        self._loop.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; what the console says meanwhile is kept."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._send(method, parameters), PATIENCE)
        )

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message.get("method"), message.get("params", {}))

    def _hear(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", str(details)))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.complaints.append(str([one.get("value") for one in about["args"]]))
        elif method == "Page.fileChooserOpened":
            self._chooser = about["backendNodeId"]
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"] + " " + about["entry"].get("url", ""))

    def prefer(self, *, dark: bool) -> None:
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def size(self, width: int, height: int = 900) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def go(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression, also of one that is awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, patience: float = _PATIENCE) -> Any:
        """The value of an expression as soon as it is true."""
        give_up = time.monotonic() + patience
        while not (found := self.run(script)):
            assert time.monotonic() < give_up, script
            time.sleep(0.02)
        return found

    def press(self, key: str) -> None:
        """Press and release a key, a letter or one of `_CODES`."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = _CODES.get(key, ord(key[0].upper()))
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def drop(self, *files: Path) -> None:
        """Drag files over the middle of the window, and let go."""
        place = {"x": self.run("innerWidth / 2"), "y": self.run("innerHeight / 2")}
        held = {"items": [], "files": [*map(str, files)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, data=held, **place)

    def choose(self, *files: Path) -> None:
        """Press Enter at the input of files that has the focus, and choose in the window that
        opens; it must open."""
        self._chooser = 0
        self.send("Page.setInterceptFileChooserDialog", enabled=True)
        self.press("Enter")
        wait_for(lambda: self.run("1") and self._chooser)
        self.send("DOM.setFileInputFiles", files=[*map(str, files)], backendNodeId=self._chooser)

    def shoot(self, path: Path, *, whole: bool = True) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
