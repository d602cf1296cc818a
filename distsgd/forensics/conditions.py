"""Conditions on an update, such as ``loss > 3 or test_accuracy[cat] < 20%``: a small language.

    condition  = clause, then any number of: ("and" | "or") clause; "and" binds more strongly
    clause     = quantity (< | <= | > | >=) number, quantity (falls | rises) number, or diverged
    quantity   = one of `QUANTITIES`, or an accuracy of a class: test_accuracy[cat]
    number     = as in Python, or a percentage

A quantity falls by x when it is more than x below its largest value so far; it rises by x when it
is more than x above its least. A number that is not finite fulfils < and <= never, > and >= if
it is infinite or no number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from distsgd.errors import UsageError

__all__ = ["QUANTITIES", "Clause", "Condition", "parse_condition"]

JOURNAL, REPLAY, MEASURED = "journal", "replay", "measured"
"""Where a quantity is found: in the record of the update; by recomputing it; by measuring W after
it on a dataset."""

QUANTITIES: dict[str, str] = {
    "staleness": JOURNAL,
    "learning_rate": JOURNAL,
    "deferred": JOURNAL,
    "loss": REPLAY,
    "minibatch_accuracy": REPLAY,
    "gradient_norm": REPLAY,
    "weight_norm": REPLAY,
    "step_norm": REPLAY,
    "step_ratio": REPLAY,
    "accuracy": MEASURED,
    "test_accuracy": MEASURED,
    "test_loss": MEASURED,
    "train_accuracy": MEASURED,
    "train_loss": MEASURED,
    "validation_accuracy": MEASURED,
    "validation_loss": MEASURED,
}
"""Quantity -> where it is found. `accuracy` is that on the test set; `loss` is of the minibatch."""

_DIVERGED = ("diverged", "nan")
_TOKEN = re.compile(r"\s*([A-Za-z_]+(?:\[[^\]]*\])?|<=|>=|<|>|[-+]?[\d.][\w.+-]*\s*%?)")
_NAMED = re.compile(r"([a-z_]+)(?:\[([^\]]*)\])?")


@dataclass
class Clause:
    """One comparison.

    Attributes:
        quantity: its name; "diverged" for that.
        of_class: the class that an accuracy is of; "" for all.
        operator: "<", "<=", ">", ">=", "falls" or "rises"; "" for diverged.
        number: what it is compared with.
        extreme: the largest (or least) value so far.
    """

    quantity: str
    of_class: str = ""
    operator: str = ""
    number: float = 0.0
    extreme: float | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """By which its value is found: ``test_accuracy[cat]``."""
        return f"{self.quantity}[{self.of_class}]" if self.of_class else self.quantity

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it holds for an update; falls and rises remember the values before it."""
        if self.quantity == "diverged":
            return bool(values.get("diverged", False))
        value = values[self.key]
        if self.operator in ("falls", "rises"):
            sign = 1 if self.operator == "falls" else -1
            best = self.extreme
            if not math.isnan(value) and (best is None or sign * (value - best) > 0):
                self.extreme = value
            return best is not None and not sign * (best - value) <= self.number
        if self.operator in (">", ">="):
            return math.isnan(value) or (
                value > self.number if self.operator == ">" else value >= self.number
            )
        return value < self.number if self.operator == "<" else value <= self.number


@dataclass
class Condition:
    """Clauses: any of the groups, each of which holds if all of its clauses do.

    Attributes:
        text: as it was given.
        groups: the clauses.
    """

    text: str
    groups: list[list[Clause]]

    @property
    def clauses(self) -> list[Clause]:
        """All of them."""
        return [clause for group in self.groups for clause in group]

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it holds for an update, whose predecessors have been asked about in order.

        Args:
            values: of each clause by its key.
        """
        found = [[clause.holds(values) for clause in group] for group in self.groups]
        return any(map(all, found))

    def source(self) -> str:
        """The costliest place in which its quantities are found."""
        kinds = {QUANTITIES.get(clause.quantity, JOURNAL) for clause in self.clauses}
        return next((kind for kind in (MEASURED, REPLAY) if kind in kinds), JOURNAL)


def parse_condition(text: str) -> Condition:
    """A condition from its text.

    Raises:
        UsageError: it is none; names the word, and what can stand there.
    """
    words, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise _wrong(text[place:].split()[0], text)
        words.append(match[1].strip())
        place = match.end()
    groups: list[list[Clause]] = [[]]
    while True:
        groups[-1].append(_clause(words, text))
        if not words:
            return Condition(text.strip(), groups)
        joint = words.pop(0)
        if joint not in ("and", "or"):
            raise _wrong(joint, text, "and or or")
        if joint == "or":
            groups.append([])


def _clause(words: list[str], text: str) -> Clause:
    """Take a clause from the front of the words."""
    name = words.pop(0) if words else ""
    if name in _DIVERGED:
        return Clause("diverged")
    match = _NAMED.fullmatch(name)
    if match is None or match[1] not in QUANTITIES:
        raise _wrong(name, text, f"diverged, or one of {', '.join(QUANTITIES)}")
    quantity = "test_accuracy" if match[1] == "accuracy" else match[1]
    if match[2] is not None and not (
        quantity.endswith("_accuracy") and QUANTITIES[quantity] == MEASURED
    ):
        raise _wrong(name, text, "a class of test_, train_ or validation_accuracy")
    operator = words.pop(0) if words else ""
    if operator not in ("<", "<=", ">", ">=", "falls", "rises"):
        raise _wrong(operator, text, "<, <=, >, >=, falls or rises")
    number = words.pop(0) if words else ""
    try:
        percent = number.endswith("%")
        value = float(number.rstrip("% ")) / (100 if percent else 1)
    except ValueError:
        raise _wrong(number, text, "a number") from None
    return Clause(quantity, (match[2] or "").strip(), operator, value)


def _wrong(word: str, text: str, wanted: str = "") -> UsageError:
    where = f"'{word}'" if word else "its end"
    return UsageError(
        f"the condition '{text.strip()}' cannot be understood at {where}",
        f"Give {wanted}" if wanted else "Give a condition such as 'loss > 3'",
    )
