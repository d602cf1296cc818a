"""Models: preprocessing, scores, losses, slot gradients, and checks of the gradients.

Reading order: `losses` (the two losses), `slot_gradient` (gradients of a slot through one layer
or two), `architecture` (what all models share), `models` (the models, by name), `features` (from
pixels to features), `reference` (the same formulas, written down plainly in float64) and
`gradient_check` (against numerical differences). Exact arithmetic: `grids` (what makes it exact),
`exact_losses` and `exact_gradient`.
"""

from distsgd.core.model.architecture import (
    Architecture,
    Layer,
    initial_weights,
    measure,
    measure_all,
)
from distsgd.core.model.features import Preprocessing
from distsgd.core.model.grids import Grids
from distsgd.core.model.losses import LOSSES, penalty, softmax_probabilities
from distsgd.core.model.mistakes import Mistake, SurestMistakes
from distsgd.core.model.models import (
    ARITHMETICS,
    EXACT,
    LINEAR,
    MOST_HIDDEN,
    hidden_units,
    make_architecture,
)
from distsgd.core.model.slot_gradient import (
    SMALL_PRODUCTS,
    WHOLE_PRODUCTS,
    Kernel,
    KernelSettings,
    RowWriter,
    SlotLoss,
    fitting,
)
from distsgd.core.model.stacked_gradient import StackedKernel, StackedRows
from distsgd.core.model.stacked_linear import stacked_kernel

__all__ = [
    "ARITHMETICS",
    "EXACT",
    "LINEAR",
    "LOSSES",
    "MOST_HIDDEN",
    "SMALL_PRODUCTS",
    "WHOLE_PRODUCTS",
    "Architecture",
    "Grids",
    "Kernel",
    "KernelSettings",
    "Layer",
    "Mistake",
    "Preprocessing",
    "RowWriter",
    "SlotLoss",
    "StackedKernel",
    "StackedRows",
    "SurestMistakes",
    "fitting",
    "hidden_units",
    "initial_weights",
    "make_architecture",
    "measure",
    "measure_all",
    "penalty",
    "softmax_probabilities",
    "stacked_kernel",
]
