"""``distsgd simulate`` and ``distsgd simulate compare`` as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import Run, image_format

SIMULATE = ("simulate", "--dataset", "sample", "--epochs", "1")
COMPARE = ("simulate", "compare", "--dataset", "sample", "--epochs", "1")

RESULT = {
    "status", "policy", "settings", "fleet", "seconds", "updates", "examples_seen", "curve",
    "target_loss", "time_to_loss", "target_accuracy", "time_to_accuracy", "waiting_share",
    "waiting_shares", "staleness", "mean_staleness", "dropped", "requeued",
    "bytes_per_update", "train_loss", "test_accuracy", "weights_sha256",
}  # fmt: skip


@pytest.fixture
def distsgd(distsgd_here: Run) -> Run:
    return distsgd_here


def test_simulate_gives_one_object_and_the_bits_of_train(distsgd: Run) -> None:
    done = distsgd(*SIMULATE, "--slow", "1:4", "--jitter", "pareto:1.5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == RESULT
    assert set(found["curve"][0]) == {"seconds", "update", "train_loss", "test_accuracy"}
    train = distsgd("train", "--dataset", "sample", "--epochs", 1, "--workers", 0, "--json")
    assert found["weights_sha256"] == json.loads(train.stdout)["weights_sha256"]
    again = distsgd(*SIMULATE, "--slow", "1:4", "--jitter", "pareto:1.5", "--json")
    assert again.stdout == done.stdout


def test_a_scenario_with_failures_and_flags_over_it(distsgd: Run, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(
        'workers = 6\njitter = "lognormal:0.5"\nfail = ["1@0.0005"]\nrejoin = "1@0.001"\n'
        '[train]\nconsistency = "ssp"\nslot_size = 32\n'
    )
    done = distsgd(*SIMULATE, "--scenario", "fleet.toml", "--workers", 4, "--staleness", 2)
    assert done.returncode == 0, done.stderr
    assert "ssp:2, 4 workers" in done.stdout and "\x1b" not in done.stdout
    assert re.search(r"weights +sha256 [0-9a-f]{64}", done.stdout)


def test_compare_gives_a_table_and_a_figure(distsgd: Run, tmp_path: Path) -> None:
    given = ("--policies", "bsp,ssp:2,backup:1", "--seeds", 2, "--plot", "curves.png")
    done = distsgd(*COMPARE, *given, "--target-loss", 2.2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"seeds", "target_loss", "target_accuracy", "rows", "runs"}
    assert [row["policy"] for row in found["rows"]] == ["bsp", "ssp:2", "backup:1"]
    assert image_format(tmp_path / "curves.png") == "PNG"
    shown = distsgd(*COMPARE, "--policies", "bsp,asp", "--target-accuracy", 0.9)
    assert shown.returncode == 0 and "s to 90.0 %" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SIMULATE, "--slow", "four"), ("--slow cannot be four", "1:4")),
        ((*SIMULATE, "--workers", "0"), ("--workers cannot be 0",)),
        ((*SIMULATE, "--consistency", "asp", "--staleness", "3"), ("--staleness", "asp")),
        ((*SIMULATE, "--target-accuracy", "40"), ("--target-accuracy", "0.4")),
        ((*SIMULATE, "--plot", "curves.gif"), ("--plot", ".svg")),
        ((*SIMULATE, "--set", "channel=ray"), ("channel",)),
        ((*SIMULATE, "--scenario", "none.toml"), ("--scenario", "none.toml")),
        ((*SIMULATE, "--workers", "2", "--fail", "0@0,1@0"), ()),
        ((*COMPARE, "--policies", "bsp,fast"), ("--policies cannot be fast", "bsp, ssp")),
        ((*COMPARE, "--policies", "backup:4"), ("backup = 4 in --policies", "4 slots")),
        ((*COMPARE, "--seeds", "0"), ("--seeds",)),
        (("simulate", "--workers", "3", "compare"), ("--workers stands before compare",)),
    ],
)
def test_what_cannot_be_used(
    distsgd: Run, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = distsgd(*arguments)
    assert done.returncode == (2 if words else 1), (done.stdout, done.stderr)
    assert done.stdout == "" and "bug in distsgd" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words or ("--rejoin",))


@pytest.mark.parametrize("command", ["simulate", "simulate compare"])
def test_help_has_an_example_and_the_defaults(distsgd: Run, command: str) -> None:
    done = distsgd(*command.split(), "--help", env={"COLUMNS": "160"})
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert f"Example: distsgd {command} --dataset sample" in shown
    assert "[default: 8]" in shown and "table [train]" in shown
