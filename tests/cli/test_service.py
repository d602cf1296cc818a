"""A training as a service: the unit, restarts after SIGKILL, logs as JSON, exit codes."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from support import PATIENCE, Run, command_line, wait_for

from distsgd.cli.app import app
from distsgd.training import train

TOP = Path(__file__).parents[2]
UNITS = TOP / "cluster" / "systemd"
SMALL = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "2")


class Unit(configparser.RawConfigParser):
    def optionxform(self, name: str) -> str:
        return name


def start_of(unit: str) -> list[str]:
    """The words after `distsgd` that a unit starts, for the training "nightly"."""
    parser = Unit(strict=False)
    parser.read(UNITS / unit)
    line = parser["Service"]["ExecStart"].replace("%i", "nightly")
    words = shlex.split(line)
    return words[words.index("train") :]


@pytest.mark.parametrize("unit", ["distsgd@.service", "distsgd-container@.service"])
def test_the_units_start_a_training_that_goes_on(unit: str, tmp_path: Path) -> None:
    words = start_of(unit)
    assert words[words.index("--log-format") :] == ["--log-format", "json"]
    command: Any = typer.main.get_command(app)
    context = command.commands["train"].make_context("train", words[1:-2])
    assert context.params["resume_if_exists"] and context.params["run_dir"].name == "nightly"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["distsgd@.service", "distsgd-container@.service"])
def test_systemd_takes_the_units(unit: str, tmp_path: Path) -> None:
    text = (UNITS / unit).read_text(encoding="utf-8")
    text = re.sub(r"(?<==|-)(/opt|/usr)/\S+/(distsgd|docker)(?= )", "/bin/true", text)
    here = tmp_path / unit.replace("@", "@nightly")
    for content, right in ((text.replace("Requires=docker.service\n", ""), True),
                           (text.replace("Restart=", "Rstart="), False)):  # fmt: skip
        here.write_text(content)
        done = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True,
                              text=True, timeout=PATIENCE)  # fmt: skip
        assert (done.returncode == 0 and not done.stderr) == right, done.stderr


def test_killed_and_started_again_it_ends_with_the_bits_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    words = start_of("distsgd@.service")
    settings = tmp_path / "nightly.toml"
    settings.write_text('dataset = "sample"\nworkers = 0\nepochs = 12\nbatch_size = 64\n')
    run = tmp_path / "run"
    words[words.index("--config") + 1] = str(settings)
    words[words.index("--run-dir") + 1] = str(run)
    slow = ("--chaos", "delay:p=1:for=20ms")
    for n in range(3):
        process = subprocess.Popen(
            command_line(*words, *slow), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        # At once, when the run is there, and in the middle of it.
        for what in ((), ("config.json",), ("checkpoints/step-000000000.npz",))[: n + 1]:
            wait_for(lambda what=what: all((run / name).exists() for name in what))
        if n == 2:
            wait_for(lambda: updates(run) > 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command_line(*words), capture_output=True, text=True, timeout=PATIENCE)
    again = subprocess.run(command_line(*words), capture_output=True, text=True, timeout=PATIENCE)
    expected = train(
        "sample", workers=0, epochs=12, batch_size=64, run_dir=tmp_path / "other"
    ).weights_sha256
    for ended in (done, again):
        assert ended.returncode == 0 and ended.stdout == "", ended.stderr
        result = json.loads(ended.stderr.splitlines()[-1])
        assert result["event"] == "result" and result["weights_sha256"] == expected


def updates(run: Path) -> int:
    try:
        return (run / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def log_of(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:3] == ["time", "level", "event"], line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("info", "warning", "error")
    return lines


def test_a_log_of_json_lines(distsgd_here: Run, tmp_path: Path) -> None:
    done = distsgd_here(*SMALL, "--log-format", "json", "--run-dir", "run")
    assert done.returncode == 0 and done.stdout == ""
    lines = log_of(done.stderr)
    names = [line["event"] for line in lines]
    assert names[0] == "stage" and names.count("epoch") == 2 and names[-1] == "result"
    assert {"started", "progress", "ended"} <= set(names)
    assert lines[names.index("started")]["settings"]["dataset"] == "sample"
    again = distsgd_here("--log-format=json", *SMALL, "--run-dir", "run", "--resume-if-exists",
                         "--json")  # fmt: skip
    assert json.loads(again.stdout)["weights_sha256"] == lines[-1]["weights_sha256"]
    assert [line["event"] for line in log_of(again.stderr)] == ["stage", "notice", "result"]


def test_errors_and_notices_are_lines_of_the_log_too(distsgd_here: Run) -> None:
    for words, code in ((("evaluate", "nosuch"), 1), (("trian",), 2), (("train", "--epoch"), 2)):
        done = distsgd_here(*words, "--log-format", "json")
        (line,) = log_of(done.stderr)
        assert done.returncode == line["exit_code"] == code
        assert line["level"] == line["event"] == "error" and line["message"]
    done = distsgd_here("doctor", "--json", "--log-format", "json")
    assert json.loads(done.stdout) and log_of(done.stderr) == []
    for words in (("--log-format", "xml"), ("--log-format",)):
        done = distsgd_here("runs", "list", *words)
        assert done.returncode == 2 and "Give text or json" in done.stderr
    assert distsgd_here("evaluate", "nosuch").stderr.startswith("error: ")


def documented_codes() -> dict[int, str]:
    page = (TOP / "distsgd" / "docs" / "service.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    return {int(code): words for code, words in rows}


def test_every_exit_code_is_documented_and_happens(distsgd_here: Run, tmp_path: Path) -> None:
    found = {
        0: distsgd_here(*SMALL, "--run-dir", "run"),
        1: distsgd_here("resume", "nosuch"),
        2: distsgd_here("train", "--loss", "none"),
    }
    seen = {done.returncode for code, done in found.items() if done.returncode == code}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        seen.add(stopped_by(number, tmp_path / f"run-{number}"))
    seen.add(cut_off(tmp_path))
    assert seen == set(documented_codes())


def stopped_by(number: signal.Signals, run: Path) -> int:
    """The exit code of a training that gets a signal; it then goes on where it was."""
    words = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "9999", "--run-dir",
             run, "--resume-if-exists", "--log-format", "json")  # fmt: skip
    process = subprocess.Popen(
        command_line(*words, "--chaos", "delay:p=1:for=20ms"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: updates(run) > 1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    lines = log_of(errors)
    assert "stopping after this update" in " ".join(str(one.get("message")) for one in lines)
    assert json.loads((run / "report.json").read_text())["status"] == "interrupted"
    return process.returncode


def cut_off(folder: Path) -> int:
    """The exit code of a command whose reader leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "distsgd", "docs", "faq"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE)
    os.close(writer)
    return done.returncode
