"""A server of pages in this process, and requests to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from distsgd.watch.changes import applied
from distsgd.watch.listing import Listing
from distsgd.watch.server import WatchServer

PATIENCE = 60.0


class Page:
    """What a browser does."""

    def __init__(self, session: aiohttp.ClientSession, server: WatchServer) -> None:
        self.session, self.server = session, server
        self.origin = f"http://127.0.0.1:{server.port}"

    async def get(self, path: str, **more: Any) -> tuple[int, bytes, Any]:
        async with self.session.get(self.origin + path, **more) as answer:
            return answer.status, await answer.read(), answer.headers

    async def json(self, path: str) -> Any:
        status, body, _ = await self.get(path)
        assert status == 200, body
        return json.loads(body)

    async def post(self, path: str, **headers: str) -> tuple[int, bytes]:
        key = (await self.json("/key"))["key"]
        given = {"Origin": self.origin, "X-Distsgd-Key": key, **headers}
        async with self.session.post(self.origin + path, headers=given) as answer:
            return answer.status, await answer.read()

    @asynccontextmanager
    async def following(self, query: str = "") -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """The values that a page has after each message: `await until(name, condition)`."""
        async with self.session.get(f"{self.origin}/events{query}") as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            values: dict[str, Any] = {}

            async def until(name: str, condition: Callable[[Any], Any]) -> Any:
                while not (name in values and condition(values[name])):
                    block = (await answer.content.readuntil(b"\n\n")).decode()
                    pairs = (line.split(": ", 1) for line in block.strip().split("\n"))
                    lines = dict(pair for pair in pairs if len(pair) == 2)
                    if "event" in lines:
                        event = lines["event"]
                        values[event] = applied(values.get(event), json.loads(lines["data"]))
                return values[name]

            yield until


def watched(
    look: Callable[[Page], Awaitable[None]], place: str = "latest", *, enter: bool = True
) -> None:
    """Serve runs while ``look`` looks at them.

    Args:
        look: called with a page.
        place: see `Listing`.
        enter: whether the page has opened the link.
    """

    async def both() -> None:
        server, stop = WatchServer(Listing(place)), asyncio.Event()
        serving = asyncio.create_task(server.serve(stop))
        jar = aiohttp.CookieJar(unsafe=True)
        try:
            async with aiohttp.ClientSession(cookie_jar=jar) as session:
                page = Page(session, server)
                if enter:
                    assert (await page.get(server.url.removeprefix(page.origin)))[0] == 200
                await asyncio.wait_for(look(page), PATIENCE)
        finally:
            stop.set()
            await serving

    asyncio.run(both())
