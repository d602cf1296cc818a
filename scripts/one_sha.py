"""Train with every kind of fleet, and check that all give one SHA-256 of W.

    python scripts/one_sha.py [--epochs N] [--set model=mlp:20 --set optimizer=adam ...]

In one process; with 1 to 4 workers, over every channel, with 1 to 3 servers; and with two workers
on each of two hosts (network namespaces; needs root, and is left out without). The policy is `bsp`,
the dataset the embedded sample. A line for each, and the exit code is 1 unless all are the same.
Takes three minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from harness.processes import Failure
from harness.tables import Table
from harness.two_hosts import two_hosts, why_not

from distsgd.config.settings import SETTINGS
from distsgd.config.sources import config_from
from distsgd.on_ray.session import ray_session
from distsgd.training import train

MOST_WORKERS, MOST_SERVERS = 4, 3
Fleet = dict[str, Any]
Row = tuple[str, str, str]  # what it is, the channels in use, the SHA-256 or what failed


def fleets() -> list[Fleet]:
    """The settings of every fleet on one host, beside those of the training."""
    kinds = product(
        range(1, MOST_WORKERS + 1), range(1, MOST_SERVERS + 1), SETTINGS["channel"].choices
    )
    return [
        {"workers": workers, "servers": servers, "channel": channel}
        for workers, servers, channel in kinds
        if channel != "team" or servers == 1
    ]


def between_hosts(channel: str) -> str:
    return f"two hosts of 2 workers, channel {channel}"


def described(fleet: Fleet) -> str:
    return ", ".join(f"{name} {value}" for name, value in fleet.items())


def on_this_host(settings: dict[str, Any], chosen: list[Fleet]) -> Iterator[Row]:
    with ray_session(cpus=MOST_WORKERS + MOST_SERVERS):
        for fleet in ({"workers": 0}, *chosen):
            with tempfile.TemporaryDirectory() as folder:
                config = config_from({**settings, **fleet})
                try:
                    found = train(config=config, run_dir=Path(folder) / "run")
                    yield described(fleet), found.channel, found.weights_sha256
                except Exception as error:
                    yield described(fleet), "", f"{type(error).__name__}: {error}"


def on_two_hosts(settings: dict[str, Any], channels: list[str]) -> Iterator[Row]:
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with two_hosts() as hosts:
        for channel in channels:
            what = between_hosts(channel)
            try:
                found = hosts.trained(*given, "--channel", channel)
                yield what, found["channel"], found["weights_sha256"]
            except Failure as failure:
                yield what, "", str(failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--only", default="", metavar="PATTERN", help="lines that match this regex")
    given = parser.parse_args()
    wanted = re.compile(given.only).search
    settings = dict(one.split("=", 1) for one in given.set)
    settings = {"dataset": "sample", "epochs": given.epochs, **settings}
    table, found = Table("fleet", "channels", "SHA-256 of W"), Counter[str]()

    def show(rows: Iterator[Row]) -> None:
        for row in rows:
            table.row(*row)
            found[row[2]] += 1

    show(on_this_host(settings, [fleet for fleet in fleets() if wanted(described(fleet))]))
    channels = [name for name in ("auto", "tcp", "ray") if wanted(between_hosts(name))]
    missing = why_not()
    if missing:
        print(f"\ntwo hosts are left out: {missing}")
    elif channels:
        show(on_two_hosts(settings, channels))
    print(f"\n{found.total()} fleets, {len(found)} SHA-256")
    return int(len(found) != 1)


if __name__ == "__main__":
    sys.exit(main())
