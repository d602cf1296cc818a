"""Runs as Python objects: what they hold is what the run folder and the functions say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import image_format, on_sample

import distsgd
from distsgd.errors import RunError, UsageError


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> distsgd.TrainResult:
    config = on_sample(workers=0, epochs=2, log_every=2, validation=0.02)
    folder = tmp_path_factory.mktemp("loaded") / "<b>run</b> & [x]"
    return distsgd.train(config=config, run_dir=folder)


def test_what_it_holds(result: distsgd.TrainResult) -> None:
    run = distsgd.load(result.run_dir)
    assert run.config == on_sample(workers=0, epochs=2, log_every=2, validation=0.02)
    assert run.result == result and run.state == "finished"
    assert run.checkpoints == [0, 6, 12] and run.weights.shape == (10, 3073)
    shown = run.templates()
    assert shown is not None and (shown.shape, shown.dtype) == ((10, 32, 32, 3), np.uint8)
    assert (run.model(0).weights[0] != run.model("best").weights[0]).any()
    epochs = [row for row in run.metrics.to_pylist() if row["kind"] == "epoch"]
    assert [row["test_accuracy"] for row in epochs][-1] == result.test_accuracy
    assert [entry.version for entry in run.journal] == list(range(1, 13))
    assert run.history.epochs["test_accuracy"] == result.history.epochs["test_accuracy"]
    assert run.history.updates == result.steps == 12
    with pytest.raises(RunError, match="no run nowhere"):
        distsgd.load("nowhere")


@pytest.mark.parametrize(
    "given",
    [lambda result: distsgd.load(result.run_dir), lambda result: distsgd.load(result),
     lambda result: Path(result.run_dir)],
)  # fmt: skip
def test_functions_take_it(
    given: Callable[[distsgd.TrainResult], Any], result: distsgd.TrainResult
) -> None:
    run = given(result)
    assert distsgd.evaluate(run).accuracy == result.test_accuracy
    assert distsgd.audit(run, expect=result.journal_head).updates == 12
    assert distsgd.replay(run).weights_sha256 == result.weights_sha256
    assert len(distsgd.predict(run, np.zeros(3072))) == 1
    assert distsgd.load(run).run_dir == result.run_dir


def test_runs_are_listed() -> None:
    assert distsgd.runs() == []
    trained = [distsgd.train(config=on_sample(workers=0, epochs=e)) for e in (1, 2)]
    found = distsgd.runs(sort="epochs")
    assert [run.run_dir for run in found] == [run.run_dir for run in reversed(trained)]
    assert distsgd.load(found[0]).result == trained[1]
    (one,) = distsgd.runs(where=["epochs=1"], state="finished")
    assert one.test_accuracy == trained[0].test_accuracy
    with pytest.raises(UsageError, match="sort cannot be colour"):
        distsgd.runs(sort="colour")


def test_simulate() -> None:
    settings: dict[str, Any] = {"consistency": "ssp", "staleness": 4, "epochs": 1}
    found = distsgd.simulate("sample", workers=4, slow="1:4", measure_every=3, **settings)
    assert (found.policy, len(found.waiting_shares), found.status) == ("ssp:4", 4, "finished")
    for wrong in ({"slow": "x"}, {"workers": 0}, {"colour": 1}, {"run_dir": "x"}):
        with pytest.raises(UsageError):
            distsgd.simulate("sample", **wrong)  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Checks that what is opened is closed, and counts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_for_a_notebook(result: distsgd.TrainResult) -> None:
    for shown in (result, distsgd.load(result)):
        html = shown._repr_html_()
        found = Tags(html)
        assert not found.open and found.seen.count("svg") == 2 and found.seen.count("img") == 10
        assert "<b>" not in html and "&lt;b&gt;run&lt;/b&gt; &amp; [x]" in html
        assert f"{result.test_accuracy:.1%}" in html and len(html) < 200_000
    gone = distsgd.LoadedRun(distsgd.load(result)._folder.__class__(Path("/nowhere/<i>")))
    assert "&lt;i&gt;" in gone._repr_html_()


def test_figures(result: distsgd.TrainResult, tmp_path: Path) -> None:
    import matplotlib as mpl

    run, before = distsgd.load(result), dict(mpl.rcParams)
    shown = run.plot_loss(x="update")
    (test,) = [line for line in shown.figure.lines if line.name == "test"]  # type: ignore[union-attr]
    assert list(test.y) == run.history.epochs["test_loss"] and list(test.x) == [6, 12]
    assert shown._repr_svg_().count("<svg") == 1
    for name in ("loss.png", "loss.svg", "loss.pdf"):
        shown.save(tmp_path / name)
    assert image_format(tmp_path / "loss.svg") == "SVG"
    assert image_format(tmp_path / "loss.png") == "PNG"
    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")
    assert len(run.plot("confusion", size="column", dark=True).drawing().axes) >= 1
    assert dict(mpl.rcParams) == before
    for wrong in ({"figure": "pie"}, {"x": "years"}, {"size": "wall"}):
        with pytest.raises(UsageError):
            run.plot(**wrong)
    with pytest.raises(UsageError, match=r"loss\.gif cannot be drawn"):
        shown.save("loss.gif")


def test_lists_do_not_depend_on_what_was_imported_before() -> None:
    code = "import distsgd{}; print(distsgd.runs())"
    for more in ("", ", distsgd.runs.folder"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(more)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"
