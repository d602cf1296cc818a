"""Chapters of the lecture: descent by minibatches, why they work, how large, how chosen."""

from __future__ import annotations

from math import exp

from distsgd.lecture.experiments.compare_descents import compare_descents, draw_descents
from distsgd.lecture.experiments.copies import compare_copies, draw_copies
from distsgd.lecture.experiments.minibatch_noise import draw_minibatch_noise, minibatch_noise
from distsgd.lecture.experiments.minibatch_size import compare_sizes, draw_sizes
from distsgd.lecture.experiments.sampling import compare_samplings, draw_samplings
from distsgd.lecture.page.findings import Options, Part, at_most, holds, near

__all__ = ["descents", "samplings", "sizes", "why"]


def descents(options: Options) -> Part:
    """Gradient descent, minibatch gradient descent, stochastic gradient descent."""
    epochs = options.of(3, 1)
    found = compare_descents(options.dataset, epochs=epochs, seed=options.seed, say=options.say)
    full, minibatch, single = (one.points[-1].test_accuracy for one in found.descents)
    shown = " / ".join(f"{100 * value:.1f} %" for value in (full, minibatch, single))
    return Part(
        commands=(options.command(f"study descent --epochs {epochs}"),),
        checks=(
            holds("order", shown, full < minibatch, options.cifar10),
            near("minibatch", minibatch, 0.40, 0.03, percent=True, applies=options.cifar10),
        ),
        figures={"curves": draw_descents(found)},
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
    found = compare_sizes(
        options.dataset, sizes=chosen, epochs=epochs, repeats=2, seed=options.seed,
        say=options.say,
    )  # fmt: skip
    by_size = {row.batch_size: row for row in found.rows}
    two_hundred, power = (by_size[size].scaled_test_accuracy for size in (200, 256))
    speeds = [row.examples_per_second for row in found.rows]
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
        figures={"sizes": draw_sizes(found)},
    )


def samplings(options: Options) -> Part:
    """In order, at random, shuffled."""
    epochs = options.of(3, 2)
    found = compare_samplings(options.dataset, epochs=epochs, seed=options.seed, say=options.say)
    by_name = {row.name: row for row in found.rows}
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
            ),
        ),
        figures={"accuracy": draw_samplings(found)},
    )
