"""``distsgd watch``: runs in a browser, live."""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from distsgd.cli.output import JsonFlag, print_json, say, show

if TYPE_CHECKING:
    from distsgd.watch.server import WatchServer

__all__ = ["add_to", "has_screen", "how_to_forward"]

_LOOK = 0.5
"""Seconds between two looks whether the process that is followed lives."""


def watch(
    place: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="Path or name of a run, latest, or a folder of runs."),
    ] = "latest",
    address: Annotated[
        str | None,
        typer.Option(help="Of a cluster whose run it is: HOST:PORT, http://HOST:8265, or auto."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine. (default: any)", min=0)] = 0,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
    until: Annotated[int, typer.Option(hidden=True, help="End with this process.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Watch runs in a browser: curves, workers, templates, live while they train and afterwards.

    The page starts on the latest run, and follows to newer ones. It is served on this machine
    alone, to those who have the link, until Ctrl-C; it reads run folders, and writes nothing.

    With --address it shows the run of a job of a cluster, from a copy that another job keeps
    up to date.

    Example: distsgd watch latest

    Example: distsgd watch job-20260101-120000-ab12 --address auto
    """
    _give_way()
    with ExitStack() as stack:
        if address is not None:
            from distsgd.watch.mirror import mirrored_run

            say(f"asking {address} for the run ...")
            place = str(stack.enter_context(mirrored_run(place, address)))
        _watch(place, port, open_, until, json)


def _watch(place: str, port: int, open_: bool, until: int, json: bool) -> None:
    from distsgd.watch.listing import Listing
    from distsgd.watch.server import WatchServer

    server = WatchServer(Listing(place), port)
    screen = open_ and has_screen()
    if json:
        print_json({"url": server.url, "port": server.port, "opened": screen})
    else:
        show(server.url)
        if not has_screen():
            say("there is no browser here; on your own computer, forward the port, then open it:")
            say(f"  {how_to_forward(server.port)}")
        say("Ctrl-C ends it")
    if screen:
        import webbrowser

        webbrowser.open(server.url)
    asyncio.run(_serve(server, until))


async def _serve(server: WatchServer, until: int) -> None:
    """Serve until a signal, or the end of the process that started it."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    following = asyncio.create_task(_follow(until, stop)) if until else None
    try:
        await server.serve(stop)
    finally:
        if following is not None:
            following.cancel()


async def _follow(process: int, stop: asyncio.Event) -> None:
    while os.getppid() == process:
        await asyncio.sleep(_LOOK)
    stop.set()


def _give_way() -> None:
    """Run when the processors have nothing else to do: a training on them comes first."""
    with suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(19)


def has_screen() -> bool:
    """Whether a browser can probably be opened here."""
    names = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in names)


def how_to_forward(port: int) -> str:
    """The command that brings a port of this machine to another one."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "USER"
    return f"ssh -N -L {port}:127.0.0.1:{port} {shlex.quote(f'{user}@{socket.gethostname()}')}"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)
