"""Changes lead from one value to the next, and are small where columns grow."""

from __future__ import annotations

import json
from copy import deepcopy

from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.watch.changes import applied, change

VALUES = st.recursive(
    st.none() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abx", max_size=1), inner),
    max_leaves=12,
)


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_a_change_leads_to_the_new_value(old, new):
    sent = json.loads(json.dumps(change(old, new)))
    assert applied(deepcopy(old), sent) == new


@settings(max_examples=20)
@given(VALUES)
def test_nothing_is_sent_for_nothing(value):
    assert change(value, deepcopy(value)) is None


def test_columns_that_grow_send_what_was_added():
    old = {"lines": [{"x": list(range(1000)), "y": [0.5] * 1000}], "title": "Loss"}
    new = deepcopy(old)
    new["lines"][0]["x"].append(1000)
    new["lines"][0]["y"].append(0.25)
    columns = {"x": {"a": [1000]}, "y": {"a": [0.25]}}
    assert change(old, new) == {"d": {"lines": {"l": {"0": {"d": columns}}}}}
