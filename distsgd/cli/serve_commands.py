"""``distsgd serve``: predictions of a run over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, print_pairs, say, show
from distsgd.cli.settings import Run

if TYPE_CHECKING:
    from distsgd.serving.application import Application

__all__ = ["add_to"]


def serve(
    run: Run,
    checkpoint: Annotated[
        str,
        typer.Option(help="last or best, which are followed while the run trains; or a number."),
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
    json: JsonFlag = False,
) -> None:
    """Answer requests for predictions: JSON rows, images, batches.

    It listens on this machine alone unless --host says otherwise, and wants a token. A page to drop
    images on is at /, the description of the interface at /docs and /openapi.json. While the run
    trains, newer (or, with --checkpoint best, better) checkpoints replace the model. Ctrl-C or
    SIGTERM ends it after open requests have been answered.

    Example: distsgd serve latest

    Example: distsgd serve latest --checkpoint best --port 8080
    """
    from distsgd.cli.run_kernel import multiply_as

    multiply_as(run)
    from distsgd.data.token_file import kept_token
    from distsgd.engine.blas import keep_one_blas_thread
    from distsgd.serving.application import Application
    from distsgd.serving.limits import Limits
    from distsgd.serving.listener import LOOPBACK, listen, serve_token_file
    from distsgd.serving.live_model import LiveModel

    limits = Limits().changed(limit or [])
    live = LiveModel(run, checkpoint)
    path = token_file or serve_token_file()
    token = kept_token(path)
    listener = listen(port, host)
    keep_one_blas_thread()
    application = Application(live, token, limits)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    model = application.predictor
    if json:
        print_json({
            "url": url, "port": listener.getsockname()[1], "token_file": str(path),
            "process": os.getpid(), "model": model.run, "version": model.version,
            "weights_sha256": model.weights_sha256,
        })  # fmt: skip
    else:
        show(f"{url}/#token={token}")
        print_pairs([
            ("run", f"{model.run}, update {model.version}"),
            ("weights", f"sha256 {model.weights_sha256}"),
            ("token", str(path)),
        ])  # fmt: skip
        if host != LOOPBACK:
            say("requests and the token are not encrypted: put a proxy with TLS before it")
        say("Ctrl-C ends it")
    asyncio.run(_serve(application, listener))


async def _serve(application: Application, listener: socket.socket) -> None:
    """Serve until a signal; a second one leaves at once."""
    from distsgd.serving.server import serve as answer

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def come(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        say("open requests are answered first; a second signal leaves at once")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, come, number)
    await answer(application, listener, stop)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)
