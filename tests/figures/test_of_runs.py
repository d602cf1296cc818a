from __future__ import annotations

import json

import pytest
from figures.histories import history

from distsgd.errors import UsageError
from distsgd.figures.charts import Chart, Matrix, Timeline
from distsgd.figures.of_runs import AXES, available, build
from distsgd.runs.history import History


@pytest.mark.parametrize("x", AXES)
def test_curves_of_one_run(x: str) -> None:
    found = build("loss", [history()], x)
    assert isinstance(found, Chart)
    names = {line.name: line for line in found.lines}
    assert list(names) == ["minibatches", "training", "test"]
    assert names["test"].y == (1.1, 1.0)
    last = {"epoch": 2, "update": 20, "seconds": 0.2}[x]
    assert names["test"].x[-1] == names["minibatches"].x[-1] == last
    (mark,) = found.marks
    assert mark.x == pytest.approx({"epoch": 1.5, "update": 15, "seconds": 0.15}[x])


def test_seeds_are_one_curve_with_a_band() -> None:
    runs = [history(f"{c}{s}", 0.4 + s / 10, consistency=c, seed=s)
            for c in ("bsp", "asp") for s in (0, 1, 2)]  # fmt: skip
    found = build("accuracy", runs)
    assert isinstance(found, Chart)
    assert [line.name for line in found.lines] == ["bsp", "bsp, training", "asp", "asp, training"]
    test = found.lines[0]
    assert test.y == pytest.approx((50.0, 60.0))
    assert test.low == pytest.approx((40.0, 50.0)) and test.high == pytest.approx((60.0, 70.0))
    assert "3" in found.note and found.marks == ()


def test_a_loss_that_explodes_is_drawn_by_its_logarithm() -> None:
    run = history()
    run.progress["loss"][-2:] = [1e9, float("nan")]
    found = build("loss", [run])
    assert isinstance(found, Chart) and found.log_y
    assert found.lines[0].y[-1] is None


def test_other_figures_of_one_run() -> None:
    run = history()
    matrix, timeline = build("confusion", [run]), build("timeline", [run])
    assert isinstance(matrix, Matrix) and isinstance(timeline, Timeline)
    assert matrix.shares == [[0.4, 0.6], [0.4, 0.6]]
    (row,) = timeline.rows
    assert row.shares["computing"] == pytest.approx((0.5, 0.4))
    ages = build("staleness", [run])
    assert isinstance(ages, Chart)
    assert ages.lines[0].y == (75.0, 0.0, 25.0) and ages.categories == ("0", "1", "2")
    for name in set(available([run])):
        json.dumps(build(name, [run]).to_json(), allow_nan=False) if name != "templates" else None


def test_what_was_not_recorded_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to draw of Confusion matrix in old"):
        build("confusion", [History(name="old", folder="/runs/old", state="finished")])
    with pytest.raises(UsageError, match="shows one run, not 2"):
        build("timeline", [history("a"), history("b")])


def test_over_seconds_the_mean_is_over_equal_epochs() -> None:
    """Also of runs of which one had ended before the other ended its first epoch."""
    slow = history("slow", 0.6, seed=1)
    slow.epochs["seconds"] = [3.1, 4.2]
    found = build("accuracy", [history("fast"), slow], "seconds")
    assert isinstance(found, Chart)
    assert found.lines[0].x == pytest.approx((1.6, 2.2))
    assert found.lines[0].y == pytest.approx((50.0, 60.0))
