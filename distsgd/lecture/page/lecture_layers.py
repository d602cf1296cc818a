"""The chapter of two layers, beyond the lecture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from distsgd.lecture.drawing import new_figure
from distsgd.lecture.experiments.gradcheck import gradcheck
from distsgd.lecture.page.findings import Check, Options, Part, at_least, at_most, holds
from distsgd.lecture.service_run import Trained, train_for_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_models", "two_layers"]

_MODEL = "mlp:100"


def two_layers(options: Options) -> Part:
    """A network under the same server: better, as exact, and the same bits for any fleet."""
    epochs, rule = options.of(10, 4), "adam" if options.quick else "sgd"
    settings = {"epochs": epochs, "seed": options.seed, "workers": 0}
    linear = train_for_study(options.dataset, **settings)
    network = train_for_study(options.dataset, model=_MODEL, optimizer=rule, **settings)
    worst = max(row.largest_relative_error for row in gradcheck(model=_MODEL, seed=options.seed))
    return Part(
        commands=(
            options.command(f"train --epochs {epochs} --workers 0"),
            options.command(
                f"train --model {_MODEL} --epochs {epochs} --optimizer {rule} --workers 0"
            ),
            options.command(f"gradcheck --model {_MODEL}", data=False),
            *(options.command(f"train --model {_MODEL} --epochs 1 --workers {workers}")
              for workers in ((0, options.workers) if options.workers else ())),
        ),
        checks=(
            at_least("accuracy", network.result.test_accuracy, 0.5, percent=True,
                     applies=options.cifar10),
            at_most("gradient", worst, 1e-6),
            *_same_bits(options),
        ),
        figures={"accuracy": draw_models({"linear": linear, _MODEL: network})},
    )  # fmt: skip


def _same_bits(options: Options) -> Iterable[Check]:
    """Weights from one process, and from workers."""
    if options.workers:
        alone, fleet = (
            train_for_study(
                options.dataset, model=_MODEL, epochs=1, seed=options.seed, workers=workers
            ).result.weights_sha256
            for workers in (0, options.workers)
        )
        yield holds("bits", f"{alone[:8]} / {fleet[:8]}", alone == fleet)


def draw_models(runs: dict[str, Trained]) -> Figure:
    """Test accuracy by epochs."""
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    for name, run in runs.items():
        accuracy = [100 * row.test_accuracy for row in run.epochs]
        axes.plot(range(1, len(accuracy) + 1), accuracy, "o-", label=name)
    axes.set(xlabel="epochs", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
