"""``distsgd serve``: predictions of a run over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, print_pairs, say, show
from distsgd.cli.settings import Run
from distsgd.errors import UsageError

if TYPE_CHECKING:
    from distsgd.serving.application import Application
    from distsgd.training.predictor import Predictor

__all__ = ["add_to"]


def serve(
    run: Run,
    checkpoint: Annotated[
        str,
        typer.Option(help="last or best, which are followed while the run trains; or any update."),
    ] = "last",
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.", min=0)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token of requests. (default: one of yours)"),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE: body, rows, pixels, seconds, connections, waiting, ..."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve by Ray Serve, in several processes.")
    ] = False,
    replicas: Annotated[int, typer.Option(help="Processes of Ray Serve.", min=1)] = 2,
    address: Annotated[
        str | None, typer.Option(help="Of a cluster for --ray: HOST:PORT or auto.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Answer requests for predictions: JSON rows, images, batches.

    It listens on this machine alone unless --host says otherwise, and wants a token. A page to drop
    images on is at /, the description of the interface at /docs and /openapi.json. While the run
    trains, newer (or, with --checkpoint best, better) checkpoints replace the model. Ctrl-C or
    SIGTERM ends it after open requests have been answered.

    Example: distsgd serve latest

    Example: distsgd serve latest --checkpoint best --port 8080

    Example: distsgd serve latest --ray --replicas 4 --address auto
    """
    from distsgd.cli.run_kernel import multiply_as

    multiply_as(run)
    from distsgd.data.token_file import kept_token
    from distsgd.engine.blas import keep_one_blas_thread
    from distsgd.runs import find_run
    from distsgd.serving.application import make_application
    from distsgd.serving.limits import Limits
    from distsgd.serving.listener import listen, serve_token_file

    if address is not None and not ray:
        raise UsageError("--address is of a cluster that serves", "Give --ray too")
    limits = Limits().changed(limit or [])
    path = token_file or serve_token_file()
    place = str(find_run(run).path.resolve())
    make = partial(make_application, place, checkpoint, kept_token(path), limits)
    application = make()  # here too, so that errors come at once
    listener = listen(port, host)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    tell = partial(_tell, application.predictor, where, path, json)
    if not ray:
        keep_one_blas_thread()
        asyncio.run(_serve(application, listener, tell))
        return
    port = listener.getsockname()[1]
    listener.close()
    from distsgd.cluster.connection import joined_cluster
    from distsgd.on_ray.ray_serve import deployed
    from distsgd.on_ray.session import ray_session

    say("starting Ray Serve ...")
    with (
        ray_session(replicas + 1) if address is None else joined_cluster(address),
        deployed(make, "distsgd", host, port, replicas, limits.connections),
    ):
        asyncio.run(_until_signal(tell))


def _tell(model: Predictor, url: str, token_file: Path, json: bool) -> None:
    """Say what is served, and where."""
    if json:
        print_json({
            "url": url, "port": int(url.rpartition(":")[2]), "token_file": str(token_file),
            "process": os.getpid(), "model": model.run, "version": model.version,
            "weights_sha256": model.weights_sha256,
        })  # fmt: skip
        return
    from distsgd.data.token_file import kept_token

    show(f"{url}/#token={kept_token(token_file)}")
    print_pairs([
        ("run", f"{model.run}, update {model.version}"),
        ("weights", f"sha256 {model.weights_sha256}"),
        ("token", str(token_file)),
    ])  # fmt: skip
    if not url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
        say("requests and the token are not encrypted: put a proxy with TLS before it")
    say("Ctrl-C ends it")


async def _serve(
    application: Application, listener: socket.socket, tell: Callable[[], None]
) -> None:
    from distsgd.serving.server import serve as answer

    stop = _stop_at_signal()
    tell()
    await answer(application, listener, stop)


async def _until_signal(tell: Callable[[], None]) -> None:
    stop = _stop_at_signal()
    tell()
    await stop.wait()


def _stop_at_signal() -> asyncio.Event:
    """Set by the first signal; a second one leaves at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def come(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        say("open requests are answered first; a second signal leaves at once")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, come, number)
    return stop


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)
