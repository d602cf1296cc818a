"""A server of predictions in this process, and requests to it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from distsgd.serving.application import Application
from distsgd.serving.limits import Limits
from distsgd.serving.listener import listen
from distsgd.serving.live_model import LiveModel
from distsgd.serving.server import serve

PATIENCE = 60.0
TOKEN = "the token of the tests"


class Client:
    """What a program does that asks for predictions."""

    def __init__(self, session: aiohttp.ClientSession, port: int, application: Application) -> None:
        self.session, self.port, self.application = session, port, application
        self.stop = asyncio.Event()
        self.url = f"http://127.0.0.1:{port}"

    async def ask(
        self, path: str, body: Any = None, kind: str = "", method: str = "", **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, content and headers of an answer."""
        given = {"Authorization": f"Bearer {TOKEN}", **headers}
        if kind:
            given["Content-Type"] = kind
        method = method or ("GET" if body is None else "POST")
        async with self.session.request(
            method, self.url + path, data=body, headers=given
        ) as answer:
            content = await answer.read()
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, json.loads(content) if is_json else content, answer.headers

    async def predictions(self, body: Any, kind: str, query: str = "?top=10") -> Any:
        status, content, _ = await self.ask(f"/predict{query}", body, kind)
        assert status == 200, content
        return content["predictions"]

    async def said(self, content: bytes, wait: bool = True) -> bytes:
        """What comes back to bytes that are sent as they are."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(content)
        await writer.drain()
        try:
            return await reader.read() if wait else b""
        finally:
            writer.close()


def served(
    look: Callable[[Client], Awaitable[None]], run: Path, checkpoint: str = "last", **limits: Any
) -> None:
    """Serve a run while ``look`` asks."""

    async def both() -> None:
        application = Application(LiveModel(run, checkpoint), TOKEN, Limits(**limits))
        listener = listen(0)
        async with aiohttp.ClientSession() as session:
            client = Client(session, listener.getsockname()[1], application)
            serving = asyncio.create_task(serve(application, listener, client.stop))
            try:
                await asyncio.wait_for(look(client), PATIENCE)
            finally:
                client.stop.set()
                await serving

    asyncio.run(both())


def png(row: np.ndarray) -> bytes:
    """An example of CIFAR-10's shape as a file."""
    file = io.BytesIO()
    image = np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()
