"""The likely cause of a difference between two runs, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distsgd.config.jobs import first_weights
from distsgd.config.settings import TrainConfig
from distsgd.core.model import EXACT
from distsgd.errors import DistsgdError
from distsgd.forensics.one_update import Side, UpdateDifference
from distsgd.forensics.recorded import RecordedRun
from distsgd.forensics.surroundings import DataDifference, Pair, Setting
from distsgd.forensics.update_parts import TakenApart, rows_of

__all__ = ["acting_settings", "cause_of_fault", "cause_of_split", "initial_settings"]


def initial_settings(run: RecordedRun, settings: Sequence[Setting]) -> list[str]:
    """The differing settings that change the W that a run starts from."""
    if run.opened is None:
        return [one.name for one in settings if one.name in ("seed", "init_scale", "model", "loss")]
    start = first_weights(run.settings, run.opened.job(run.settings))
    found = []
    for setting in settings:
        try:
            config = _with(run.settings, setting)
            other = first_weights(config, run.opened.job(config))
        except (DistsgdError, ValueError, TypeError):
            continue
        if other.tobytes() != start.tobytes():
            found.append(setting.name)
    return found


def acting_settings(side: Side, settings: Sequence[Setting]) -> list[str]:
    """The differing settings that change an update, each put into the first run alone.

    Args:
        side: the update of the first run.
        settings: those that differ.
    """
    parts, found = side.parts, []
    for setting in settings:
        if setting.matters and _changes(side, parts, setting):
            found.append(setting.name)
    return found


def _changes(side: Side, parts: TakenApart, setting: Setting) -> bool:
    """Whether an update has another result with one setting of the other run."""
    opened = side.run.opened
    assert opened is not None
    if setting.name in ("batch_size", "slot_size", "sampling", "seed", "shuffle", "validation"):
        alike = False
        try:
            job = opened.job(_with(side.run.settings, setting))
            rows = [rows_of(opened, job, leaf.lease).examples for leaf in parts.leaves]
            mine = [own.examples for own in parts.rows]
            alike = all(map(np.array_equal, rows, mine)) and (
                job.plan.slots(parts.record.step) == len(mine)
            )
        except (DistsgdError, ValueError, IndexError):
            return True
        return not alike
    if setting.name in ("consistency", "staleness", "backup", "local_steps", "workers", "elastic"):
        return False  # they act through the records, which are compared
    if setting.name in ("compress", "error_feedback"):
        return True
    try:
        config = _with(side.run.settings, setting)
        job = replace(opened.job(config), cache="shards", plan=parts.job.plan)
        own = parts.with_job(opened, parts.job)  # encoded gradients are left out on both sides
        return parts.with_job(opened, job).tobytes() != own.tobytes()
    except (DistsgdError, ValueError, IndexError, KeyError):
        return True


def _with(config: TrainConfig, setting: Setting) -> TrainConfig:
    changes: dict[str, Any] = {setting.name: setting.second}
    return replace(config, **changes)


def cause_of_fault(side: Side, name: str, *, alone: bool) -> str:
    """One sentence about a run that departs from its own replay."""
    where = "" if alone else f"{name} departs from its own replay: "
    if side.faults:
        kinds = [fault.what for fault in side.faults]
        every = "; or ".join(kinds[:4]) + "; or others" * (len(kinds) > 4)
        if len(kinds) > 1:
            every = f"one of {len(kinds)} single bits, which cannot be told apart: {every}"
        return f"{where}a fault, {every}"
    if not side.parts.holds:
        return f"{where}a fault; encoded gradients cannot be searched for a single bit"
    slots = len(side.parts.leaves)
    return (
        f"{where}a fault that is no single bit of W, of a gradient, a pixel or a label as far as "
        f"they could be searched: any of the {slots} slots of the update, and their images, are "
        "suspects"
    )


def cause_of_split(
    difference: UpdateDifference,
    sides: tuple[Side, Side],
    settings: Sequence[Setting],
    versions: Sequence[Pair],
    data: DataDifference | None,
) -> str:
    """One sentence about two runs that both agree with their journals, or cannot be checked."""
    update = difference.update
    acting = acting_settings(sides[0], settings)
    names = {pair.name for pair in versions}
    kernel = names & {"blas", "products"}
    exact = all(side.run.settings.arithmetic == EXACT for side in sides)
    policy = sides[0].run.settings.consistency
    if acting:
        return f"settings: {_listed(acting)} acts first, in update {update}"
    if difference.records:
        what = (
            "other pieces were added" if difference.pieces
            else "pieces read other versions of W" if difference.reads
            else "the same pieces were added in another order"
        )  # fmt: skip
        other = [one.name for one in settings if one.matters]
        why = f"policy order ({policy})" if not other else f"settings ({_listed(other)})"
        return f"{why}: in update {update} {what}"
    if difference.labels or difference.pixels:
        kind = "labels" if difference.labels else "pixels"
        numbers = difference.labels or difference.pixels
        return f"data: the {kind} of training example {_listed(numbers)} differ in update {update}"
    if difference.preprocessing and data is not None:
        return _mean(update, data)
    if kernel and not exact:
        pair = next(pair for pair in versions if pair.name in kernel)
        return f"another kernel: {pair.first} and {pair.second} round differently"
    if names - {"created"}:
        return f"other versions: {_listed(sorted(names))} differ, and nothing else does"
    if any(side.other_kernel for side in sides):
        return "another kernel than the one here computed them, so they cannot be checked here"
    return "unknown: records, examples and settings are the same"


def _mean(update: int, data: DataDifference) -> str:
    used = ""
    if data.changed:
        row = data.changed[0]
        first = row.used[0]
        used = (
            f"; training example {row.example} itself is first used in update {first}"
            if first is not None else f"; training example {row.example} is never used"
        )  # fmt: skip
    return (
        f"data: the mean image, which every pixel is centred on, differs, and acts in update "
        f"{update}{used}"
    )


def _listed(names: Sequence[Any]) -> str:
    words = [str(name) for name in names[:5]]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(words) + more
