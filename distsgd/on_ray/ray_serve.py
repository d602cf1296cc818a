"""An application of ours behind Ray Serve: replicas on a cluster, requests over its proxies."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from distsgd.engine.blas import same_core_type
from distsgd.errors import RuntimeFailure, import_optional

__all__ = ["Answering", "deployed"]

Read = Callable[[], AsyncIterator[bytes]]


class Answering(Protocol):
    """What answers requests, whatever carries them; see `distsgd.serving.application`."""

    def start(self) -> None:
        """Begin; called inside the event loop, once or more often."""

    async def carried(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        read: Read,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Answer a request: status, body, headers; see `Application.carried`."""


class _Replica:
    """One process that answers.

    Args:
        make: makes what answers, here.
    """

    def __init__(self, make: Callable[[], Answering]) -> None:
        self._answering = make()

    async def __call__(self, request: Any) -> Any:
        """Answer a request of Ray Serve, which is one of Starlette."""
        from starlette.responses import Response

        self._answering.start()
        query, headers = dict(request.query_params), dict(request.headers)
        status, body, given = await self._answering.carried(
            request.method, request.url.path, query, headers, request.stream
        )
        return Response(body, status, given)


@contextmanager
def deployed(
    make: Callable[[], Answering], name: str, host: str, port: int, replicas: int, waiting: int
) -> Iterator[None]:
    """While entered, a Ray that this process is connected to answers requests.

    Args:
        make: makes what answers, in each replica; pickled.
        name: of the application in Ray Serve.
        host: address at which the proxy listens.
        port: of the proxy.
        replicas: processes that answer, each with one CPU.
        waiting: requests that a replica takes at once.

    Raises:
        DistsgdError: Ray Serve is not installed.
        RuntimeFailure: it serves something else already, or the replicas do not start.
    """
    serve = import_optional("ray.serve", "serve")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if serve.status().applications:
        raise RuntimeFailure(
            "Ray Serve has applications on this cluster already, and one port for all of them",
            "End them with `serve shutdown`, or use another cluster",
        )
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    # Replicas multiply as this process does, so that their answers have its bits.
    own = {"num_cpus": 1, "runtime_env": {"env_vars": same_core_type()}}
    replica = serve.deployment(
        num_replicas=replicas, max_ongoing_requests=waiting, ray_actor_options=own,
        logging_config=quiet,
    )(_Replica)  # fmt: skip
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        serve.run(replica.bind(make), name=name, route_prefix="/")
    except Exception as error:
        with suppress(Exception):
            serve.shutdown()
        raise RuntimeFailure(
            f"Ray Serve did not start: {(str(error).strip() or type(error).__name__)[:300]}",
            "Check that every node has this version of distsgd, and the folder of the run",
        ) from None
    try:
        yield
    finally:
        with suppress(Exception):
            serve.shutdown()
