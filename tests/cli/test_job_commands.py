"""Trainings as jobs of a cluster with a token: handed over, followed, stopped, resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support import PATIENCE, command_line, processes_with, run_here, wait_for

from distsgd.runs.metrics import epoch_rows
from distsgd.training import train

pytestmark = pytest.mark.ray

LONG = ("--dataset", "sample", "--epochs", "100000", "--workers", "1",
        "--chaos", "delay:p=1:for=50ms")  # fmt: skip
"""A training that goes on until it is stopped, and leaves the processors to the commands."""

Cluster = Callable[..., subprocess.CompletedProcess[str]]


def free_ports(number: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def node(home: Path) -> dict[str, Any]:
    (note,) = (home / "cluster").glob("node-*.json")
    return dict(json.loads(note.read_text()))


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # Also its HOME: any other Ray of this user leaves a token in ~/.ray.
    return {**kept, "DISTSGD_HOME": str(home), "HOME": str(home), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Cluster]:
    """Runs commands of the user whose cluster it is; other Rays may be there."""

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*arguments), env={**environment(home), **more}, capture_output=True,
            text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL, cwd=home,
        )  # fmt: skip

    port, jobs_port = free_ports(2)
    done = run("cluster", "start", "--head", "--port", port, "--jobs-port", jobs_port,
               "--cpus", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = node(home)["folder"]
    yield run
    if list((home / "cluster").glob("node-*.json")):  # the last test stops it
        assert run("cluster", "stop").returncode == 0
    assert not processes_with(folder)


def test_the_head_listens_on_loopback_alone(cluster: Cluster, home: Path) -> None:
    folder = node(home)["folder"]
    from distsgd.on_ray.session_guard import processes_of

    ours = {inode for pid in processes_of(folder) for inode in sockets_of(pid)}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in ours:
                listening.append(local.partition(":")[0])
    assert listening
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def sockets_of(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = str(entry.readlink())
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def test_handed_over_followed_stopped_and_gone_on_with(cluster: Cluster, home: Path) -> None:
    (home / "mine.toml").write_text('dataset = "sample"\nepochs = 3\nworkers = 2\n')
    done = cluster("submit", "--config", f".//{Path('mine.toml')}")
    assert done.returncode == 0, done.stderr
    bits = train("sample", workers=0, epochs=3).weights_sha256
    assert f"sha256 {bits}" in done.stdout and "has succeeded" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    job = submitted_until_control_c(home)
    run = home / "runs" / job
    wait_for(lambda: len(epoch_rows(run / "metrics.jsonl")) > 6)
    assert "\n    5 " in here(home, "jobs", "logs", job).stdout
    listed = json.loads(here(home, "jobs", "list", "--json").stdout)["jobs"]
    assert [one["state"] for one in listed] == ["running", "succeeded"]
    watched(home, job)
    listed = json.loads(here(home, "jobs", "list", "--json").stdout)["jobs"]
    assert [one["state"] for one in listed] == ["running", "succeeded"], "the copy is no training"
    stopped = cluster("jobs", "stop", job)
    assert stopped.returncode == 0 and f"submit --resume {job}" in stopped.stderr
    shown = json.loads(here(home, "runs", "show", job, "--json").stdout)
    assert shown["status"] in ("interrupted", "dead")
    more = cluster("submit", "--resume", job, "--epochs", "100001", "--detach", "--json")
    assert more.returncode == 0, more.stderr
    wait_for(lambda: len(epoch_rows(run / "metrics.jsonl")) > len(shown["epochs"]))
    stopped = here(home, "jobs", "stop", "latest")
    assert stopped.returncode == 0
    assert f"submit --resume {job}\n" in stopped.stderr  # that is whose run it is
    assert here(home, "audit", job).returncode == 0


def here(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the user whose cluster it is, in this process."""
    settings = {"DISTSGD_HOME": str(home), "COLUMNS": "200"}
    return subprocess.CompletedProcess(arguments, *run_here(arguments, home, settings))


def watched(home: Path, job: str) -> None:
    """The page of a job's run, until Ctrl-C: it follows the training."""
    process = subprocess.Popen(
        command_line("watch", job, "--address", "auto", "--no-open", "--json"),
        env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = ""
    while "}" not in told:
        told += process.stdout.readline()
    url = json.loads(told)["url"]
    with requests.Session() as browser:
        browser.trust_env = False
        browser.get(url, timeout=PATIENCE)
        page = url.partition("?")[0]

        def epochs() -> int:
            shown = browser.get(f"{page}view", params={"runs": "latest"}, timeout=PATIENCE).json()
            (run,) = shown["runs"]
            assert (run["name"], run["state"]) == (job, "running")
            return len(run["epochs"]["epoch"])

        before = epochs()
        wait_for(lambda: epochs() > before)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, 130) and "Traceback" not in err, err


