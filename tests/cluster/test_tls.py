"""TLS for Ray and for our channels: with the certificates of one authority, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, hosts, possible

from distsgd.data.locations import SAMPLE
from distsgd.training import train

missing = possible() or (None if shutil.which("openssl") else "needs openssl, for certificates")
pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(missing), reason=str(missing))]


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificates(folder: Path, addresses: list[str]) -> dict[str, str]:
    """Settings of Ray with a new authority and a certificate of it for all of the addresses."""
    folder.mkdir()
    own, node = folder / "authority", folder / "node"
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *new, "-keyout", f"{own}.key", "-out", f"{own}.crt", "-days", 2,
            "-subj", "/CN=authority")  # fmt: skip
    openssl("req", *new, "-keyout", f"{node}.key", "-out", f"{node}.csr", "-subj", "/CN=node")
    names = ",".join([*(f"IP:{address}" for address in addresses), "IP:127.0.0.1"])
    (folder / "names").write_text(f"subjectAltName={names}\n")
    openssl("x509", "-req", "-in", f"{node}.csr", "-CA", f"{own}.crt", "-CAkey", f"{own}.key",
            "-CAcreateserial", "-out", f"{node}.crt", "-days", 2,
            "-extfile", folder / "names")  # fmt: skip
    return {
        "RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": f"{node}.crt",
        "RAY_TLS_SERVER_KEY": f"{node}.key", "RAY_TLS_CA_CERT": f"{own}.crt",
    }  # fmt: skip


@pytest.fixture
def machines() -> Iterator[list[Host]]:
    with hosts(3) as found:
        yield found
        for host in found:
            host.distsgd("cluster", "stop")
            assert not host.pids()


def test_who_has_no_certificate_of_ours_stays_outside(machines: list[Host], tmp_path: Path) -> None:
    first, second, stranger = machines
    addresses = [host.ip for host in machines]
    ours, theirs = (certificates(tmp_path / name, addresses) for name in ("ours", "theirs"))
    for host in machines:
        shutil.copytree(SAMPLE, host.folder / "cache" / "datasets" / "cifar10")
    done = first.distsgd("cluster", "start", "--head", "--node-ip", first.ip, "--cpus", "2", **ours)
    assert done.returncode == 0, done.stderr
    for host in (second, stranger):
        shutil.copy(first.folder / "home" / "cluster" / "token", host.folder / "token")
    join = ("cluster", "start", "--join", f"{first.ip}:6379", "--token-file")
    done = second.distsgd(*join, second.folder / "token", "--cpus", "2", **ours)
    assert done.returncode == 0, done.stderr
    # Also of one who has the token.
    for settings, says in ((theirs, "no TLS with"), ({}, "uses TLS, and this process does not")):
        done = stranger.distsgd(*join, stranger.folder / "token", **settings)
        assert done.returncode == 1 and says in done.stderr, done.stderr
    settings = ("--workers", "2", "--epochs", "20", "--json")
    done = first.distsgd("train", "--address", "auto", *settings, **ours)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["channel"] == "shm+tcp"
    assert result["weights_sha256"] == train("sample", workers=0, epochs=20).weights_sha256
    done = first.distsgd("train", "--address", "auto", *settings)
    assert done.returncode == 1 and "uses TLS" in done.stderr
