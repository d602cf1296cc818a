"""Count the bytes between two hosts of two workers each, an update, by the kernel's counters.

    python scripts/host_bytes.py [--set batch_size=512 ...]

Two trainings on the embedded sample differ in nothing but their epochs, so that the difference of
their bytes is that of updates alone, without start-up; what the idle cluster sends in the same time
is subtracted. Beside it stands what a push and a pull of W by every worker of the second host come
to. W must have the bits of a training in one process. Needs root (network namespaces); takes a
minute on two quiet cores.
"""

from __future__ import annotations

import argparse
import sys
import time

from harness.processes import result
from harness.tables import Table, print_environment
from harness.two_hosts import TwoHosts, two_hosts, why_not

FEW, MANY = 10, 110
"""Epochs; six updates each, with the default size of a minibatch."""

IDLE = 3.0


def idle_rate(hosts: TwoHosts) -> float:
    """Bytes a second between the hosts while nothing is trained."""
    before = hosts.bytes_between()
    time.sleep(IDLE)
    return (hosts.bytes_between() - before) / IDLE


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    if missing := why_not():
        print(missing)
        return 1
    settings = ["--dataset", "sample", *(word for one in given.set for word in ("--set", one))]
    print_environment()
    found = []
    with two_hosts() as hosts:
        idle = idle_rate(hosts)
        for epochs in (FEW, MANY):
            before = hosts.bytes_between()
            answer = hosts.trained(*settings, "--epochs", epochs)
            found.append((hosts.bytes_between() - before, answer))
    (few, short), (many, long) = found
    updates = long["steps"] - short["steps"]
    seconds = long["train_seconds"] - short["train_seconds"]
    an_update = (many - few - idle * seconds) / updates
    alone = result("train", *settings, "--epochs", MANY, "--workers", 0)["weights_sha256"]
    table = Table("two hosts of two workers", "")
    table.row("channels", long["channel"])
    table.row("updates counted", updates)
    table.row("updates a second", updates / seconds)
    table.row("bytes of the idle cluster, a second", idle)
    table.row("bytes between the hosts, an update", an_update)
    table.row("bytes of gradients pushed to the server, an update", float(long["bytes_per_update"]))
    same = long["weights_sha256"] == alone
    table.row("the bits of one process", "yes" if same else "no")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
