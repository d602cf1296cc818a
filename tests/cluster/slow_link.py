"""Hands frames on between two network devices, late and no faster than a given rate.

``python slow_link.py ONE OTHER MILLISECONDS MBITS``, as root, until its standard input ends. For
kernels without netem. Each way has the delay and the width to itself.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress

_ALL_PROTOCOLS = 3
_OUTGOING = 4
_MOST_FRAMES = 5_000


def hand_on(source: socket.socket, target: socket.socket, delay: float, rate: float) -> None:
    """Frames of one way: read by this thread, sent by another when they are due."""
    waiting: deque[tuple[float, bytes]] = deque()
    news = threading.Condition()

    def send() -> None:
        while True:
            with news:
                while not waiting:
                    news.wait()
                due, frame = waiting.popleft()
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            with suppress(OSError):  # too large, or the device has gone
                target.send(frame)

    threading.Thread(target=send, daemon=True).start()
    free = 0.0  # when the line has sent what came before
    while True:
        frame, where = source.recvfrom(65536)
        if where[2] == _OUTGOING:
            continue
        free = max(free, time.monotonic()) + len(frame) * 8 / rate
        with news:
            if len(waiting) < _MOST_FRAMES:
                waiting.append((free + delay, frame))
                news.notify()


def main(one: str, other: str, milliseconds: str, mbits: str) -> None:
    doors = []
    for name in (one, other):
        door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        door.bind((name, 0))
        doors.append(door)
    for source, target in (doors, doors[::-1]):
        threading.Thread(
            target=hand_on, args=(source, target, float(milliseconds) / 1e3, float(mbits) * 1e6),
            daemon=True,
        ).start()  # fmt: skip
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
