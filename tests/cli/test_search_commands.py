"""``search``, ``gradient numeric`` and ``stepsize``: what they print, draw and refuse."""

import json

import pytest
from support import image_format

SMALL = {
    ("search", "random"): ("--attempts", "30", "--workers", "0"),
    ("search", "local"): ("--tries", "20", "--workers", "0"),
    ("gradient", "numeric"): ("--examples", "20", "--parameters", "50", "--workers", "0"),
    ("stepsize",): (),
}


@pytest.fixture
def distsgd(distsgd_here):
    return distsgd_here


@pytest.mark.parametrize("name", SMALL, ids=" ".join)
def test_a_table_a_figure_and_json(distsgd, tmp_path, name):
    command = (*name, "--dataset", "sample", *SMALL[name])
    done = distsgd(*command, "--plot", "figure.svg", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] > 0
    assert image_format(tmp_path / "figure.svg") == "SVG"
    shown = distsgd(*command)
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search", "random", "--attempts", "0"), "--attempts cannot be 0"),
        (("search", "local", "--tries", "-3"), "--tries cannot be -3"),
        (("gradient", "numeric", "--steps", ""), "--steps is empty"),
        (("gradient", "numeric", "--steps", "1e-3,small"), "--steps cannot be"),
        (("gradient", "numeric", "--examples", "9999"), "--examples cannot be 9999"),
        (("stepsize", "--steps", "1"), "--steps must be"),
    ],
)
def test_bad_input_is_refused(distsgd, arguments, says):
    done = distsgd(*arguments, "--dataset", "sample")
    assert done.returncode == 2 and says in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stepsize", "--examples", "2", "--seed", "20"), "loss by -, -, -"),
        (("gradient", "numeric", "--examples", "1", "--parameters", "5", "--workers", "0"), "5"),
    ],
)
def test_few_examples_may_leave_no_loss(distsgd, arguments, says):
    """Then nothing is relative to it."""
    done = distsgd(*arguments, "--dataset", "sample")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout and "nan" not in done.stdout
    assert "Warning" not in done.stderr and "warning" not in done.stderr
