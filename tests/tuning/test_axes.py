"""What a study varies: lists, ranges, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from distsgd.errors import UsageError
from distsgd.tuning.axes import Axis, name_of, parsed_axes, product, without_strays


def one(text: str) -> Axis:
    (found,) = parsed_axes("vary", [text], {"seed": "Give seeds=3"})
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("loss=softmax,svm", ("softmax", "svm")),
        ("learning-rate=0.1, 1e-3,0.1", (0.1, 0.001)),
        ("consistency=bsp,ssp:3,local:8", ("bsp", "ssp:3", "local:8")),
        ("learning_rate=log:0.001..0.1:3", (0.001, 0.01, 0.1)),
        ("momentum=0.5..0.9:3", (0.5, 0.7, 0.9)),
        ("batch_size=log:16..64:3", (16, 32, 64)),
        ("hidden_units=0,50", (0, 50)),
        ("batch_size=full,64", ("full", 64)),
        ("error_feedback=true,false", (True, False)),
    ],
)
def test_values(text: str, values: tuple[Any, ...]) -> None:
    assert one(text).values == values


def test_a_range_is_drawn_from_evenly() -> None:
    rate, batch, units = map(one, ("learning_rate=log:0.001..0.1", "batch_size=1..4", "hidden=0,9"))
    assert [rate.at(share) for share in (0.0, 0.5, 1.0)] == [0.001, 0.01, 0.1]
    assert {batch.at(share / 100) for share in range(100)} == {1, 2, 3, 4}
    assert (units.at(0.49), units.at(0.5)) == (0, 9)
    assert rate.text == "log:0.001..0.1" and one("loss=svm,softmax").text == "svm,softmax"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learning_rate", "has no values"),
        ("learning_rate= , ", "has no values"),
        ("learning_rate=fast", "learning_rate cannot be fast"),
        ("learning_rate=0.1..0.01", "cannot range over"),
        ("learning_rate=log:0..1", "learning_rate cannot be 0"),
        ("momentum=log:0..0.9", "ends above 0"),
        ("loss=a..b", "no range"),
        ("lr=0.1", "no setting 'lr'"),
        ("seed=1,2", "seed cannot vary here"),
        ("hidden=ten", "hidden cannot be ten"),
        ("consistency=bsp:3", "consistency cannot be bsp:3"),
        ("learning_rate=0.1..0.2:1", "cannot have 1 values"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as refused:
        one(text)
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_a_setting_is_given_once() -> None:
    with pytest.raises(UsageError, match="loss is given twice"):
        parsed_axes("vary", ["loss=svm", "loss=softmax"], {})


def test_combinations_and_their_names() -> None:
    axes = parsed_axes("vary", {"loss": ["softmax", "svm"], "learning_rate": [0.1, 0.01]}, {})
    names = [name_of(values) for values in product(axes)]
    assert names[:2] == ["softmax, learning_rate 0.1", "softmax, learning_rate 0.01"]
    assert len(names) == 4


def test_what_has_no_meaning_beside_a_varied_setting_is_left_out() -> None:
    given = {"consistency": "bsp", "staleness": 4, "momentum": 0.5}
    assert without_strays(given, ["consistency"]) == {"consistency": "bsp", "momentum": 0.5}
    assert without_strays({**given, "consistency": "ssp"}, ["consistency"])["staleness"] == 4
