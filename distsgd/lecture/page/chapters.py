"""Chapters of the lecture: random search, local search, the numerical gradient, the step size.

Chapters of the lecture: losses, their landscapes, their gradients by formula.

Chapters of the lecture: descent by minibatches, why they work, how large, how chosen.

The chapter of two layers, beyond the lecture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsgd.data.columns import PIXELS
from distsgd.figures.drawn import new_figure
from distsgd.lecture.drawing import draw_chain_rule
from distsgd.lecture.experiments import (
    check_convexity,
    compare_copies,
    compare_descents,
    compare_formulas,
    compare_samplings,
    compare_sizes,
    draw_convexity,
    draw_copies,
    draw_descents,
    draw_formulas,
    draw_hinges,
    draw_initial_loss,
    draw_landscape,
    draw_lines,
    draw_local_search,
    draw_minibatch_noise,
    draw_numeric_gradient,
    draw_planes,
    draw_random_search,
    draw_samplings,
    draw_sizes,
    draw_step_sizes,
    gradcheck,
    hinges,
    initial_loss,
    landscape,
    local_search,
    minibatch_noise,
    numeric_gradient,
    random_search,
    step_sizes,
)
from distsgd.lecture.material import Trained, train_for_study
from distsgd.lecture.page.findings import (
    Check,
    Options,
    Part,
    at_least,
    at_most,
    count_at_most,
    exactly,
    holds,
    near,
)
from distsgd.lecture.plain.chain_rule import worked_examples
from distsgd.training.training import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "chain_rule",
    "descents",
    "formulas",
    "landscapes",
    "local",
    "losses",
    "numerical",
    "piecewise",
    "random",
    "samplings",
    "sizes",
    "steps",
    "two_layers",
    "why",
]


_LOSSES = ("svm", "softmax")
_TRIES = 1_000


def _examples(options: Options, full: int | None, quick: int) -> tuple[int | None, str]:
    """How many examples a search looks at, and the flag for it."""
    number = quick if options.quick else full
    if number is not None:
        number = options.examples(number, number)
    return number, "" if number is None else f" --examples {number}"


def random(options: Options) -> Part:
    """Strategy 1."""
    examples, flag = _examples(options, None, 1_000)
    result = random_search(
        options.dataset, attempts=_TRIES, examples=examples, workers=options.workers,
        seed=options.seed,
    )  # fmt: skip
    return Part(
        commands=(
            options.command(f"search random --attempts {_TRIES}{flag}", workers=True),
        ),
        checks=(
            exactly("attempts", len(result.losses), _TRIES),
            near("accuracy", result.test_accuracy, 0.155, 0.03, percent=True,
                 applies=options.cifar10),
        ),
        figures={"losses": draw_random_search(result)},
    )  # fmt: skip


def local(options: Options) -> Part:
    """Strategy 2."""
    examples, flag = _examples(options, None, 1_000)
    result = local_search(
        options.dataset, tries=_TRIES, examples=examples, workers=options.workers,
        seed=options.seed,
    )  # fmt: skip
    falls = all(b <= a for a, b in zip(result.losses, result.losses[1:], strict=False))
    return Part(
        commands=(options.command(f"search local --tries {_TRIES}{flag}", workers=True),),
        checks=(
            near("accuracy", result.test_accuracy, 0.214, 0.02, percent=True,
                 applies=options.cifar10),
            holds("falls", f"{result.losses[0]:.4f} → {result.losses[-1]:.4f}", falls),
        ),
        figures={"losses": draw_local_search(result)},
    )  # fmt: skip


def numerical(options: Options) -> Part:
    """Strategy 3 without calculus, for both losses."""
    every = len(options.manifest.classes) * (options.manifest.features + 1)
    examples, entries = options.examples(500, 100), min(2_000, every) if options.quick else None
    flag = f" --examples {examples}" + (f" --parameters {entries}" if entries else "")
    checks: list[Check] = []
    commands, figures = [], {}
    for loss in _LOSSES:
        result = numeric_gradient(
            options.dataset, loss=loss, examples=examples, parameters=entries,
            workers=options.workers, seed=options.seed,
        )  # fmt: skip
        one_sided, central = result.rows
        if loss == _LOSSES[0]:
            checks.append(exactly("evaluations", one_sided.evaluations, one_sided.parameters + 1))
        checks.append(at_most(f"{loss}_one_sided", one_sided.relative_error, 1e-4))
        checks.append(at_most(f"{loss}_central", central.relative_error, 1e-7))
        slower = one_sided.seconds / result.analytic_seconds
        checks.append(holds(f"{loss}_slower", f"{slower:,.0f} ×", slower > 10))
        commands.append(options.command(f"gradient numeric --loss {loss}{flag}", workers=True))
        figures[loss] = draw_numeric_gradient(result)
    return Part(commands=tuple(commands), checks=tuple(checks), figures=figures)


def steps(options: Options) -> Part:
    """The effect of the step size."""
    examples, flag = _examples(options, None, 5_000)
    if not options.cifar10:
        examples, flag = None, ""
    result = [
        step_sizes(options.dataset, loss=loss, examples=examples, workers=options.workers,
                   seed=options.seed)
        for loss in _LOSSES
    ]  # fmt: skip
    checks: list[Check] = []
    for one in result:
        best = one.steps.index(one.best_step)
        inner = 0 < best < len(one.steps) - 1
        # Of standardised columns, the largest step of the table may still be the best.
        pixels = options.manifest.values == PIXELS
        checks.append(holds(f"{one.loss}_best", f"{one.best_step:g}", inner, applies=pixels))
        worst = max(one.last_ratios, key=lambda ratio: abs(ratio - 10))
        # Of a few columns, the loss does not grow with the step as soon as that.
        images = len(options.manifest.shape) == 3
        checks.append(near(f"{one.loss}_ratio", worst, 10, 1, applies=images))
    commands = [
        options.command(f"stepsize --loss {loss}{flag}", workers=options.workers != 2)
        for loss in _LOSSES
    ]
    return Part(commands=tuple(commands), checks=tuple(checks), figures={
        "losses": draw_step_sizes(result),
    })  # fmt: skip


def losses(options: Options) -> Part:
    """Scores, both losses, and what they are for W that knows nothing."""
    examples = options.examples(1_000, 500)
    result = initial_loss(options.dataset, examples=examples, seed=options.seed)
    small, classes = result.rows[2], len(options.manifest.classes)
    return Part(
        commands=(options.command(f"study loss --examples {examples}"),),
        checks=(
            near("svm", small.svm, classes - 1, 0.3),
            near("softmax", small.softmax, log(classes), 0.15),
        ),
        figures={"scales": draw_initial_loss(result)},
    )


def landscapes(options: Options) -> Part:
    """Lines and planes, one example and many, random and trained W."""
    few: dict[str, Any] = {"workers": options.workers, "seed": options.seed}
    many = options.examples(1_500, 500)
    dataset, epochs = options.dataset, options.of(10, 5)
    line = landscape(dataset, along=["random:0"], example=3, points=401, **few)
    lines = [line, landscape(dataset, along=["random:0"], examples=many, points=101, **few)]
    planes = [landscape(dataset, loss=loss, example=3, **few) for loss in ("svm", "softmax")] + [
        landscape(dataset, loss=loss, examples=many, **few) for loss in ("svm", "softmax")
    ]
    with tempfile.TemporaryDirectory(prefix="distsgd-study-") as folder:
        run = Path(folder, "run")
        train(dataset, epochs=epochs, workers=0, run_dir=run, seed=options.seed)
        measured = options.examples(10_000, 1_500)
        path = landscape(run=str(run), examples=measured, **few)
    lines_of = [f"--example 3 --points {len(line.a)}", f"--examples {many} --points 101"]
    planes_of = [
        f"--loss {loss} {images}"
        for images in ("--example 3", f"--examples {many}")
        for loss in ("svm", "softmax")
    ]
    return Part(
        commands=(
            *(options.command(f"landscape --along random:0 {flags}", workers=True)
              for flags in lines_of),
            *(options.command(f"landscape {flags}", workers=True) for flags in planes_of),
            options.command(f"train --epochs {epochs} --workers 0"),
            options.command(f"landscape --run latest --examples {measured}", data=False,
                            workers=True),
        ),
        checks=(
            count_at_most("bends", line.kinks, len(options.manifest.classes) - 1),
            at_least("path", path.path_share or 0.0, 0.9, percent=True),
        ),
        figures={
            "lines": draw_lines(lines), "one": draw_planes(planes[:2]),
            "many": draw_planes(planes[2:]), "path": draw_landscape(path),
        },
    )  # fmt: skip


def piecewise(options: Options) -> Part:
    """The SVM loss of three points, term by term; convexity, and where it ends."""
    result = hinges()
    examples, segments = options.examples(200, 100), options.of(50, 10)
    convex = check_convexity(
        options.dataset, examples=examples, segments=segments, seed=options.seed
    )
    return Part(
        commands=(
            options.command("study hinges", data=False, seed=False),
            options.command(f"study convexity --examples {examples} --segments {segments}"),
        ),
        checks=(
            at_most("terms", result.terms_difference, 1e-12),
            at_most("slopes", result.slopes_difference, 1e-6),
            at_most("convex", convex.worst_linear, 1e-12),
            at_least("not_convex", convex.least_two_layers, 0.01),
        ),
        figures={"hinges": draw_hinges(result), "segments": draw_convexity(convex)},
    )


def formulas(options: Options) -> Part:
    """The analytic gradients of both losses, formula by formula."""
    examples = options.of(20, 10)
    result = compare_formulas(options.dataset, examples=examples, seed=options.seed)
    return Part(
        commands=(
            options.command(f"study formulas --examples {examples}"),
            options.command("gradcheck"),
        ),
        checks=tuple(
            check
            for row in result.rows
            for check in (
                at_most(f"{row.loss}_fast", max(row.of_an_example, row.of_the_mean), 1e-12),
                at_most(f"{row.loss}_numerical", row.numerical, 1e-7),
            )
        ),
        figures={"first": draw_formulas(result)},
    )


def chain_rule(options: Options) -> Part:
    """The chain rule, worked through."""
    result = worked_examples()
    return Part(
        commands=(options.command("study chain-rule", data=False, seed=False),),
        checks=(
            at_most("differences", result.largest_difference, 1e-8),
            at_most("softmax", result.softmax_difference, 1e-12),
        ),
        figures={"graphs": draw_chain_rule(result)},
    )


def descents(options: Options) -> Part:
    """Gradient descent, minibatch gradient descent, stochastic gradient descent."""
    epochs = options.of(3, 1)
    result = compare_descents(options.dataset, epochs=epochs, seed=options.seed, say=options.say)
    full, minibatch, single = (one.points[-1].test_accuracy for one in result.descents)
    shown = " / ".join(f"{100 * value:.1f} %" for value in (full, minibatch, single))
    return Part(
        commands=(options.command(f"study descent --epochs {epochs}"),),
        checks=(
            holds("order", shown, full < minibatch, options.cifar10),
            near("minibatch", minibatch, 0.40, 0.03, percent=True, applies=options.cifar10),
        ),
        figures={"curves": draw_descents(result)},
    )


def why(options: Options) -> Part:
    """Copies, and images that are only alike."""
    originals, times = options.examples(1_000, 200), options.of(1_200, 500)
    copied = compare_copies(options.dataset, originals=originals, times=times, seed=options.seed)
    draws = options.of(100, 50)
    examples = 10_000 if options.quick and options.cifar10 else None
    noise = minibatch_noise(options.dataset, draws=draws, seed=options.seed, examples=examples)
    flag = f" --examples {examples}" if examples else ""
    cosines = [row.cosine for row in noise.rows]
    return Part(
        commands=(
            options.command(f"study copies --originals {originals} --times {times}"),
            options.command(f"study noise --draws {draws}{flag}"),
        ),
        checks=(
            *(at_most(f"copies_{row.loss}", row.relative_difference, 1e-12)
              for row in copied.rows),
            holds("cosine", f"{cosines[0]:.3f} → {cosines[-1]:.3f}", cosines == sorted(cosines)),
            near("variance", noise.variance_ratio, 1, 0.15),
        ),
        figures={"copies": draw_copies(copied), "noise": draw_minibatch_noise(noise)},
    )  # fmt: skip


def sizes(options: Options) -> Part:
    """Powers of two, and their neighbours."""
    chosen = (64, 100, 128, 200, 256) if options.quick else (16, 32, 64, 100, 128, 200, 256, 512)
    epochs = options.of(2, 1)
    result = compare_sizes(
        options.dataset, sizes=chosen, epochs=epochs, repeats=2, seed=options.seed,
        say=options.say,
    )  # fmt: skip
    by_size = {row.batch_size: row for row in result.rows}
    two_hundred, power = (by_size[size].scaled_test_accuracy for size in (200, 256))
    speeds = [row.examples_per_second for row in result.rows]
    listed = ",".join(str(size) for size in chosen)
    return Part(
        commands=(options.command(f"study minibatch-size --sizes {listed} --epochs {epochs}"),),
        checks=(
            near(
                "neighbours",
                abs(two_hundred - power),
                0,
                0.03,
                percent=True,
                applies=options.cifar10,
                shown=f"{100 * two_hundred:.1f} % / {100 * power:.1f} %",
            ),
            holds("speed", f"{min(speeds):,.0f} – {max(speeds):,.0f}", speeds[-1] > speeds[0]),
        ),
        figures={"sizes": draw_sizes(result)},
    )


def samplings(options: Options) -> Part:
    """In order, at random, shuffled."""
    epochs = options.of(3, 2)
    result = compare_samplings(options.dataset, epochs=epochs, seed=options.seed, say=options.say)
    by_name = {row.name: row for row in result.rows}
    ordered, shuffled = by_name["sequential, sorted by class"], by_name["shuffle"]
    return Part(
        commands=(options.command(f"study sampling --epochs {epochs}"),),
        checks=(
            near("random", by_name["random"].never_seen, exp(-1), 0.01, percent=True),
            near("shuffled", shuffled.never_seen, 0, 0, percent=True),
            holds(
                "sorted",
                f"{100 * ordered.test_accuracy[-1]:.1f} % / "
                f"{100 * shuffled.test_accuracy[-1]:.1f} %",
                ordered.test_accuracy[-1] < shuffled.test_accuracy[-1],
                applies=options.manifest.values == PIXELS,
            ),
        ),
        figures={"accuracy": draw_samplings(result)},
    )


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
