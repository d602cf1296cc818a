"""The lecture's experiments: for each, a function that computes it and one that draws it."""

from distsgd.lecture.experiments.compare_trainings import (
    compare_descents,
    compare_samplings,
    compare_sizes,
    draw_descents,
    draw_samplings,
    draw_sizes,
)
from distsgd.lecture.experiments.gradcheck import LIMIT, gradcheck
from distsgd.lecture.experiments.gradients import (
    compare_formulas,
    draw_formulas,
    draw_numeric_gradient,
    numeric_gradient,
)
from distsgd.lecture.experiments.initial_loss import draw_initial_loss, initial_loss
from distsgd.lecture.experiments.landscape import draw_landscape, draw_lines, draw_planes, landscape
from distsgd.lecture.experiments.minibatch_gradients import (
    compare_copies,
    draw_copies,
    draw_minibatch_noise,
    minibatch_noise,
)
from distsgd.lecture.experiments.piecewise import (
    check_convexity,
    draw_convexity,
    draw_hinges,
    hinges,
)
from distsgd.lecture.experiments.search import (
    draw_local_search,
    draw_random_search,
    local_search,
    random_search,
)
from distsgd.lecture.experiments.step_size import draw_step_sizes, step_sizes

__all__ = [
    "LIMIT",
    "check_convexity",
    "compare_copies",
    "compare_descents",
    "compare_formulas",
    "compare_samplings",
    "compare_sizes",
    "draw_convexity",
    "draw_copies",
    "draw_descents",
    "draw_formulas",
    "draw_hinges",
    "draw_initial_loss",
    "draw_landscape",
    "draw_lines",
    "draw_local_search",
    "draw_minibatch_noise",
    "draw_numeric_gradient",
    "draw_planes",
    "draw_random_search",
    "draw_samplings",
    "draw_sizes",
    "draw_step_sizes",
    "gradcheck",
    "hinges",
    "initial_loss",
    "landscape",
    "local_search",
    "minibatch_noise",
    "numeric_gradient",
    "random_search",
    "step_sizes",
]
