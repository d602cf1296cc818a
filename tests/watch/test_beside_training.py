"""The page beside a training: a process of its own that ends with it, however that ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support import PATIENCE, Run, command_line, on_sample, wait_for

from distsgd.cli.watch_page import Page


@pytest.fixture
def run(distsgd_here: Run) -> Path:
    train = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "1", "--json")
    return Path(json.loads(distsgd_here(*train).stdout)["run_dir"])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_starts_with_the_run_and_ends_with_the_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""
    with Page() as page:
        page.started(on_sample(), run, 6)
        page.started(on_sample(), run, 6)  # as after a restart of the processes

        def told() -> re.Match[str] | None:
            nonlocal said
            said += capsys.readouterr().err
            return re.search(r"watch it at (http://127\.0\.0\.1:(\d+)/\?token=\S+)", said)

        wait_for(told)
        found = told()
        assert found is not None
        assert requests.get(found[1], timeout=PATIENCE).status_code == 200
        assert requests.get(found[1][:-1], timeout=PATIENCE).status_code == 403
    assert not answers(int(found[2]))


def test_it_ends_with_a_training_that_is_killed(run: Path) -> None:
    watch = [*command_line("watch", "--json", "--no-open"), "--until"]
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([*sys.argv[1:], str(os.getpid()), 'latest'])\n"
        "time.sleep(600)"
    )
    training = subprocess.Popen(
        [sys.executable, "-c", code, *watch], stdout=subprocess.PIPE, text=True
    )
    assert training.stdout is not None
    text = ""
    while "}" not in text:
        text += training.stdout.readline()
    port = json.loads(text)["port"]
    assert answers(port)
    training.kill()
    training.wait()
    wait_for(lambda: not answers(port))
    training.stdout.close()
