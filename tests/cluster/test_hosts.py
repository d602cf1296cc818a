"""Real hosts, each with its own network, address, data and home: one training over all of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hosts import Host, hosts, possible
from listening import Listener, answers, documented, listeners
from store_process import SECRETS, object_store
from support import PATIENCE, wait_for

from distsgd.data.locations import SAMPLE
from distsgd.training import train

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(possible()), reason=str(possible()))]

NOBODY = 65_534
NOT_ALWAYS = {"ray::IDLE", "ray::JobSupervisor"}
SHORT, LONG = 30, 200
"""Epochs of a training that is let be, and of one that is disturbed on its way."""
SPREAD = (
    "--servers", "2", "--placement", "spread",
    "--shuffle", "shard", "--cache-size", "7", "--set", "shuffle_window=1",
)  # fmt: skip


def settings(epochs: int) -> tuple[str, ...]:
    return "--epochs", str(epochs), "--json"


@cache
def undisturbed(epochs: int) -> str:
    """The bits of one process."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        return train("sample", workers=0, epochs=epochs, run_dir=run).weights_sha256


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Host]]:
    """Three hosts of a cluster, and one that is none of it."""
    with hosts(4) as found:
        first, *others, _ = found
        for host in found:
            shutil.copytree(SAMPLE, host.folder / "cache" / "datasets" / "cifar10")
        done = first.distsgd(
            "cluster", "start", "--head", "--node-ip", first.ip, "--cpus", "3", **SECRETS
        )
        assert done.returncode == 0, done.stderr
        join(first, others[0])
        stays = others[1].start(*joining(first, others[1]), "--block", **SECRETS)
        assert stays.stdout is not None
        assert others[1].ip in stays.stdout.readline()
        yield found
        folders = [folder for host in found for folder in host.node_folders()]
        for host in found:
            host.distsgd("cluster", "stop")
            wait_for(lambda host=host: not host.pids())
        stays.communicate(timeout=PATIENCE)
        assert folders and not [folder for folder in folders if folder.exists()]


def joining(first: Host, host: Host) -> tuple[object, ...]:
    """The command with which a host joins the first one's cluster."""
    token = host.folder / "token"
    shutil.copy(first.folder / "home" / "cluster" / "token", token)
    head = f"{first.ip}:6379"
    return "cluster", "start", "--join", head, "--token-file", token, "--cpus", "2"


def join(first: Host, host: Host) -> None:
    done = host.distsgd(*joining(first, host), **SECRETS)
    assert done.returncode == 0, done.stderr


def alive(first: Host) -> list[str]:
    """The nodes of its cluster."""
    nodes = json.loads(first.distsgd("cluster", "status", "--json").stdout)["nodes"]
    return [node["address"] for node in nodes if node["state"] == "alive"]