def submitted_until_control_c(home: Path) -> str:
    """Submit a job and follow it until Ctrl-C, which leaves it running; returns its name."""
    process = subprocess.Popen(
        command_line("submit", *LONG),
        env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "the job continues" in errors
    return errors.partition("jobs logs ")[2].split()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--epoks", "3"), 2, "No such option"),
        (("--address", "ftp://x"), 2, "--address cannot be"),
        (("--address", "http://127.0.0.1:1"), 1, "nothing accepts jobs at"),
        (("--config", "nowhere.toml"), 2, "there is no file nowhere.toml"),
        (("--epochs", "2", "--json", "--help=1"), 2, "--help"),
        (("--epochs", "-1"), 2, "epochs"),
        (("--run-dir", "mine"), 2, "--run-dir is given twice, or means nothing in a job"),
        (("--chaos", "nonsense"), 2, "nonsense"),
        (("--resume", "first", "--workers", "x"), 2, "workers"),
        (("--dataset", "./mine"), 2, "is a relative path, which is not on the cluster"),
        (("--workers", "0"), 2, "--workers 0 trains without a cluster"),
        (("--dataset", "s3://KEY:SECRET@bucket/x"), 2, "carries a name or a key"),
        (("--set", "dataset=s3://KEY:SECRET@bucket/x"), 2, "carries a name or a key"),
    ],
)
def test_slips_are_told_before_anything_is_sent(
    cluster: Cluster, home: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = here(home, "submit", *arguments)
    assert done.returncode == code and says in done.stderr, done.stderr


def test_without_the_token_every_door_refuses(cluster: Cluster, home: Path) -> None:
    address = node(home)
    door = f"http://127.0.0.1:{address['jobs_port']}"
    token = (home / "cluster" / "token").read_text()
    every = (("submit", "--epochs", "1"), ("jobs", "list"), ("jobs", "stop", "x"))
    for given, says, commands in (
        ({"DISTSGD_HOME": str(home / "stranger")}, "requires a token", every),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            "requires another token",
            every[:1],
        ),
    ):
        for command in commands:
            done = cluster(*command, "--address", door, **given)
            assert done.returncode == 1 and says in done.stderr, done.stderr
        done = cluster("train", "--address", address["address"], "--dataset", "sample", **given)
        assert done.returncode == 1 and says in done.stderr, done.stderr
    assert cluster("jobs", "logs", "nothing").returncode == 1
    for pid in [path for path in Path("/proc").iterdir() if path.name.isdecimal()]:
        try:
            assert token not in (pid / "cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue


_NOTEBOOK = """
import distsgd
from distsgd.errors import DistsgdError
print(distsgd.train("sample", workers=1, epochs=1, address="auto").status, flush=True)
class Told(distsgd.Reporter):
    def epoch(self, row):
        print("epoch", flush=True)
try:
    distsgd.train("sample", workers=1, epochs=100_000, address="auto", reporter=Told())
except DistsgdError as error:
    print(error, flush=True)
input()
"""


def test_who_has_trained_on_a_cluster_outlives_it(
    cluster: Cluster, home: Path, tmp_path: Path
) -> None:
    """A notebook keeps files of Ray open; it is not a part of the node, and not ended with it.

    The last test: it stops the cluster.
    """
    address = node(home)["address"]
    with subprocess.Popen(
        [sys.executable, "-c", _NOTEBOOK], env=environment(home), text=True, cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as notebook:  # fmt: skip
        assert notebook.stdout is not None and notebook.stdin is not None
        assert [notebook.stdout.readline() for _ in range(2)] == ["finished\n", "epoch\n"]
        log = Path(node(home)["folder"]) / "ray" / "session_latest" / "logs" / "raylet.out"
        with subprocess.Popen(["tail", "-f", log], stdout=subprocess.DEVNULL) as looks:
            assert cluster("cluster", "stop").returncode == 0
            assert looks.poll() is None
            looks.kill()
        told = next(line for line in notebook.stdout if line != "epoch\n")
        assert f"{address} no longer answers" in told and "distsgd resume" in told
        notebook.stdin.write("\n")
    assert notebook.returncode == 0
