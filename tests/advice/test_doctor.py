"""`distsgd doctor`: broken environments, made for real where a test can, are named with a cure."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Run, short_temporary_folder

from distsgd.advice.doctor import examine
from distsgd.advice.health import cluster, software, surroundings
from distsgd.advice.health.finding import OK, PROBLEM, WARNING, Finding
from distsgd.cluster.node_facts import NodeFacts
from distsgd.data.locations import SAMPLE
from distsgd.engine.core_type import best_core_type
from distsgd.on_ray import capacity
from distsgd.on_ray.session import dead_sessions
from distsgd.on_ray.session_guard import mark_folder


@pytest.fixture
def distsgd(distsgd_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In this process, with a cache, temporary files and a cluster folder of its own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, folder in (("DISTSGD_CACHE", "cache"), ("TMPDIR", "temporary")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    return distsgd_here


def diagnosis(run: Run, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = run("doctor", "--json", *arguments, env=env)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if found["problems"] else 0), done.stderr
    return found


def named(found: dict[str, Any], state: str, *words: str, cure: str) -> None:
    """Exactly one finding of this state has these words in its message, and the cure."""
    findings = [
        one for one in found["findings"]
        if one["state"] == state and all(word in one["message"] for word in words)
    ]  # fmt: skip
    assert len(findings) == 1, (words, found["findings"])
    assert cure in findings[0]["cure"], findings


def test_a_machine_that_is_well(distsgd: Run) -> None:
    done = distsgd("doctor")
    assert done.returncode == 0, done.stdout
    assert "ok       Ray " in done.stdout and "ok       data" in done.stdout
    assert "0 problems" in done.stderr  # CIFAR-10 is not in this cache: a warning


def test_a_wrong_version_of_ray_and_a_missing_package(
    distsgd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "packages" / "ray-2.40.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.40.0\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ["ray[default]<2.61,>=2.60", "nosuch>=1", "x; extra == 'dev'"],
    )
    found = diagnosis(distsgd)
    named(found, PROBLEM, "ray 2.40.0 is installed", "<2.61,>=2.60",
          cure='pip install "ray[default]')  # fmt: skip
    named(found, PROBLEM, "nosuch is not installed", cure='pip install "nosuch>=1"')


def test_a_ray_without_a_private_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ray._private.node.Node.start_monitor")
    (finding,) = software.ray_names()
    assert finding.state == PROBLEM and "Node.start_monitor" in finding.message


def test_what_a_killed_training_left(distsgd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_temporary_folder() as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        session = Path(temporary, "distsgd-ray-abcdefgh")
        session.mkdir()
        lock = mark_folder(session)
        assert dead_sessions() == []  # its owner lives
        os.close(lock)
        named(diagnosis(distsgd), WARNING, "killed together with its guard", str(session),
              cure="The next training")  # fmt: skip
        assert session.exists()


def test_a_port_that_is_taken(distsgd: Run) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then another program has it
            other.bind(("127.0.0.1", 8265))
            other.listen()
        named(diagnosis(distsgd), WARNING, "port 8265", cure="--jobs-port")


def test_proxies(distsgd: Run) -> None:
    proxy = {"http_proxy": "http://user:secret@10.1.2.3:3128"}
    found = diagnosis(distsgd, env=proxy)
    named(found, WARNING, "http_proxy sends requests to 127.0.0.1 and localhost",
          cure="export no_proxy=127.0.0.1,localhost")  # fmt: skip
    assert "secret" not in json.dumps(found)
    found = diagnosis(distsgd, env={**proxy, "no_proxy": "localhost,127.0.0.1"})
    named(found, OK, "http_proxy leaves 127.0.0.1 and localhost out", cure="")
    found = diagnosis(distsgd, env={"https_proxy": "http://:port", "no_proxy": "*"})
    named(found, PROBLEM, "no address of a proxy", cure="http://HOST:PORT")


def test_tls_without_its_files(distsgd: Run) -> None:
    found = diagnosis(distsgd, env={"RAY_USE_TLS": "1"})
    named(found, PROBLEM, "RAY_USE_TLS is set, and RAY_TLS_SERVER_CERT", cure="certificates")


def test_a_token_that_others_may_read_and_one_that_is_missing(
    distsgd: Run, private_home: Path
) -> None:
    token = private_home / "cluster" / "token"
    token.parent.mkdir(parents=True, mode=0o700)
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    named(diagnosis(distsgd), PROBLEM, f"other users may read {token} (mode 644)",
          cure=f"chmod 600 {token}")  # fmt: skip
    token.chmod(0o600)
    named(diagnosis(distsgd), OK, "for you alone", cure="")
    token.write_text("")
    named(diagnosis(distsgd), PROBLEM, "is empty", cure="Copy the head's again")
    token.unlink()
    found = diagnosis(distsgd, env={"RAY_AUTH_TOKEN_PATH": str(token)})
    named(found, PROBLEM, "there is no token", cure="Copy the head's")


def test_a_damaged_shard_and_a_damaged_manifest(distsgd: Run, tmp_path: Path) -> None:
    for name in ("flowers", "stones"):
        shutil.copytree(SAMPLE, tmp_path / "cache" / "datasets" / name)
    shard = next((tmp_path / "cache" / "datasets" / "flowers").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    manifest = tmp_path / "cache" / "datasets" / "stones" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    found = diagnosis(distsgd)
    named(found, PROBLEM, f"flowers: the shard {shard.name} is corrupt",
          cure="distsgd data import SOURCE --name flowers --force")  # fmt: skip
    named(found, PROBLEM, "manifest.json", cure="stones")


def test_folders_that_are_no_folders_or_cannot_be_found(
    distsgd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    named(diagnosis(distsgd, env={"DISTSGD_HOME": str(file / "x")}), PROBLEM,
          f"{file} is not a folder", cure="Set DISTSGD_HOME")  # fmt: skip

    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DISTSGD_HOME", "DISTSGD_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = diagnosis(distsgd)
    named(found, PROBLEM, "HOME is not set", "no place for runs", cure="Set HOME")
    named(found, PROBLEM, "no folder for datasets", cure="DISTSGD_CACHE")


def test_a_container_with_less_time_and_memory_than_can_be_seen(
    distsgd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").mkdir()
    for name, text in (
        ("cpu.max", "50000 100000"), ("memory.max", str(2**28)), ("memory.current", str(2**27)),
        ("pids.max", "100"), ("pids.current", "40"),
    ):  # fmt: skip
        (tmp_path / "groups" / name).write_text(text)
    monkeypatch.setattr(capacity, "_groups", lambda controller="memory": [tmp_path / "groups"])
    found = diagnosis(distsgd)
    named(found, WARNING, "the time of 0.5 of them", cure="--workers 1")
    named(found, PROBLEM, "128 MiB are free", cure="--workers 0")
    named(found, PROBLEM, "60 more threads", cure="pids.max")
    (tmp_path / "groups" / "cpu.max").write_text("max 100000")
    assert capacity.cpu_quota() is None
    (tmp_path / "groups" / "cpu.max").unlink()
    (tmp_path / "groups" / "cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "groups" / "cpu.cfs_period_us").write_text("100000")
    assert capacity.cpu_quota() == 1.5


def findings(check: Callable[[], Iterator[Finding]]) -> tuple[str, str]:
    (one,) = check()
    return one.state, one.message


def test_a_clock_that_is_wrong_or_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now, step, monotonic = 0.0, 0.0, staticmethod(time.monotonic)

        def time(self) -> float:
            Clock.now += Clock.step
            return Clock.now

    monkeypatch.setattr(surroundings, "time", Clock())
    assert findings(surroundings.clock)[0] == PROBLEM
    assert "1970-01-01" in findings(surroundings.clock)[1]
    Clock.now, Clock.step = 1.8e9, -2.0
    state, text = findings(surroundings.clock)
    assert state == PROBLEM and "2.0 s backwards" in text


def test_nodes_that_differ() -> None:
    here = {"python": "3.11.7", "ray": "2.60.0", "numpy": "2.4.6"}
    nodes = [
        NodeFacts(address="10.0.0.1", versions=here, cores=4),
        NodeFacts(address="10.0.0.2", versions={**here, "ray": "2.59.1"}, cores=4),
        NodeFacts(address="10.0.0.3", versions={**here, "numpy": "2.0.0"}, ahead_seconds=-7.0),
        NodeFacts(address="10.0.0.4", trouble="no room"),
    ]
    found = [(one.state, one.message) for one in cluster.compared(nodes, here)]
    assert found == [
        (OK, "10.0.0.1: 4 processors, the same versions, clocks within 0.00 s"),
        (PROBLEM, "10.0.0.2 has ray 2.59.1, and this machine 2.60.0"),
        (WARNING, "10.0.0.3 has numpy 2.0.0, and this machine 2.4.6"),
        (WARNING, "the clock of 10.0.0.3 is 7.0 s behind the one here"),
        (PROBLEM, "10.0.0.4 starts no process: no room"),
    ]


def test_a_cluster_that_is_not_there(distsgd: Run) -> None:
    found = diagnosis(distsgd, "--address", "127.0.0.1:1")
    named(found, PROBLEM, "no Ray cluster answers at 127.0.0.1:1", cure="whether its head is up")


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.os, "sched_getaffinity", lambda process: 1 / 0)
    found = examine()
    assert any("ZeroDivisionError" in one.message and one.cure for one in found.findings)


def broken_process(*inside: str, env: dict[str, str]) -> dict[str, Any]:
    """What the doctor says in a process of its own, with small limits and an unusual umask.

    Args:
        *inside: a command that runs its arguments in other surroundings.
        env: more variables.
    """

    def limit() -> None:
        hard = (("NOFILE", 256), ("FSIZE", 2**26), ("CPU", 600), ("AS", 6 * 2**30))
        for name, most in hard:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        os.umask(0o277)

    done = subprocess.run(
        [*inside, sys.executable, "-m", "distsgd", "doctor", "--json"], capture_output=True,
        text=True, timeout=PATIENCE, env={**os.environ, **env}, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_process_with_small_limits_an_old_kernel_and_a_strange_locale(tmp_path: Path) -> None:
    found = broken_process(env={
        "OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "2", "LC_ALL": "C",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "DISTSGD_CACHE": str(tmp_path / "cache"),
    })  # fmt: skip
    named(found, PROBLEM, "256 files open", cure="ulimit -Hn")
    named(found, PROBLEM, "no larger than 64 MiB", cure="ulimit -f unlimited")
    named(found, WARNING, "600 s of a processor's time", cure="ulimit -t unlimited")
    named(found, PROBLEM, "GiB of addresses", cure="ulimit -v unlimited")
    named(found, PROBLEM, "the umask 277", cure="umask 022")
    named(found, WARNING, "names of files are written in ascii", cure="LC_ALL=C.UTF-8")
    named(found, WARNING, "OPENBLAS_NUM_THREADS=2", cure="OPENBLAS_NUM_THREADS=1")
    if best_core_type() is not None:
        named(found, WARNING, "Nehalem kernels", cure="unset OPENBLAS_CORETYPE")


_BROKEN = """
set -e
mount -t tmpfs -o size=64k none /dev/shm
mount -t tmpfs -o size=256k none "$0/full"
head -c 300000 /dev/zero > "$0/full/file" 2> /dev/null || true
mount -t tmpfs -o ro none "$0/locked"
cd "$0/gone"
rmdir "$0/gone"
exec "$@"
"""


def unshared() -> list[str]:
    return ["unshare", "--mount", "--net", "sh", "-c", _BROKEN]


def namespaces_can_be_made() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    test = ["unshare", "--mount", "--net", "sh", "-c", "mount -t tmpfs none /dev/shm"]
    return subprocess.run(test, capture_output=True).returncode == 0


@pytest.mark.skipif(not namespaces_can_be_made(), reason="needs root, for mount namespaces")
def test_full_and_locked_folders_and_a_network_that_is_down(tmp_path: Path) -> None:
    for name in ("full", "locked", "gone"):
        (tmp_path / name).mkdir()
    found = broken_process(*unshared(), str(tmp_path), env={
        "DISTSGD_HOME": str(tmp_path / "locked"), "TMPDIR": str(tmp_path / "full"),
        "DISTSGD_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    })  # fmt: skip
    named(found, WARNING, "/dev/shm has 0 MiB left", cure="--shm-size")
    named(found, PROBLEM, f"the disk of {tmp_path / 'full'} is full", cure="TMPDIR")
    named(found, PROBLEM, f"{tmp_path / 'locked'}", "read-only file system",
          cure="Set DISTSGD_HOME")  # fmt: skip
    named(found, PROBLEM, "does not reach itself at 127.0.0.1", cure="ip link set lo up")
    named(found, PROBLEM, "the working folder has been deleted", cure="cd ~")
