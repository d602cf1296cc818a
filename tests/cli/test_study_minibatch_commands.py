"""``distsgd study``: what the commands about minibatches print, draw and refuse."""

import json

import pytest
from support import image_format

SMALL = {
    "descent": ("--epochs", "1"),
    "copies": ("--originals", "20", "--times", "5"),
    "noise": ("--sizes", "16,64", "--draws", "5"),
    "minibatch-size": ("--sizes", "64,100", "--epochs", "1"),
    "sampling": ("--epochs", "1"),
}


@pytest.fixture
def distsgd(distsgd_here):
    return distsgd_here


@pytest.mark.parametrize("name", SMALL)
def test_a_table_a_figure_and_json(distsgd, tmp_path, name):
    command = ("study", name, "--dataset", "sample", *SMALL[name])
    done = distsgd(*command, "--plot", "figure.png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert image_format(tmp_path / "figure.png") == "PNG"


def test_a_table_for_people(distsgd):
    done = distsgd("study", "copies", "--dataset", "sample", *SMALL["copies"])
    assert done.returncode == 0 and "softmax" in done.stdout and "all 100" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("noise", "--sizes", "16,x"), "--sizes cannot be 16,x"),
        (("noise", "--sizes", ","), "--sizes is empty"),
        (("minibatch-size", "--sizes", "5000"), "--sizes cannot be 5000"),
        (("copies", "--plot", "figure.gif"), "--plot"),
        (("copies", "--originals", "0"), "--originals cannot be 0"),
    ],
)
def test_bad_input_is_refused(distsgd, arguments, says):
    done = distsgd("study", *arguments, "--dataset", "sample")
    assert done.returncode == 2 and says in done.stderr and not done.stdout


def test_a_batch_size_of_full_is_that_of_all_examples(distsgd, sample):
    train = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "2", "--json")
    whole, counted = (
        json.loads(distsgd(*train, "--batch-size", size).stdout)
        for size in ("full", len(sample.train))
    )
    assert whole["batch_size"] == len(sample.train) and whole["steps"] == 2
    assert whole["weights_sha256"] == counted["weights_sha256"]
    done = distsgd("train", "--dataset", "nowhere", "--batch-size", "full")
    assert done.returncode == 1 and "no dataset at nowhere" in done.stderr


@pytest.mark.parametrize(("sizes", "ratio"), [("16,1500", "0."), ("1500", "-")])
def test_noise_of_all_examples_at_once_is_none(distsgd, sizes, ratio):
    done = distsgd("study", "noise", "--sizes", sizes, "--draws", "2", "--dataset", "sample")
    assert done.returncode == 0, done.stderr
    assert f"expected variance: {ratio}" in done.stdout
