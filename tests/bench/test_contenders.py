"""Who is measured, and what `--only` means."""

from __future__ import annotations

import pytest

from distsgd.bench.benchmark import in_processes, reason_to_skip
from distsgd.bench.contenders import choose, grid, usual_contenders
from distsgd.bench.ours import WORDS
from distsgd.bench.report import BARS
from distsgd.config.settings import SETTINGS, TrainConfig
from distsgd.errors import UsageError

CHANNELS = ("auto", "unix", "pigeon")
USUAL = usual_contenders(CHANNELS)


def names(only: str | None) -> list[str]:
    return [one.name for one in choose(only, USUAL, grid(CHANNELS))]


def test_names_are_unique() -> None:
    assert len(set(names(None))) == len(names(None))


def test_every_channel_of_the_settings_is_measured() -> None:
    assert "bsp-2-512-pigeon" in names(None)
    real = usual_contenders(SETTINGS["channel"].choices)
    assert {one.settings.get("channel") for one in real} >= set(SETTINGS["channel"].choices)


def test_what_is_told_to_ours_are_settings() -> None:
    for one in [*usual_contenders(SETTINGS["channel"].choices), *grid(SETTINGS["channel"].choices)]:
        if one.module == "distsgd.bench.ours":
            settings = {key: value for key, value in one.settings.items() if key not in WORDS}
            assert TrainConfig(**settings).batch_size == one.batch


def test_only_takes_names_and_first_words_in_the_usual_order() -> None:
    assert names("torch, numpy") == ["numpy", "torch"]
    assert names("bsp-2-512") == ["bsp-2-512"]
    assert names("inline-512") == ["inline-512"]
    assert names("inline-haswell,inline-256") == ["inline-256", "inline-haswell-256"]
    assert {f"inline-{batch}" for batch in (64, 256, 512, 2048)} < set(names("inline"))
    assert names("bsp-2-64-pigeon,numpy") == ["numpy", "bsp-2-64-pigeon"]


@pytest.mark.parametrize("only", ["inlin", "numpy,abacus", "", ","])
def test_only_refuses_what_there_is_not(only: str) -> None:
    with pytest.raises(UsageError, match="--only"):
        names(only)


def test_absent_packages_and_large_minibatches_are_reasons_to_skip() -> None:
    by_name = {one.name: one for one in USUAL}
    assert "'distsgd[bench]'" in reason_to_skip(by_name["torch"], 50_000, lambda _: False)
    assert "scikit-learn" in reason_to_skip(by_name["sklearn-log"], 50_000, lambda _: False)
    assert reason_to_skip(by_name["torch"], 50_000, lambda _: True) == ""
    assert reason_to_skip(by_name["numpy"], 50_000, lambda _: False) == ""
    assert "1500 images" in reason_to_skip(by_name["inline-2048"], 1500)


def test_what_shares_a_process_is_together_and_the_rest_alone() -> None:
    groups = [[one.name for one in group] for group in in_processes(choose(
        "numpy,numpy-haswell,inline-256,bsp-2-256,asp-2-256,inline-512,bsp-2-512,sgemm,memory,help",
        USUAL, []))]  # fmt: skip
    assert groups == [
        ["numpy"], ["inline-256"], ["bsp-2-256", "asp-2-256"], ["numpy-haswell"], ["inline-512"],
        ["bsp-2-512"], ["sgemm", "memory"], ["help"],
    ]  # fmt: skip


def test_the_two_of_a_ratio_are_measured_close_together() -> None:
    place = {name: number for number, name in enumerate(names(None))}
    distances = {
        bar.what: abs(place[bar.of] - place[bar.over])
        for bar in BARS if bar.over.startswith(("bsp", "inline", "numpy"))
    }  # fmt: skip
    assert distances and max(distances.values()) <= 3, distances


def test_rows_are_set_beside_rows_that_are_measured() -> None:
    there = set(names(None))
    for one in USUAL:
        if one.module.startswith(("distsgd.bench.ours", "distsgd.bench.peers")):
            assert (one.inline or f"inline-{one.batch}") in there, one
            assert not one.plain or one.plain in there, one
