"""Chapters of the lecture: random search, local search, the numerical gradient, the step size."""

from __future__ import annotations

from distsgd.lecture.experiments.gradient_numeric import draw_numeric_gradient, numeric_gradient
from distsgd.lecture.experiments.local_search import draw_local_search, local_search
from distsgd.lecture.experiments.random_search import draw_random_search, random_search
from distsgd.lecture.experiments.step_size import draw_step_sizes, step_sizes
from distsgd.lecture.page.findings import Check, Options, Part, at_most, exactly, holds, near

__all__ = ["local", "numerical", "random", "steps"]

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
    found = random_search(
        options.dataset, attempts=_TRIES, examples=examples, workers=options.workers,
        seed=options.seed,
    )  # fmt: skip
    return Part(
        commands=(
            options.command(f"search random --attempts {_TRIES}{flag}", workers=True),
        ),
        checks=(
            exactly("attempts", len(found.losses), _TRIES),
            near("accuracy", found.test_accuracy, 0.155, 0.03, percent=True,
                 applies=options.cifar10),
        ),
        figures={"losses": draw_random_search(found)},
    )  # fmt: skip


def local(options: Options) -> Part:
    """Strategy 2."""
    examples, flag = _examples(options, None, 1_000)
    found = local_search(
        options.dataset, tries=_TRIES, examples=examples, workers=options.workers,
        seed=options.seed,
    )  # fmt: skip
    falls = all(b <= a for a, b in zip(found.losses, found.losses[1:], strict=False))
    return Part(
        commands=(options.command(f"search local --tries {_TRIES}{flag}", workers=True),),
        checks=(
            near("accuracy", found.test_accuracy, 0.214, 0.02, percent=True,
                 applies=options.cifar10),
            holds("falls", f"{found.losses[0]:.4f} → {found.losses[-1]:.4f}", falls),
        ),
        figures={"losses": draw_local_search(found)},
    )  # fmt: skip


def numerical(options: Options) -> Part:
    """Strategy 3 without calculus, for both losses."""
    every = len(options.manifest.classes) * (options.manifest.features + 1)
    examples, entries = options.examples(500, 100), min(2_000, every) if options.quick else None
    flag = f" --examples {examples}" + (f" --parameters {entries}" if entries else "")
    checks: list[Check] = []
    commands, figures = [], {}
    for loss in _LOSSES:
        found = numeric_gradient(
            options.dataset, loss=loss, examples=examples, parameters=entries,
            workers=options.workers, seed=options.seed,
        )  # fmt: skip
        one_sided, central = found.rows
        if loss == _LOSSES[0]:
            checks.append(exactly("evaluations", one_sided.evaluations, one_sided.parameters + 1))
        checks.append(at_most(f"{loss}_one_sided", one_sided.relative_error, 1e-4))
        checks.append(at_most(f"{loss}_central", central.relative_error, 1e-7))
        slower = one_sided.seconds / found.analytic_seconds
        checks.append(holds(f"{loss}_slower", f"{slower:,.0f} ×", slower > 10))
        commands.append(options.command(f"gradient numeric --loss {loss}{flag}", workers=True))
        figures[loss] = draw_numeric_gradient(found)
    return Part(commands=tuple(commands), checks=tuple(checks), figures=figures)


def steps(options: Options) -> Part:
    """The effect of the step size."""
    examples, flag = _examples(options, None, 5_000)
    if not options.cifar10:
        examples, flag = None, ""
    found = [
        step_sizes(options.dataset, loss=loss, examples=examples, workers=options.workers,
                   seed=options.seed)
        for loss in _LOSSES
    ]  # fmt: skip
    checks: list[Check] = []
    for one in found:
        best = one.steps.index(one.best_step)
        inner = 0 < best < len(one.steps) - 1
        checks.append(holds(f"{one.loss}_best", f"{one.best_step:g}", inner))
        worst = max(one.last_ratios, key=lambda ratio: abs(ratio - 10))
        # Of a few columns, the loss does not grow with the step as soon as that.
        images = len(options.manifest.shape) == 3
        checks.append(near(f"{one.loss}_ratio", worst, 10, 1, applies=images))
    commands = [
        options.command(f"stepsize --loss {loss}{flag}", workers=options.workers != 2)
        for loss in _LOSSES
    ]
    return Part(commands=tuple(commands), checks=tuple(checks), figures={
        "losses": draw_step_sizes(found),
    })  # fmt: skip
