"""Medians, ratios, bars, and how they read."""

from __future__ import annotations

import pytest

from distsgd.bench.contenders import choose, grid, usual_contenders
from distsgd.bench.environment import Measurement, ratio
from distsgd.bench.report import BARS, Bar, Report, judge, judged, make_rows, markdown, tables

CHANNELS = ("auto", "unix")
NAMES = "numpy,inline-512,bsp-2-512,torch,sgemm,slot-products,help"


def measured() -> dict[str, Measurement]:
    def found(name: str, *values: float, skipped: str = "", **details: object) -> Measurement:
        rounds = dict(enumerate(values))
        return Measurement(name=name, values=rounds, skipped=skipped, details=details)

    every = [
        found("numpy", 100_000, 200_000, 150_000),
        found("inline-512", 200_000, 400_000, 450_000),
        found("bsp-2-512", 400_000, 700_000, 900_000, channel="unix", server_busy=0.214),
        found("torch", skipped="PyTorch is not installed: pip install 'distsgd[bench]'"),
        found("torch-ddp", 60_000, skipped="it took too long"),
        found("sgemm", 100.0, 90.0, 95.0),
        found("slot-products", 45.0, 50.0, 47.0),
        found("help", 0.4, 0.3, 0.6),
    ]  # fmt: skip
    return {one.name: one for one in every}


def report() -> Report:
    found = measured()
    contenders = choose(NAMES, usual_contenders(CHANNELS), [])
    return Report(
        command="distsgd bench", dataset="cifar10", rounds=3, seconds=2.0,
        environment={"cpu": "Abacus 9", "torch": "not installed"}, others_busy=0.1,
        rows=make_rows(contenders, found), bars=judged(found, ()), wall_seconds=412.3,
    )  # fmt: skip


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    found = measured()
    assert ratio(found, "inline-512", "numpy") == 2
    assert ratio(found, "bsp-2-512", "inline-512") == 2
    assert found["bsp-2-512"].median == 700_000


def test_a_ratio_needs_a_round_that_has_both() -> None:
    found = measured()
    assert ratio(found, "numpy", "torch-ddp") == pytest.approx(100 / 60)
    assert ratio(found, "numpy", "torch") is None
    assert ratio(found, "numpy", "unheard") is None


@pytest.mark.parametrize(
    ("sign", "target", "met"),
    [(">=", 2, True), (">=", 2.01, False), ("<=", 2, True), ("<", 2, False), ("<", 2.1, True)],
)
def test_a_bar_is_held_to_its_sign(sign: str, target: float, met: bool) -> None:
    bar = Bar("x", sign, target, "inline-512", "numpy")
    assert judge(bar, measured()).met is met


def test_a_bar_that_was_not_measured_is_neither_met_nor_missed() -> None:
    outcome = judge(Bar("x", ">=", 1, "torch", "numpy"), measured())
    assert outcome.met is None and outcome.got is None


def test_every_bar_is_of_contenders_that_are_measured() -> None:
    there = {one.name for one in usual_contenders(CHANNELS)}
    assert {name for bar in BARS for name in (bar.of, bar.over) if name} <= there


def test_a_bar_of_one_kind_of_processor_is_held_there_alone() -> None:
    found = {
        name: Measurement(name=name, values={0: value})
        for name, value in {"inline-256": 300.0, "numpy": 200.0}.items()
    }
    assert not judged(found, {"avx2"})
    (outcome,) = judged(found, {"avx2", "avx512f"})
    assert outcome.met and outcome.got == 1.5


def test_rows_have_the_ratios_that_say_something() -> None:
    rows = {row.name: row for row in report().rows}
    assert (rows["bsp-2-512"].over_plain, rows["bsp-2-512"].over_inline) == (4.0, 2.0)
    assert rows["sgemm"].over_plain is None and rows["torch"].median is None


def test_tables_read_as_they_should() -> None:
    training, floor, processes, bars = tables(report())
    assert training.rows == (
        ("one plain numpy loop, 256", "150,000 (100,000 to 200,000)", "1.00", ""),
        ("ours, inline, 512", "400,000 (200,000 to 450,000)", "2.00", "1.00"),
        ("ours, 2 workers, bsp, 512 (unix, server busy 21 %)", "700,000 (400,000 to 900,000)",
         "4.00", "2.00"),
        ("PyTorch, one process, 256",
         "skipped: PyTorch is not installed: pip install 'distsgd[bench]'", "", ""),
    )  # fmt: skip
    assert floor.rows[0][1] == "95.0 (90.0 to 100.0) GFLOP/s"
    assert processes.rows == (("distsgd --help", "0.40 (0.30 to 0.60)"),)
    assert ("2 workers bsp, 512, over ours inline", ">= 1.8 x", "2.00 x", "met") in bars.rows
    assert ("slot products over the sgemm peak of one thread", ">= 0.5 x", "0.49 x",
            "not met") in bars.rows  # fmt: skip


def test_markdown_has_what_a_committed_figure_needs() -> None:
    text = markdown(report())
    bar = "| distsgd --help | <= 0.5 s | 0.40 s | met |"
    for part in ("distsgd bench", "- cpu: Abacus 9", "- torch: not installed", "3 rounds",
                 "| --- | ---: |", "412 s in all", bar):  # fmt: skip
        assert part in text
    assert all(line.count("|") in (0, 3, 5) for line in text.splitlines())


def test_the_grid_names_every_form_of_ours() -> None:
    assert len({one.name for one in grid(CHANNELS)}) == 3 * 2 * 4 * len(CHANNELS)
