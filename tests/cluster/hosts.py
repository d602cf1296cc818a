"""Several hosts on one machine: network namespaces on a bridge, each with folders of its own.

Needs root. What a host runs sees its own network, its own home and data folders and its own
/dev/shm; its processes are ended, and all of it removed, when the block ends.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support import PATIENCE

TOP = Path(__file__).parents[2]


def possible() -> str | None:
    """None if hosts can be made here, else what is missing."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for tool in ("ip", "unshare", "tc"):
        if shutil.which(tool) is None:
            return f"needs {tool}, for network namespaces"
    done = subprocess.run(["ip", "netns", "add", name := f"dp{secrets.token_hex(3)}"],
                          capture_output=True)  # fmt: skip
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None if done.returncode == 0 else "network namespaces cannot be made here"


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


class Host:
    """One of them.

    Attributes:
        ip: its address.
        folder: what only it has: home, data, temporary files.
    """

    def __init__(self, name: str, link: str, ip: str, folder: Path) -> None:
        self.name, self.link, self.ip, self.folder = name, link, ip, folder
        self.inner = "dw" + link.removeprefix("dv")
        self._relay: subprocess.Popen[str] | None = None
        for part in ("home", "cache", "tmp"):
            (folder / part).mkdir(parents=True)

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs distsgd there, with /dev/shm and /mnt of its own."""
        inside = (
            "mount -t tmpfs none /dev/shm && mount --bind \"$0\" /mnt && exec \"$@\""
        )  # fmt: skip
        return [
            "ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", inside,
            str(self.folder), sys.executable, "-m", "distsgd", *map(str, arguments),
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **kept, "DISTSGD_HOME": str(self.folder / "home"), "DISTSGD_CACHE": "/mnt/cache",
            "PYTHONPATH": str(TOP), "COLUMNS": "200", "HOME": str(self.folder / "home"),
        }  # fmt: skip

    def distsgd(
        self, *arguments: object, timeout: float = PATIENCE, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(
            self.command(*arguments), env={**self.environment, **more}, capture_output=True,
            text=True, timeout=timeout, cwd=self.folder,
        )  # fmt: skip

    def start(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        """Begin a command there."""
        return subprocess.Popen(
            self.command(*arguments), env={**self.environment, **more}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, cwd=self.folder,
        )  # fmt: skip

    def node_folders(self) -> list[Path]:
        """Those of the nodes that its user has started and not stopped."""
        notes = (self.folder / "home" / "cluster").glob("node-*.json")
        return [Path(json.loads(note.read_text())["folder"]) for note in notes]

    def pids(self) -> list[int]:
        """What runs in its network."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in done.stdout.split()]

    def kill(self) -> None:
        """Cut the power: everything on it dies at once."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def cut_off(self) -> None:
        """Take its link down."""
        run("ip", "link", "set", self.link, "down")

    def back(self) -> None:
        """Take its link up."""
        run("ip", "link", "set", self.link, "up")

    def slow(self, milliseconds: int, mbits: int) -> None:
        """A link with so much delay each way, and so little width."""
        outer = f"{self.link}o"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", f"{self.link}i")
        self._bridge = Path(f"/sys/class/net/{self.link}/master").resolve().name
        run("ip", "link", "set", self.link, "nomaster")
        run("ip", "link", "set", outer, "master", self._bridge, "up")
        run("ip", "link", "set", f"{self.link}i", "up")
        # Whole frames with whole checksums, as a relay cannot finish them.
        for device in (self.link, f"{self.link}i", outer):
            run(sys.executable, "-c", _PLAIN, device)
        self.plain_frames()
        self._relay = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "slow_link.py"), self.link,
             f"{self.link}i", str(milliseconds), str(mbits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == "ready\n"

    def plain_frames(self) -> None:
        """Have it send frames that a relay can hand on."""
        run("ip", "netns", "exec", self.name, sys.executable, "-c", _PLAIN, self.inner)

    def fast(self) -> None:
        """End the relay of `slow`, if there is one."""
        if self._relay is not None:
            self._relay.communicate()
            run("ip", "link", "del", f"{self.link}o")
            run("ip", "link", "set", self.link, "master", self._bridge)
            self._relay = None


_PLAIN = """
import fcntl, socket, struct, sys
import array
for command in (0x17, 0x1f, 0x24, 0x2c):  # no offload of checksums, nor of cutting into frames
    value = array.array("B", struct.pack("II", command, 0))
    request = struct.pack("16sP", sys.argv[1].encode(), value.buffer_info()[0]) + bytes(8)
    with socket.socket() as door:
        fcntl.ioctl(door, 0x8946, request)
"""


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other."""
    key = secrets.token_hex(2)
    bridge, net = f"db{key}", f"10.{secrets.randbelow(120) + 100}.{secrets.randbelow(250)}"
    folder = Path(tempfile.mkdtemp(prefix="dh", dir="/tmp"))
    found: list[Host] = []
    try:
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "link", "set", bridge, "up")
        for n in range(1, number + 1):
            name, link, inner = f"dn{key}{n}", f"dv{key}{n}", f"dw{key}{n}"
            run("ip", "netns", "add", name)
            found.append(Host(name, link, f"{net}.{n}", folder / str(n)))
            run("ip", "link", "add", link, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", link, "master", bridge, "up")
            run("ip", "link", "set", inner, "netns", name)
            run("ip", "-n", name, "addr", "add", f"{net}.{n}/24", "dev", inner)
            run("ip", "-n", name, "link", "set", inner, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield found
    finally:
        for host in found:
            host.kill()
        for host in found:
            host.fast()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            subprocess.run(["ip", "link", "del", host.link], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
