from __future__ import annotations

from figures.histories import history

from distsgd.figures.comparing import band, differing, groups, labels


def test_settings_that_differ() -> None:
    runs = [history("a", learning_rate=0.1), history("b", learning_rate=0.2, seed=1)]
    found = differing(runs)
    assert found.settings == ("seed", "learning_rate")
    assert found.values == ((0, 0.1), (1, 0.2))


def test_groups_are_named_by_what_differs() -> None:
    runs = [
        history("a", consistency="local", local_steps=8),
        history("b", consistency="local", local_steps=8, seed=1),
        history("c"),
    ]
    found = groups(runs)
    assert [group.name for group in found] == ["local, local_steps 8", "bsp"]
    assert [run.name for run in found[0].runs] == ["a", "b"]


def test_runs_of_equal_settings_have_distinct_names() -> None:
    assert labels([history("a"), history("b")]) == ["a", "b"]
    runs = [history("a"), history("b"), history("c", learning_rate=1.0)]
    assert labels(runs) == ["learning_rate 0.1 (a)", "learning_rate 0.1 (b)", "learning_rate 1.0"]


def test_a_band_where_all_have_values() -> None:
    assert band([([1, 2, 3], [1, 2, 3]), ([2, 3], [4, 5])]) == ([2, 3], [3, 4], [2, 3], [4, 5])
    assert band([([1], [1]), ([2], [1])]) == ([], [], [], [])
    assert band([]) == ([], [], [], [])
