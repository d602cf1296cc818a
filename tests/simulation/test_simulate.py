"""simulate() and compare(): real bits, targets, refusals, expressions, figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support import image_format, on_sample

from distsgd.errors import DivergedError, UsageError
from distsgd.figures.drawn import check_plot, save_figure
from distsgd.simulation.figures import draw_curves
from distsgd.simulation.probe import Measuring
from distsgd.simulation.results import Comparison
from distsgd.simulation.scenario import fleet_from, policy_settings, read_scenario, simulated_config
from distsgd.simulation.simulate import compare, policy_configs, simulate
from distsgd.training import train


def comparison(policies: str, settings: dict[str, Any], **more: Any) -> Comparison:
    return compare(policy_configs(policies, lambda own: on_sample(**settings, **own)), **more)


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "svm", "batch_size": 333, "slot_size": 17}, {"optimizer": "adam", "seed": 3},
     {"sampling": "random", "dtype": "float64"}],
)  # fmt: skip
def test_bsp_has_the_bits_of_train(settings: dict[str, Any]) -> None:
    fleet = fleet_from({"workers": 5, "slow": "1:4", "jitter": "lognormal:0.5"})
    trained = train("sample", workers=0, epochs=2, **settings)
    found = simulate(on_sample(epochs=2, **settings), fleet)
    assert found.weights_sha256 == trained.weights_sha256
    assert found.test_accuracy == trained.test_accuracy
    assert found.status == "finished" and found.updates == trained.steps


def test_the_curve_and_the_shares() -> None:
    found = simulate(
        on_sample(epochs=2, batch_size=100, consistency="asp"), measuring=Measuring(every=4)
    )
    assert [point.update for point in found.curve] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    seconds = [point.seconds for point in found.curve]
    assert seconds == sorted(seconds) and seconds[-1] == found.seconds
    assert found.curve[-1].train_loss == found.train_loss
    assert found.curve[-1].test_accuracy == found.test_accuracy
    assert len(found.waiting_shares) == 8 and 0 <= found.waiting_share <= 1
    assert sum(found.staleness.values()) == 30
    assert found.policy == "asp" and found.settings["workers"] == 8


def test_training_stops_when_all_targets_are_reached() -> None:
    both = Measuring(every=1, target_loss=2.1, target_accuracy=0.2)
    found = simulate(on_sample(epochs=5), measuring=both)
    assert found.status == "target"
    assert found.time_to_loss is not None and found.time_to_accuracy is not None
    assert max(found.time_to_loss, found.time_to_accuracy) == found.seconds
    assert found.train_loss <= 2.1 and found.updates < 30
    never = simulate(on_sample(epochs=1), measuring=Measuring(target_loss=0.01))
    assert never.status == "finished" and never.time_to_loss is None


def test_compare_runs_each_policy_with_each_seed() -> None:
    policies = "bsp,ssp:3,asp,backup:2,local:4"
    found = comparison(
        policies,
        {"epochs": 2, "slot_size": 32, "seed": 5},
        seeds=2,
        fleet=fleet_from({"slow": "1:4"}),
    )
    assert [row.policy for row in found.rows] == policies.split(",")
    assert found.seeds == [5, 6] and len(found.runs) == 10
    rows = {row.policy: row for row in found.rows}
    assert rows["bsp"].mean_staleness == 0 < rows["ssp:3"].mean_staleness
    assert rows["ssp:3"].seconds < rows["bsp"].seconds
    assert rows["backup:2"].requeued > 0
    assert rows["bsp"].test_accuracy == sum(r.test_accuracy for r in found.runs[:2]) / 2
    alone = simulate(on_sample(epochs=2, slot_size=32, seed=6), fleet_from({"slow": "1:4"}))
    assert alone == found.runs[1]


def test_divergence_is_an_error_alone_and_a_count_in_a_comparison() -> None:
    settings: dict[str, Any] = {"learning_rate": 1e30, "epochs": 2}
    with pytest.raises(DivergedError):
        simulate(on_sample(**settings))
    (row,) = comparison("asp", settings, seeds=2).rows
    assert row.diverged == 2 and row.time_to_loss is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "workers cannot be 0"),
        ({"speed": "0"}, "speed cannot be 0.*above 0"),
        ({"speed": "fast"}, "speed cannot be fast"),
        ({"latency": "-1"}, "latency cannot be -1.*0 or more"),
        ({"bandwidth": "nan"}, "bandwidth"),
        ({"slow": "1"}, "slow cannot be 1.*COUNT:FACTOR"),
        ({"slow": "0:2"}, "slow"),
        ({"slow": "1:0"}, "slow"),
        ({"slow": "9:2"}, "slow names 9 workers, and workers is 8"),
        ({"jitter": "normal:1"}, "jitter cannot be normal:1.*pareto:ALPHA"),
        ({"jitter": "pareto"}, "jitter"),
        ({"jitter": "pareto:0"}, "jitter"),
        ({"jitter": "pause:2:3"}, "jitter"),
        ({"fail": "1"}, "fail cannot be 1.*WORKER@SECONDS"),
        ({"fail": "8@1"}, "fail cannot be 8@1.*0 to 7"),
        ({"fail": "1@1,1@2"}, "fail 1@2: worker 1 has failed already"),
        ({"rejoin": "1@1"}, "rejoin 1@1: worker 1 is there already"),
        ({"fail": "1@1", "rejoin": "1@1"}, "by turns"),
        ({"fail": "1@-1"}, "fail"),
    ],
)
def test_expressions_that_cannot_be_used(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fleet_from(given)


@pytest.mark.parametrize("text", ["", "bsp,", "asp:3", "ssp:x", "ssp:-1", "sync", "asp,asp"])
def test_policies_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UsageError, match="policies"):
        policy_settings(text)


@pytest.mark.parametrize(
    ("measuring", "words"),
    [
        ({"every": 0}, "measure_every"),
        ({"examples": 0}, "measure_examples"),
        ({"target_loss": -1.0}, "target_loss"),
        ({"target_accuracy": 40.0}, "target_accuracy.*such as 0.4"),
    ],
)
def test_targets_that_cannot_be_used(measuring: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Measuring(**measuring)


def test_settings_that_are_not_simulated() -> None:
    for name, value in (("workers", "2"), ("channel", "ray")):
        with pytest.raises(UsageError, match=name):
            simulated_config({}, {"dataset": "sample", name: value}, {})
    with pytest.raises(UsageError, match="batch_size=1501"):
        simulate(on_sample(batch_size=1501))
    with pytest.raises(UsageError, match=r"^seeds cannot be 0"):
        comparison("bsp", {}, seeds=0)


def test_a_scenario_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('workers = 4\nslow = "1:4"\nfail = ["0@0.5", "1@0.25"]\n[train]\nepochs = 3\n')
    fleet, settings = read_scenario(path)
    assert fleet_from(fleet) == fleet_from({"workers": 4, "slow": "1:4", "fail": "0@0.5,1@0.25"})
    assert simulated_config(settings, {"seed": 2}, {}).epochs == 3
    assert simulated_config(settings, {"epochs": "5"}, {"epochs": "--set"}).epochs == 5
    for text, words in (
        ("slwo = 1", "Did you mean slow"), ("slow = ", "not valid"), ("train = 3", "not a table"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_scenario(path)
    with pytest.raises(UsageError, match="there is no file"):
        read_scenario(tmp_path / "missing.toml")


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_figures(tmp_path: Path, name: str) -> None:
    found = comparison("bsp,asp", {"epochs": 1}, seeds=2, measuring=Measuring(target_loss=1.5))
    save_figure(draw_curves(found.runs), tmp_path / name)
    assert image_format(tmp_path / name) == name.rpartition(".")[2].upper()


def test_figures_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png or \.svg"):
        check_plot(tmp_path / "curves.gif")
    with pytest.raises(UsageError, match="no folder"):
        check_plot(tmp_path / "none" / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):  # now, not after hours
        check_plot(tmp_path / "curves.png")
