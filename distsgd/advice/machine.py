"""What is known of a machine: trials by name, their medians and spreads; kept in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from distsgd.data.atomic import replace_file
from distsgd.data.text_files import read_text
from distsgd.errors import UsageError

__all__ = ["Machine", "Trial", "load_machine", "save_machine", "trial_of"]

_FORM = 1


@dataclass(frozen=True)
class Trial:
    """What was measured in the rounds of one trial.

    Attributes:
        value: the median of the rounds, in seconds (of ``memory`` in bytes a second).
        spread: half of the range of the rounds, as a share of the median.
        details: further medians, such as the seconds that a server is busy for an update.
    """

    value: float
    spread: float = 0.0
    details: dict[str, float] = field(default_factory=dict)


def trial_of(values: Sequence[float], details: Sequence[dict[str, float]] = ()) -> Trial:
    """The trial of some rounds.

    Args:
        values: one a round, at least one.
        details: of the same rounds.
    """
    middle = median(values)
    names = set.intersection(*map(set, details)) if details else set()
    return Trial(
        middle,
        (max(values) - min(values)) / 2 / middle if middle else 0.0,
        {name: median([one[name] for one in details]) for name in sorted(names)},
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The measurements of a machine (or of each machine of a cluster) for one model and data.

    Attributes:
        cores: processors that this process may use.
        name: of the processor.
        kernel: of BLAS.
        model: that was trained, such as "linear".
        loss: its loss.
        slot_size: examples of a slot.
        examples: of the training set.
        parameters: of the model.
        vector_bytes: bytes of W.
        trials: by name, see `distsgd.advice.measuring.trials_for`.
        start_seconds: from the command to the first step, of a training with workers.
        start_alone_seconds: the same with ``workers=0``.
        latency: seconds of a message to another machine, one way; 0 if there is none.
        bandwidth: bytes a second between machines.
        rounds: of each trial.
        others: cores that other programs kept busy when it was measured.
        node_cores: processors of each node of a cluster of which this machine is the slowest;
            empty for a machine alone.
        dataset: name or path of what was trained on; empty if it is not known.
    """

    cores: int
    name: str = ""
    kernel: str = ""
    model: str
    loss: str = "softmax"
    slot_size: int = 64
    examples: int
    parameters: int
    vector_bytes: int
    trials: dict[str, Trial]
    start_seconds: float = 5.0
    start_alone_seconds: float = 0.7
    latency: float = 0.0
    bandwidth: float = math.inf
    rounds: int = 2
    others: float = 0.0
    node_cores: tuple[int, ...] = ()
    dataset: str = ""

    def cores_of(self, node: int) -> int:
        """Processors of a node; those of this machine for more nodes than were measured."""
        return self.node_cores[node] if node < len(self.node_cores) else self.cores

    def points(self, begin: str) -> list[tuple[float, float]]:
        """(examples of a minibatch, seconds) of the trials whose names begin so, in order."""
        found = [
            (float(name.removeprefix(begin)), trial.value)
            for name, trial in self.trials.items()
            if name.startswith(begin)
        ]
        return sorted(found)

    @property
    def spread(self) -> float:
        """How far rounds of one trial lie from their middle: the median of all, as a share."""
        return median([trial.spread for trial in self.trials.values()] or [0.0])


def save_machine(machine: Machine, path: Path) -> None:
    """Write the measurements as JSON, to be given again."""
    content = {"form": _FORM, **asdict(machine)}
    if math.isinf(machine.bandwidth):
        del content["bandwidth"]
    try:
        replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "Give another file"
        ) from None


def load_machine(path: Path) -> Machine:
    """Read the measurements of a machine.

    Raises:
        UsageError: the file cannot be read, or is not one of ours.
    """
    hint = "Give a file that distsgd advise --save-machine FILE has written"
    try:
        content: dict[str, Any] = json.loads(read_text(path))
        if content.pop("form") != _FORM:
            raise UsageError(f"{path} is of another version of distsgd", hint)
        content["trials"] = {
            name: Trial(float(one["value"]), float(one["spread"]), dict(one["details"]))
            for name, one in content["trials"].items()
        }
        content["node_cores"] = tuple(map(int, content.get("node_cores", ())))
        known = {one.name for one in fields(Machine)}
        machine = Machine(**{name: value for name, value in content.items() if name in known})
        if machine.cores < 1 or not all(0 < one.value < 1e12 for one in machine.trials.values()):
            raise ValueError
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError(f"{path} has no measurements of a machine", hint) from None
    return machine
