"""The commands that look at things: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Run

from distsgd.data.dataset import Dataset

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "2")


@pytest.fixture
def distsgd(distsgd_here: Run) -> Run:
    return distsgd_here


def json_of(distsgd: Run, *arguments: object) -> dict[str, object]:
    done = distsgd(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert isinstance(content, dict)
    return content


def test_train_evaluate_predict_runs(distsgd: Run, tmp_path: Path, sample: Dataset) -> None:
    trained = json_of(distsgd, *TRAIN)
    measured = json_of(distsgd, "evaluate", "latest")
    for name in ("weights_sha256", "run_dir"):
        assert measured[name] == trained[name]
    assert measured["accuracy"] == trained["test_accuracy"]
    assert measured["examples"] == 400
    on_training = json_of(distsgd, "evaluate", trained["run_dir"], "--split", "train")
    assert on_training["accuracy"] == trained["train_accuracy"]
    pixels, _ = next(sample.test.batches())
    image = pixels[3].reshape(3, 32, 32).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "image.png")
    Image.new("L", (90, 60)).save(tmp_path / "grey.jpg")
    found = json_of(distsgd, "predict", "latest", "image.png", "grey.jpg", "--top", 10)
    predictions = found["predictions"]
    assert isinstance(predictions, list) and len(predictions) == 2
    assert sum(predictions[0]["probabilities"]) == pytest.approx(1)
    assert sorted(predictions[0]["classes"]) == sorted(sample.manifest.classes)
    runs = json_of(distsgd, "runs", "list")["runs"]
    assert isinstance(runs, list) and [run["status"] for run in runs] == ["finished"]
    shown = json_of(distsgd, "runs", "show")
    assert shown["status"] == "finished"
    assert isinstance(shown["versions"], dict) and {"ray", "numpy", "python"} <= set(
        shown["versions"]
    )
    for command in (("evaluate", "latest"), ("runs", "list"), ("runs", "show"),
                    ("predict", "latest", "image.png")):  # fmt: skip
        done = distsgd(*command)
        assert done.returncode == 0 and "\x1b" not in done.stdout and done.stdout


def test_any_update_is_measured_and_exported(distsgd: Run, tmp_path: Path) -> None:
    trained = json_of(distsgd, *TRAIN, "--run-dir", "run")
    assert json_of(distsgd, "evaluate", "run", "--at", "7")["step"] == 7
    done = json_of(distsgd, "runs", "export", "run", "--checkpoint", "last-5", "--out", "w.npz")
    assert done["updates"] == int(str(trained["steps"])) - 5
    json_of(distsgd, "report", "run", "--figure", "templates", "--checkpoint", "7")
    for given, words in (("999", "has no update 999"), ("x", "x names no update")):
        refused = distsgd("evaluate", "run", "--at", given)
        assert refused.returncode == 2 and words in refused.stderr


def test_predictions_are_those_of_the_evaluation(sample: Dataset, tmp_path: Path) -> None:
    import distsgd

    result = distsgd.train("sample", workers=0, epochs=2)
    pixels, labels = next(sample.test.batches())
    files = []
    for number, row in enumerate(pixels[:100]):
        files.append(tmp_path / f"{number}.png")
        image = np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))
        Image.fromarray(image).save(files[-1])
    names = [prediction.label for prediction in distsgd.predict(result.run_dir, files)]
    right = [name == sample.manifest.classes[label] for name, label in zip(
        names, labels[:100], strict=True)]  # fmt: skip
    measured = distsgd.evaluate(result.run_dir)
    assert measured.accuracy == result.test_accuracy
    assert sum(right) > 15


def test_runs_elsewhere_are_listed_until_they_are_removed(distsgd: Run, tmp_path: Path) -> None:
    import shutil

    assert distsgd(*TRAIN, "--run-dir", "elsewhere").returncode == 0
    assert "elsewhere" in distsgd("runs", "list").stdout
    shutil.rmtree(tmp_path / "elsewhere")
    assert "elsewhere" not in distsgd("runs", "list").stdout


def test_gradcheck(distsgd: Run) -> None:
    found = json_of(distsgd, "gradcheck", "--loss", "softmax", "--parameters", 50)
    assert found["passed"] is True
    error = found["largest_relative_error"]
    assert isinstance(error, float) and 0 < error <= 1e-6


def test_data_info_and_verify(distsgd: Run) -> None:
    info = json_of(distsgd, "data", "info", "--dataset", "sample")
    assert (info["train"], info["test"]) == (1500, 400)
    assert json_of(distsgd, "data", "verify", "--dataset", "sample")["sound"] is True
    assert "frog" in distsgd("data", "info", "--dataset", "sample").stdout


def test_a_config_file_and_a_run_config_repeat_a_run(distsgd: Run, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('dataset = "sample"\nworkers = 0\nepochs = 1\nseed = 7\n')
    first = json_of(distsgd, "train", "--config", "run.toml", "--set", "pixel_scale=32")
    again = json_of(distsgd, "train", "--config", Path(str(first["run_dir"])) / "config.json")
    other = json_of(distsgd, "train", "--config", "run.toml", "--seed", 8)
    assert again["weights_sha256"] == first["weights_sha256"] != other["weights_sha256"]


FLAGS = {
    "Data": ["--dataset", "--batch-size", "--sampling", "--shuffle", "--validation",
             "--class-weight", "--cache", "--cache-size"],
    "Model": ["--model", "--loss", "--regularization", "--arithmetic"],
    "Optimisation": [
        "--epochs", "--patience", "--learning-rate", "--optimizer", "--scale-lr", "--seed",
    ],
    "Fleet": [
        "--workers", "--servers", "--consistency", "--staleness", "--backup", "--local-steps",
        "--compress", "--channel", "--placement", "--address",
    ],
    "Output": [
        "--run-dir", "--resume-if-exists", "--trace", "--tensorboard", "--metrics-port", "--watch",
        "--tag", "--json",
    ],
    "Faults": ["--verify", "--chaos"],
    "More settings and help": ["--config", "--set", "--help"],
}  # fmt: skip


def test_the_flags_of_train_are_these(distsgd: Run) -> None:
    """Each new flag is a decision; most things belong to --set."""
    import re

    shown = distsgd("train", "--help", env={"COLUMNS": "200"}).stdout
    panels: dict[str, list[str]] = {}
    for title, flag in re.findall(r"^╭─ ([\w ]+?) ─|^│ +(--[a-z-]+)", shown, re.MULTILINE):
        if title:
            panels[title] = []
        else:
            panels[list(panels)[-1]].append(flag)
    assert panels == FLAGS


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "predict", "gradcheck", "audit", "replay", "blame", "data fetch",
     "data info", "data verify", "runs list", "runs show", "runs compare",
     "runs export", "runs rm", "runs tag", "watch", "report", "simulate", "simulate compare",
     "bench", "advise", "landscape", "lecture", "search random", "search local", "gradient numeric",
     "stepsize", "study loss", "study hinges", "study convexity", "study chain-rule",
     "study formulas", "study descent", "study copies", "study noise", "study minibatch-size",
     "study sampling", "cluster start", "cluster stop", "cluster status",
     "serve", "submit", "jobs list", "jobs logs", "jobs stop", "data import"],
)  # fmt: skip
def test_every_command_has_an_example_in_its_help(distsgd: Run, command: str) -> None:
    done = distsgd(*command.split(), "--help")
    assert f"Example: distsgd {command}" in " ".join(done.stdout.replace("│", " ").split())


def test_version(distsgd: Run) -> None:
    from distsgd import __version__
    from distsgd.engine.blas import blas_kernel

    first, second = distsgd("--version").stdout.splitlines()
    assert first == f"distsgd {__version__}" and second.startswith(blas_kernel())
