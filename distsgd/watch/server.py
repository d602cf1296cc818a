"""The server of the page: bound to loopback, read by those who have its link, reads runs only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from distsgd.data.system import python_module, whole_environment
from distsgd.errors import DistsgdError
from distsgd.figures.of_runs import AXES
from distsgd.serving.listener import HEADERS, LOOPBACK, listen
from distsgd.version import __version__
from distsgd.watch.access import Access
from distsgd.watch.feed import Feed, encoded
from distsgd.watch.listing import Listing
from distsgd.watch.pictures import example_picture, template_picture
from distsgd.watch.views import RunView, view

__all__ = ["WatchServer"]

_MOST_RUNS = 64
"""Runs of one view."""

_OLD = 0.8
"""Seconds for which the list of runs is not looked at again."""

_TYPES = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
}  # fmt: skip
_BEAT = 15.0
"""Seconds after which a quiet connection is written to, to notice that it is gone."""

_ENTER = (
    '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>distsgd</title>'
    '<link rel="icon" href="/page/icon.svg"><meta http-equiv="refresh" content="0;url=/">'
    '<p><a href="/">distsgd watch</a></p></html>'
)
"""A page that leads on: a cookie for this site alone does not survive a redirect from another."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WatchServer:
    """Serves the page until it is stopped.

    Args:
        listing: the runs.
        port: on loopback; 0 for any that is free.

    Raises:
        UsageError: the port is taken or not allowed.
    """

    def __init__(self, listing: Listing, port: int = 0) -> None:
        self._listing, self._access = listing, Access()
        self._socket = listen(port)
        self.port: int = self._socket.getsockname()[1]
        self._cookie = f"distsgd-{self.port}"
        self._views: dict[str, RunView] = {}
        self._feeds: dict[tuple[str, ...], Feed] = {}
        self._list = Feed(self._rows, self._content, poll=0.8)
        self._proofs: set[asyncio.subprocess.Process] = set()
        self._files = {entry.name: entry for entry in _pages() if entry.is_file()}
        listing.look()

    @property
    def url(self) -> str:
        """The link, with its token."""
        return f"http://{LOOPBACK}:{self.port}/?token={self._access.token}"

    async def serve(self, stop: asyncio.Event) -> None:
        """Answer requests until ``stop`` is set."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        app.add_routes([
            web.get("/", self._page),
            web.get("/page/{file}", self._file),
            web.get("/key", self._key),
            web.get("/events", self._events),
            web.get("/view", self._view),
            web.get("/runs/{run}/templates/{version:[0-9]{1,18}}.png", self._templates),
            web.get("/runs/{run}/examples.png", self._examples),
            web.post("/runs/{run}/{proof:audit|replay}", self._prove),
        ])  # fmt: skip
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handle_signals=False)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
            await stop.wait()
        finally:
            for feed in (self._list, *self._feeds.values()):
                feed.end()
            for process in self._proofs:
                with suppress(ProcessLookupError):
                    process.kill()
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests without the cookie or of other pages; add our headers to the others."""
        link = request.path == "/" and "token" in request.query
        cookie = request.cookies.get(self._cookie)
        why = self._access.refusal(request.method, request.headers, cookie, link=link)
        if not why and link and not self._access.opens(request.query["token"]):
            why = "this is not the token of the link that `distsgd watch` printed"
        if why:
            return web.Response(status=403, text=why + "\n", headers=HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if "token" not in request.query:
            return self._sent("index.html")
        response = web.Response(text=_ENTER, content_type="text/html")
        response.set_cookie(
            self._cookie, self._access.session, httponly=True, samesite="Strict", path="/"
        )
        return response

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._sent(request.match_info["file"])

    def _sent(self, name: str) -> web.Response:
        """A file of the page; nothing else on this machine has an address."""
        entry = self._files.get(name)
        kind = _TYPES.get(Path(name).suffix)
        if entry is None or kind is None:
            raise web.HTTPNotFound
        return web.Response(body=entry.read_bytes(), content_type=kind, charset="utf-8")

    async def _key(self, request: web.Request) -> web.StreamResponse:
        content = {"key": self._access.key, "version": __version__, "start": self._listing.start}
        return web.json_response(content)

    def _rows(self) -> object:
        return self._listing.look(_OLD)

    def _content(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self._listing.look(_OLD)]}

    def _of(self, request: web.Request) -> RunView:
        """The run that an address names."""
        found = self._listing.folder(request.match_info["run"])
        if found is None:
            raise web.HTTPNotFound
        return self._view_of(found)

    def _view_of(self, folder: Path) -> RunView:
        return self._views.setdefault(str(folder), RunView(folder))

    def _wanted(self, request: web.Request) -> tuple[str, ...]:
        """The x axis, and the identities of the runs, of a view."""
        axis = request.query.get("x", "epoch")
        names = [name for name in request.query.get("runs", "latest").split(",") if name]
        if axis not in AXES or not 0 < len(names) <= _MOST_RUNS:
            raise web.HTTPBadRequest
        return (axis, *names)

    def _looked_at(self, names: Sequence[str]) -> list[RunView]:
        """The runs of a view; of those that are gone, none."""
        if list(names) == ["latest"]:
            names = [row["id"] for row in self._listing.look(_OLD)[:1]]
        folders = (self._listing.folder(name) for name in names)
        return [self._view_of(folder) for folder in folders if folder is not None]

    def _made(self, wanted: tuple[str, ...]) -> dict[str, Any]:
        runs = self._looked_at(wanted[1:])
        for run in runs:
            run.look()
        return view(runs, wanted[:1])

    def _feed(self, wanted: tuple[str, ...]) -> Feed:
        if wanted not in self._feeds:
            self._feeds[wanted] = Feed(
                lambda: [run.stamp() for run in self._looked_at(wanted[1:])],
                lambda: self._made(wanted),
            )
        return self._feeds[wanted]

    async def _view(self, request: web.Request) -> web.StreamResponse:
        content = await asyncio.to_thread(self._made, self._wanted(request))
        return web.Response(text=encoded(content), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: "runs", changes to the list, and "view", changes to a view."""
        wanted = self._wanted(request)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        writing = asyncio.Lock()

        async def pass_on(name: str, feed: Feed) -> None:
            queue = await feed.join()
            try:
                while True:
                    try:
                        message = await asyncio.wait_for(queue.get(), _BEAT)
                    except TimeoutError:
                        message = ""
                    if message is None:
                        return
                    async with writing:
                        text = f"event: {name}\ndata: {message}\n\n" if message else ":\n\n"
                        await response.write(text.encode())
            finally:
                feed.leave(queue)

        tasks = [
            asyncio.create_task(pass_on("runs", self._list)),
            asyncio.create_task(pass_on("view", self._feed(wanted))),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if (feed := self._feeds.get(wanted)) is not None and feed.idle:
                del self._feeds[wanted]
        return response

    async def _templates(self, request: web.Request) -> web.StreamResponse:
        run, version = self._of(request), int(request.match_info["version"])
        return await _pictured(template_picture, run.folder, version)

    async def _examples(self, request: web.Request) -> web.StreamResponse:
        run = self._of(request)
        await asyncio.to_thread(run.look)
        if run.history is None:
            raise web.HTTPNotFound
        wrong = run.history.classes.get("surest_wrong", [])
        return await _pictured(example_picture, run.folder, [row["index"] for row in wrong])

    async def _prove(self, request: web.Request) -> web.StreamResponse:
        """Run `distsgd audit` or `replay`, and return what it prints."""
        folder, proof = self._of(request).folder, request.match_info["proof"]
        process = await asyncio.create_subprocess_exec(
            *python_module("distsgd", proof, "--json", "--", str(folder)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True, env=whole_environment(),
        )  # fmt: skip
        self._proofs.add(process)
        try:
            out, err = await process.communicate()
        finally:
            self._proofs.discard(process)
            if process.returncode is None:
                process.kill()
        try:
            result = json.loads(out)
        except ValueError:
            result = None
        said = err.decode("utf-8", "replace").strip()
        return web.json_response({"code": process.returncode, "result": result, "said": said})


async def _pictured(make: Callable[..., bytes | None], *arguments: object) -> web.Response:
    try:
        found = await asyncio.to_thread(make, *arguments)
    except (DistsgdError, OSError):
        found = None
    if found is None:
        raise web.HTTPNotFound
    return web.Response(body=found, content_type="image/png")


def _pages() -> list[Any]:
    top = files("distsgd").joinpath("watch", "page")
    return [*top.iterdir(), *top.joinpath("uplot").iterdir()]