def updates(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.stat().st_size if journal.exists() else 0


def test_one_training_on_three_hosts(cluster: list[Host]) -> None:
    first, second, third, _ = cluster
    status = first.distsgd("cluster", "status", "--json")
    nodes = json.loads(status.stdout)["nodes"]
    assert [node["address"] for node in nodes] == [first.ip, second.ip, third.ip]
    assert nodes[0]["head"] and all(node["state"] == "alive" for node in nodes)
    done = first.distsgd("train", "--address", "auto", "--workers", "5", *settings(SHORT))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["weights_sha256"] == undisturbed(SHORT)
    assert {"shm", "team"} <= {*result["channel"].split("+")} <= {"shm", "tcp", "team"}
    (told,) = [row for row in done.stderr.splitlines() if row.startswith("server on")]
    assert told.startswith(f"server on {first.ip}; ")
    assert all(f"on {host.ip} by " in told for host in (first, second, third))


def test_nobody_gets_in_without_the_token(cluster: list[Host]) -> None:
    first, second, _, stranger = cluster
    address = f"{first.ip}:6379"
    token = first.folder / "home" / "cluster" / "token"
    assert token.stat().st_mode & 0o077 == 0
    wrong = stranger.folder / "wrong"
    wrong.write_text("0" * 64)
    for says, arguments in (
        ("requires a token", ("train", "--address", address)),
        ("requires a token", ("cluster", "status", "--address", address)),
        ("requires another token", ("cluster", "start", "--join", address, "--token-file", wrong)),
        ("no token", ("cluster", "start", "--join", address)),
        ("no Ray cluster answers", ("train", "--address", f"{second.ip}:6379")),
    ):
        done = stranger.distsgd(*arguments)
        assert done.returncode in (1, 2) and says in done.stderr, done.stderr
        assert not done.stdout and "Traceback" not in done.stderr
    assert not stranger.pids()
    assert (
        token.read_text()
        not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    )


def test_ports_are_those_of_the_table_and_give_no_more(cluster: list[Host]) -> None:
    """Of SECURITY.md: to a host that is none of the cluster, and to another user of the head."""
    first, second, _, stranger = cluster
    begun = first.start(
        "train", "--address", "auto", "--workers", "4", "--epochs", "100000",
        "--chaos", "delay:p=1:for=10ms", "--run-dir", run := first.folder / "listening",
    )  # fmt: skip
    wait_for(lambda: updates(run) > 2_000)
    table = documented()
    seen = {host: listeners(host.pids()) for host in (first, second)}
    assert {place_of(one, host) for host in seen for one in seen[host]} <= table.keys()
    assert {program for program, _ in table} - {one.program for one in seen[first]} <= NOT_ALWAYS
    ports = {one.port for one in seen[first]}
    given = answers(ports, first.ip, through=["ip", "netns", "exec", stranger.name])
    for one in seen[first]:
        assert one.ip == "127.0.0.1" or given[one.port] == table[place_of(one, first)], one
    locally = answers(ports, "127.0.0.1", NOBODY, ["ip", "netns", "exec", first.name])
    assert all(what <= given[port] for port, what in locally.items())
    begun.send_signal(signal.SIGINT)
    out, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 130, out


def place_of(one: Listener, host: Host) -> tuple[str, str]:
    """As the table says it."""
    where = {"0.0.0.0": "every address", host.ip: "ADDRESS"}.get(one.ip, one.ip)
    return one.program, where


NOISE = """
import os, socket, sys
host, ports = sys.argv[1], [int(port) for port in sys.argv[2].split(",")]
for port in ports:
    for content in (b"", b"GET / HTTP/1.1\\r\\n\\r\\n", bytes(4), b"\\xff" * 64, os.urandom(5000)):
        try:
            with socket.create_connection((host, port), timeout=2) as door:
                door.sendall(content)
                door.settimeout(0.05)
                door.recv(100)
        except OSError:
            pass
print(len(ports))
"""


def test_noise_at_every_port_disturbs_nothing(cluster: list[Host]) -> None:
    first, _, _, stranger = cluster
    run = first.folder / "noisy"
    begun = first.start("train", "--address", "auto", "--workers", "3", *settings(LONG),
                        "--run-dir", run)  # fmt: skip
    wait_for(lambda: updates(run) > 2_000)
    shown = subprocess.run(
        ["ip", "netns", "exec", first.name, "ss", "-Hltn"], capture_output=True, text=True
    ).stdout
    ports = {
        line.split()[3].rpartition(":")[2]
        for line in shown.splitlines()
        if not line.split()[3].startswith("127.")
    }
    assert len(ports) >= 4
    done = subprocess.run(
        ["ip", "netns", "exec", stranger.name, sys.executable, "-c", NOISE, first.ip,
         ",".join(sorted(ports))],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.strip() == str(len(ports)), done.stderr
    out, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 0, out
    assert json.loads((run / "report.json").read_text())["weights_sha256"] == undisturbed(LONG)
    assert out.count(f"refused: a connection from {stranger.ip} without") == 1


def test_a_host_without_the_dataset_is_named(cluster: list[Host]) -> None:
    first, second, _, _ = cluster
    data = second.folder / "cache" / "datasets" / "cifar10"
    data.rename(second.folder / "away")
    try:
        done = first.distsgd("train", "--address", "auto", "--workers", "4", "--epochs", "1")
        assert done.returncode == 1 and "CIFAR-10 is not in the cache" in done.stderr
        assert f"on node {second.ip}:" in done.stderr
    finally:
        (second.folder / "away").rename(data)


def test_data_over_s3_is_fetched_once_a_host(cluster: list[Host]) -> None:
    """And within a bound, by servers that are spread over the hosts."""
    first, second, third, _ = cluster
    shutil.copytree(SAMPLE, first.folder / "buckets" / "data" / "set")
    into = ["ip", "netns", "exec", first.name]
    with object_store(first.folder / "buckets", first.ip, into) as store:
        for more in ((), SPREAD):
            store.order({"status": 503, "times": 3, "path": "arrow"})
            done = first.distsgd(
                "train", "--address", "auto", "--workers", "4", *settings(SHORT), *more,
                "--dataset", store.s3("data/set"), **SECRETS,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            read = Counter[tuple[str, str]]()
            for who, path, size in store.log():
                read[who, Path(path).name] += size
            bits = json.loads(done.stdout)["weights_sha256"]
            if more:
                alone = train("sample", workers=0, epochs=SHORT, shuffle="shard", shuffle_window=1)
                assert bits == alone.weights_sha256 and "servers on " in done.stderr
                continue  # all of it is in the caches by now
            assert bits == undisturbed(SHORT)
            for host in (first, second, third):
                for shard in SAMPLE.glob("train*"):
                    assert read[host.ip, shard.name] == shard.stat().st_size


def test_a_slow_link_is_seen_in_the_report(cluster: list[Host], tmp_path: Path) -> None:
    """40 ms and 100 Mbit/s."""
    first, second, _, _ = cluster
    bits = train("sample", workers=0, epochs=8).weights_sha256
    for host in cluster:
        host.plain_frames()
    second.slow(40, 100)
    try:
        run = first.folder / "slow"
        done = first.distsgd("train", "--address", "auto", "--workers", "4", "--epochs", "8",
                             "--run-dir", run)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (told,) = [row for row in done.stderr.splitlines() if row.startswith("server on")]
        assert f"on {second.ip} by tcp" in told or f"on {second.ip} by team+tcp" in told
        assert "s computing and on the way" in done.stdout
        report = json.loads((run / "report.json").read_text())
        slow = max(report["answering_seconds"].values())
        assert slow > 0.08 * report["steps"] / 2  # there and back, for most updates
        assert report["weights_sha256"] == bits
        assert slow > 2 * min(report["answering_seconds"].values())
    finally:
        second.fast()


def test_a_host_dies_one_is_cut_off_and_one_joins(cluster: list[Host]) -> None:
    """The last test: of the cluster, only the head is left as it was."""
    first, second, third, fourth = cluster
    run = first.folder / "disturbed"
    begun = first.start(
        "train", "--address", "auto", "--workers", "auto", *settings(LONG), "--run-dir", run
    )
    wait_for(lambda: updates(run) > 20_000)
    second.kill()
    size = updates(run)
    took = wait_for(lambda: updates(run) > size)
    assert took < 12 or second.ip in alive(first)  # Ray itself notices after 15 s
    third.cut_off()
    cut, size = time.monotonic(), updates(run)
    took = wait_for(lambda: updates(run) > size + 1_000)
    assert took < 40 or third.ip in alive(first)  # Ray itself: after 65 s
    out, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 0, out
    assert json.loads((run / "report.json").read_text())["weights_sha256"] == undisturbed(LONG)
    done = first.distsgd("audit", run)
    assert done.returncode == 0 and "holds" in done.stdout
    wait_for(lambda: alive(first) == [first.ip])

    run = first.folder / "growing"
    begun = first.start(
        "train",
        "--address",
        "auto",
        "--workers",
        "auto",
        "--epochs",
        "100000",
        "--run-dir",
        run,
        "--chaos",
        "delay:p=1:for=10ms",  # leaves the processors to those that join
    )
    wait_for(lambda: updates(run) > 20_000)
    join(first, fourth)
    assert begun.stdout is not None
    assert told_of(begun.stdout, fourth.ip) == "tcp"
    wait_for(lambda: time.monotonic() - cut > 20)
    third.back()  # who stands by it joins it again
    assert told_of(begun.stdout, third.ip) == "tcp"
    size = updates(run)
    wait_for(lambda: updates(run) > size + 20_000)
    assert alive(first) == [first.ip, third.ip, fourth.ip]
    begun.send_signal(signal.SIGINT)
    out, _ = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 130, out
    for command in ("audit", "replay"):
        done = first.distsgd(command, run)
        assert done.returncode == 0, done.stderr


def told_of(lines: Iterable[str], ip: str) -> str:
    """The channel of the first worker that a training tells of on a host."""
    for line in lines:
        if found := re.fullmatch(rf"worker \d+ on {re.escape(ip)} by (.+)", line.strip()):
            return found[1]
    return ""
