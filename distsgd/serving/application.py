"""Answers requests for predictions, whatever carries them: aiohttp in `server`, or Ray Serve."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any

from distsgd.data.system import OWN_THREAD
from distsgd.data.token_file import bearer_matches
from distsgd.serving.batches import Batches, Full
from distsgd.serving.bodies import Refused, wanted
from distsgd.serving.limits import Limits
from distsgd.serving.listener import HEADERS
from distsgd.serving.live_model import LiveModel
from distsgd.serving.metrics import Metrics
from distsgd.serving.openapi import description
from distsgd.training.predictor import Predictor

__all__ = ["Answer", "Application", "Head", "make_application"]

_log = logging.getLogger("distsgd")

_POLL = 1.0
"""Seconds between two looks for a newer or better checkpoint."""

_QUICK = 32 << 10
"""Bytes of a body that the event loop reads itself; larger ones are read in a thread."""

_PAGE = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/app.js": ("app.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Files that anyone may see who reaches the port: they hold nothing of the model."""


@dataclass(frozen=True)
class Head:
    """A request without its body.

    Attributes:
        method: such as "POST".
        path: without the query.
        query: the query's values by name.
        headers: by name in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        status: of HTTP.
        body: its content.
        content_type: of the content.
        headers: further ones.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Read = Callable[[], AsyncIterator[bytes]]
Handler = Callable[[Head, Read], Awaitable[Answer]]


class Application:
    """Predictions of one run, for those who know the token.

    Args:
        live: the model.
        token: that requests carry; "" to ask for none.
        limits: of requests.
    """

    def __init__(self, live: LiveModel, token: str, limits: Limits = Limits()) -> None:  # noqa: B008
        self._live, self._token, self.limits = live, token, limits
        self.metrics = Metrics()
        self._batches = Batches(limits, self.metrics.batch)
        self._reading = ThreadPoolExecutor(2, f"{OWN_THREAD}-read")
        self._looking = ThreadPoolExecutor(1, f"{OWN_THREAD}-reload")
        self._following: asyncio.Task[None] | None = None
        self._stopping = False
        self._routes: dict[str, dict[str, Handler]] = {
            "/predict": {"POST": self._predict},
            "/model": {"GET": self._model},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            **{path: {"GET": self._page} for path in _PAGE},
        }
        self._open_to_all = {"/health", "/ready", *_PAGE}

    @property
    def predictor(self) -> Predictor:
        """The predictor that answers now."""
        return self._live.current

    def start(self) -> None:
        """Begin to follow the run; called inside the event loop, once or more often."""
        if self._following is None and self._live.follows:
            self._following = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Be ready for no more requests; those that have come are answered."""
        self._stopping = True

    async def close(self) -> None:
        """Let go of threads, once all requests are answered."""
        if self._following is not None:
            self._following.cancel()
        for pool in (self._reading, self._looking):
            pool.shutdown(wait=False, cancel_futures=True)
        self._batches.close()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_POLL)
            await loop.run_in_executor(self._looking, self._live.refresh)

    async def answer(self, head: Head, read: Read) -> Answer:
        """Answer a request; never raises an `Exception`.

        Args:
            head: of the request.
            read: called at most once; gives the pieces of the body.
        """
        began = time.perf_counter()
        route = head.path if head.path in self._routes else "other"
        known = False
        try:
            handler = self._handler(head)
            known = True
            found = await handler(head, read)
        except Refused as error:
            found = self._refusal(error, known)
        except Full:
            busy = Refused(503, "too many rows are waiting", "Try again in a second")
            found = self._refusal(busy, known)
        except Exception as error:
            _log.exception("a request for %s has failed", route)
            what = f"the server has failed: {type(error).__name__}"
            found = self._refusal(Refused(500, what, "Its log says more"), known)
        self.metrics.request(route, found.status, time.perf_counter() - began)
        return found

    async def carried(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str],
        read: Read,
    ) -> tuple[int, bytes, dict[str, str]]:  # fmt: skip
        """The same in plain values, for Ray Serve: status, body and headers of the answer."""
        found = await self.answer(Head(method, path, query, headers), read)
        return found.status, found.body, {**found.headers, "Content-Type": found.content_type}

    def _handler(self, head: Head) -> Handler:
        """What answers a request.

        Raises:
            Refused: nothing does, or not without the token.
        """
        if head.path not in self._open_to_all and self._token:
            given = head.headers.get("authorization")
            if not bearer_matches(self._token, given):
                problem = "the token is wrong" if given else "a token is needed"
                hint = "Send the header Authorization: Bearer TOKEN"
                raise Refused(401, problem, hint)
        methods = self._routes.get(head.path)
        if methods is None:
            raise Refused(404, f"there is nothing at {head.path[:60]}", "See /docs")
        handler = methods.get("GET" if head.method == "HEAD" else head.method)
        if handler is None:
            raise Refused(405, f"{head.path} does not take {head.method[:20]}", "See /docs")
        return handler

    def _about(self, predictor: Predictor) -> dict[str, Any]:
        """What stands in every answer: the model, its version, and the SHA-256 of W."""
        return {
            "model": predictor.run,
            "version": predictor.version,
            "weights_sha256": predictor.weights_sha256,
        }

    def _refusal(self, error: Refused, known: bool) -> Answer:
        about = self._about(self.predictor) if known else {}
        content = {"error": error.problem, "hint": error.hint, **about}
        headers = {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if error.status == 405:
            headers["Allow"] = "GET, HEAD, POST"
        if error.status == 503:
            headers["Retry-After"] = "1"
        if error.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        return _json(content, error.status, headers)

    async def _predict(self, head: Head, read: Read) -> Answer:
        self._batches.begin()
        try:
            body = await self._body(head, read)
            predictor = self.predictor
            arguments = (
                predictor, head.headers.get("content-type", ""), head.query, body, self.limits
            )  # fmt: skip
            if len(body) <= _QUICK:
                asked = wanted(*arguments)
            else:
                loop = asyncio.get_running_loop()
                asked = await loop.run_in_executor(self._reading, wanted, *arguments)
            found = await self._batches.probabilities(predictor, asked.rows)
        finally:
            self._batches.end()
        self.metrics.rows(len(found))
        predictions = [
            {"label": classes[0], "classes": classes, "probabilities": shares}
            for classes, shares in predictor.likeliest(found, asked.top)
        ]
        return _json({**self._about(predictor), "predictions": predictions})

    async def _body(self, head: Head, read: Read) -> bytes:
        """The whole body.

        Raises:
            Refused: it is too large or too slow.
        """
        most = self.limits.body
        too_large = Refused(413, f"the body is larger than {most:,} bytes", "Send it in parts")
        length = head.headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 19 and int(length) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in read():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise too_large
        except TimeoutError:
            problem = f"the body did not arrive within {self.limits.seconds:g} s"
            raise Refused(408, problem, "Send it faster, or in parts") from None
        return b"".join(parts)

    async def _model(self, head: Head, read: Read) -> Answer:
        one = self.predictor
        about = {
            **self._about(one), "classes": one.classes, "shape": one.shape,
            "columns": one.columns, "width": one.width, "follows": self._live.follows,
        }  # fmt: skip
        return _json(about)

    async def _health(self, head: Head, read: Read) -> Answer:
        return _json({"status": "alive"})

    async def _ready(self, head: Head, read: Read) -> Answer:
        if self._stopping:
            return _json({"status": "stopping"}, 503)
        return _json({"status": "ready"})

    async def _metrics(self, head: Head, read: Read) -> Answer:
        text, kind = self.metrics.text(self._live, self._batches.waiting)
        return Answer(200, text, kind)

    async def _openapi(self, head: Head, read: Read) -> Answer:
        return _json(description(self.predictor, self.limits))

    async def _page(self, head: Head, read: Read) -> Answer:
        name, kind = _PAGE[head.path]
        return Answer(200, self._files[name], f"{kind}; charset=utf-8", HEADERS)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        """The page, read once: later the disk may be full, or gone."""
        top = files("distsgd").joinpath("serving", "page")
        return {name: top.joinpath(name).read_bytes() for name, _ in _PAGE.values()}


def make_application(run: str, checkpoint: str, token: str, limits: Limits) -> Application:
    """An application of a run that this machine can read; see `LiveModel` and `Application`."""
    return Application(LiveModel(run, checkpoint), token, limits)


_SAFE = {name: HEADERS[name] for name in ("X-Content-Type-Options", "Cache-Control")}


def _json(
    content: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    text = json.dumps(content, separators=(",", ":")).encode()
    return Answer(status, text, headers={**_SAFE, **(headers or {})})
