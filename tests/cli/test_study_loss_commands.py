"""``study loss|hinges|convexity|chain-rule|formulas`` and ``landscape``: output and refusals."""

import json

import pytest
from support import image_format

DATA = ("--dataset", "sample")
COMMANDS = {
    "loss": ("study", "loss", *DATA),
    "hinges": ("study", "hinges"),
    "convexity": ("study", "convexity", *DATA, "--examples", "50", "--segments", "3"),
    "chain-rule": ("study", "chain-rule"),
    "formulas": ("study", "formulas", *DATA),
    "plane": ("landscape", *DATA, "--workers", "0", "--points", "5"),
    "line": ("landscape", *DATA, "--workers", "0", "--along", "random:0", "--example", "3"),
}
KEYS = {
    "loss": "rows", "hinges": "kinks", "convexity": "shown", "chain-rule": "examples",
    "formulas": "rows", "plane": "losses", "line": "losses",
}  # fmt: skip


@pytest.fixture
def distsgd(distsgd_here):
    return distsgd_here


@pytest.mark.parametrize("name", COMMANDS)
def test_a_table_a_figure_and_json(distsgd, tmp_path, name):
    done = distsgd(*COMMANDS[name], "--plot", "figure.svg", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)[KEYS[name]]) >= 1
    assert image_format(tmp_path / "figure.svg") == "SVG"
    shown = distsgd(*COMMANDS[name])
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("study", "loss", *DATA, "--scales", ""), "--scales must be"),
        (("study", "loss", *DATA, "--examples", "0"), "--examples cannot be 0"),
        (("study", "hinges", "--points", "1,2"), "--points must be"),
        (("study", "hinges", "--plot", "figure.pdf"), "figure.pdf"),
        (("study", "convexity", *DATA, "--segments", "0"), "--segments cannot be 0"),
        (("landscape", *DATA, "--along", "random:3", "--along", "random:3"), "are parallel"),
        (("landscape", *DATA, "--examples", "9999"), "--examples cannot be 9999"),
    ],
)
def test_bad_input_is_refused(distsgd, arguments, says):
    done = distsgd(*arguments)
    assert done.returncode == 2 and says in done.stderr and not done.stdout


def test_a_run_that_is_not_there(distsgd):
    done = distsgd("landscape", *DATA, "--run", "nowhere")
    assert done.returncode == 1 and "there is no run nowhere" in done.stderr
