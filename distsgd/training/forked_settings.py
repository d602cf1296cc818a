"""The settings of a fork: which may change at any update, which between epochs, which never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from distsgd.config.settings import SETTINGS, TrainConfig, refuse
from distsgd.config.sources import check_name, resumed_config
from distsgd.core.plan import Plan
from distsgd.core.server import Ledger
from distsgd.core.server.consistency import POLICIES
from distsgd.engine.job import Job
from distsgd.errors import UsageError
from distsgd.runs.parent import LIVE, RECORDED
from distsgd.spelling import spelling

__all__ = [
    "OF_PLAN", "OF_RUN", "changes_of", "check_ledger", "follows_plan", "forked_config",
    "order_of", "with_plan",
]  # fmt: skip

OF_RUN = ("dataset", "model", "dtype", "arithmetic", "validation", "pixel_scale", "init_scale")
"""Settings that make it another run: a fork cannot change them."""

OF_PLAN = ("batch_size", "slot_size", "seed", "sampling", "shuffle", "shuffle_window")
"""Settings that decide which examples are in which slots: a fork changes them between epochs."""

_OF_ORDER = (
    "workers",
    "consistency",
    *(name for p in POLICIES.values() for name in p.parameters()),
)
"""Settings that govern in which order updates are made."""

_FULL = SETTINGS["batch_size"].special


def changes_of(config: TrainConfig, given: Mapping[str, Any], examples: int) -> dict[str, Any]:
    """The settings that a fork is given, as far as they differ from those of its parent.

    Args:
        config: of the parent.
        given: by name; None for those that stay.
        examples: of an epoch.

    Raises:
        UsageError: one is unknown, cannot have this value, or cannot change.
    """
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        check_name(name, value, spelling())
        if name == "batch_size" and value == _FULL:
            value = examples
        if not (SETTINGS[name].special and value == SETTINGS[name].special):
            try:
                value = SETTINGS[name].parse(value)
            except ValueError:
                if isinstance(value, str | int | float | bool):
                    refuse(name, value)
        if value != getattr(config, name):
            changes[name] = value
    for name in OF_RUN:
        if name in changes:
            raise UsageError(
                f"a fork keeps its {name}: {spelling().given(name, changes[name])} makes another "
                "run of it",
                "Train a new one: `distsgd train`",
            )
    if config.validation and ({"seed", "shuffle"} & set(changes)):
        name = next(iter({"seed", "shuffle"} & set(changes)))
        raise UsageError(
            f"{spelling().given(name, changes[name])} would hold out other rows for validation",
            "Train a new run: `distsgd train`",
        )
    return changes


def forked_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The settings of a fork.

    Args:
        config: of its parent, at the update.
        changes: see `changes_of`.

    Raises:
        UsageError: they cannot be used together.
    """
    chosen = dict(changes)
    if "workers" in chosen:
        config = resumed_config(config, {"workers": chosen.pop("workers")})
    if "consistency" in chosen:  # the parameters of the other policy have no meaning now
        names = {name for policy in POLICIES.values() for name in policy.parameters()}
        chosen = dict.fromkeys(names) | chosen
    found = replace(config, **chosen)
    for name in changes:
        if spelling().is_own(name):
            found.check_belongs(name)
    return found


def order_of(config: TrainConfig, changes: Mapping[str, Any], asked: str | None) -> str:
    """Whether a fork follows the recorded order of its parent's updates, or makes its own.

    It follows it, unless asked otherwise, where a live continuation would have another order: the
    order does not follow from the plan, and nothing that governs it has changed.

    Args:
        config: of the parent, at the update.
        changes: see `changes_of`.
        asked: "recorded" or "live"; None for whichever suits.

    Raises:
        UsageError: the recorded order cannot be followed.
    """
    governs = [name for name in (*_OF_ORDER, *OF_PLAN) if name in changes]
    if asked not in (None, LIVE, RECORDED):
        raise UsageError(
            f"{spelling().given('order', asked)} is no order", f"Give {RECORDED} or {LIVE}"
        )
    if asked == RECORDED and governs:
        raise UsageError(
            f"{spelling().given('order', RECORDED)} does not go with "
            f"{spelling().given(governs[0], changes[governs[0]])}, which makes other updates",
            f"Give {spelling().given('order', LIVE)}",
        )
    if asked is not None:
        return asked
    return LIVE if governs or follows_plan(config) else RECORDED


def follows_plan(config: TrainConfig) -> bool:
    """Whether the order of updates, and so W, follows from the plan, for any workers."""
    feedback = config.compress != "none" and config.error_feedback
    return config.consistency in ("bsp", "local") and not feedback


def with_plan(
    ledger: Ledger, before: Plan, after: Job, changes: Mapping[str, Any], update: int
) -> Ledger:
    """What has been applied, for the plan of the fork.

    Args:
        ledger: at the update, of the parent.
        before: its plan.
        after: the job of the fork.
        changes: see `changes_of`.
        update: the number of the update.

    Raises:
        UsageError: the plan changes, and the update does not end an epoch; or the fork has fewer
            epochs than were begun.
    """
    found = Ledger.from_json(ledger.to_json())
    plan = after.plan
    if any(name in changes for name in OF_PLAN):
        name = next(name for name in OF_PLAN if name in changes)
        epoch, steps = ledger.whole // before.steps_per_epoch, before.steps_per_epoch
        if ledger.whole % steps == 0 and not ledger.is_whole:
            raise UsageError(
                f"{spelling().setting(name)} changes between epochs alone, and after update "
                f"{update} some of the next epoch had been applied already",
                "Fork at the end of another epoch, or of a run in bsp",
            )
        try:
            found = ledger.replanned(before, plan)
        except ValueError:
            ends = (spelling().given("at", f"epoch:{number}") for number in (epoch, epoch + 1))
            raise UsageError(
                f"{spelling().setting(name)} changes which examples are in which minibatch: it can "
                f"only change at the end of an epoch, and update {update} is within one",
                f"Give {' or '.join(ends)}",
            ) from None
    if found.next > plan.total_steps:
        raise UsageError(
            f"{spelling().given('epochs', plan.epochs)} is fewer than were begun by update "
            f"{update}",
            f"Give {-(-found.next // plan.steps_per_epoch)} or more, or fork earlier",
        )
    return found


def check_ledger(ledger: Ledger, job: Job, update: int) -> None:
    """See that the policy of a fork can go on from what its parent had applied.

    Raises:
        UsageError: it cannot: a minibatch was applied in part.
    """
    policy, plan = job.policy, job.plan
    in_part = not policy.requeues and ledger.in_part(plan)
    out_of_order = policy.local and not ledger.is_whole
    if in_part or out_of_order:
        raise UsageError(
            f"{spelling().given('consistency', policy.name)} cannot go on from update {update}: "
            "minibatches were applied in part or out of order there",
            "Fork at the end of an epoch: "
            + spelling().given("at", f"epoch:{max(1, ledger.whole // plan.steps_per_epoch)}"),
        )


def _check_names() -> None:
    known = {one.name for one in fields(TrainConfig)}
    assert {*OF_RUN, *OF_PLAN} <= known


_check_names()
