"""Settings from flags, --set and files, into one checked `TrainConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.config.settings import TrainConfig
from distsgd.data.find import dataset_name, find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.addresses import check_known, is_uri, parse_uri
from distsgd.data.text_files import parse_json, read_text
from distsgd.errors import DatasetError, UsageError
from distsgd.on_ray.capacity import worker_capacity
from distsgd.spelling import SET, Spelling, spelling, written

__all__ = [
    "ALIASES",
    "AUTO",
    "FULL",
    "can_be",
    "config_elsewhere",
    "config_from",
    "meant_by",
    "read_config_file",
    "with_room",
    "with_whole_batch",
]

AUTO = "auto"
"""As many workers as there is room for."""

FULL = "full"
"""A minibatch of all examples: gradient descent."""

_LARGEST = 1 << 40

ALIASES = {
    "alpha": "learning_rate",
    "arch": "model",
    "architecture": "model",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "beta": "momentum",
    "beta1": "momentum",
    "bs": "batch_size",
    "compression": "compress",
    "criterion": "loss",
    "data": "dataset",
    "decay": "regularization",
    "epoch": "epochs",
    "eta": "learning_rate",
    "gamma": "step_factor",
    "h": "local_steps",
    "hidden": "model",
    "l2": "regularization",
    "l2_reg": "regularization",
    "lambda": "regularization",
    "lr": "learning_rate",
    "lr_decay": "step_factor",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "max_epochs": "epochs",
    "max_staleness": "staleness",
    "minibatch": "batch_size",
    "minibatch_size": "batch_size",
    "n_epochs": "epochs",
    "n_jobs": "workers",
    "n_workers": "workers",
    "network": "model",
    "nproc": "workers",
    "num_epochs": "epochs",
    "num_servers": "servers",
    "num_workers": "workers",
    "objective": "loss",
    "opt": "optimizer",
    "optim": "optimizer",
    "policy": "consistency",
    "precision": "dtype",
    "ps": "servers",
    "random_seed": "seed",
    "random_state": "seed",
    "reg": "regularization",
    "sampler": "sampling",
    "scheduler": "schedule",
    "step_size": "learning_rate",
    "stepsize": "learning_rate",
    "transport": "channel",
    "warmup": "warmup_epochs",
    "wd": "regularization",
    "weight_decay": "regularization",
}
"""Names that other tools have for a setting -> its name here."""


def config_from(
    settings: dict[str, Any],
    file: Path | None = None,
    assignments: list[str] | None = None,
    origins: Mapping[str, str] | None = None,
) -> TrainConfig:
    """The settings of a config file, over which go those of --set and of flags.

    A minibatch whose size nobody gives has all examples of a dataset that has fewer than the
    default; see `TrainConfig.batch_size`.

    Args:
        settings: settings by name; None means not given.
        file: a TOML file, or the config.json of a run.
        assignments: texts of the form "name=value".
        origins: where those of ``settings`` come from that are no flags or arguments; see
            `Spelling`.

    Raises:
        UsageError: a setting is unknown, given twice, or cannot be used.
    """
    chosen, found = _given(settings, file, assignments, origins or {})
    with written(lambda: found):
        chosen = with_whole_batch(with_room(chosen))
        config = TrainConfig(**chosen)
        if "batch_size" in chosen or is_uri(config.dataset):  # a store is asked once, for training
            return config
        with suppress(DatasetError):  # which is said when it is opened
            rows = read_manifest(find_dataset(config.dataset)).rows("train")
            return dataclasses.replace(config, batch_size=min(config.batch_size, rows))
        return config


def config_elsewhere(
    settings: dict[str, Any], file: Path | None = None, assignments: list[str] | None = None
) -> TrainConfig:
    """The same for a training on another machine, whose room and data are not known here.

    Workers that depend on them have their default, a whole batch is as large as can be.

    Raises:
        UsageError: see `config_from`, or the address of the dataset cannot be used.
    """
    chosen, found = _given(settings, file, assignments, {})
    if chosen.get("workers") == AUTO:
        del chosen["workers"]
    if chosen.get("batch_size") == FULL:
        chosen["batch_size"] = _LARGEST
    with written(lambda: found):
        config = TrainConfig(**chosen)
    if is_uri(config.dataset):
        parse_uri(config.dataset)
    elif "/" in config.dataset and not Path(config.dataset).is_absolute():
        raise UsageError(
            f"{config.given('dataset')} is a path from this folder, which is not there",
            "Give a whole path of the cluster's machines, a name of `data list` there, or a URI",
        )
    return config


def _given(
    settings: dict[str, Any],
    file: Path | None,
    assignments: list[str] | None,
    origins: Mapping[str, str],
) -> tuple[dict[str, Any], Spelling]:
    """The settings by name, and how they are written; see `config_from`."""
    how = spelling()
    chosen = read_config_file(file) if file else {}
    found = dict.fromkeys(chosen, str(file))
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        found[name] = origins.get(name) or how.usual(name)
        _check_name(name, value, how.with_origins({name: found[name]}))
    if "dataset" in given:
        given["dataset"] = dataset_name(given["dataset"])
    for text in assignments or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f"--set {text} has no value", "Write it as --set name=value")
        _check_name(name, value, how.with_origins({name: SET}))
        if name in given:
            raise UsageError(
                f"{name} is given twice: by {how.with_origins(found).setting(name)} and by "
                f"--set {text}",
                "Give it once",
            )
        given[name], found[name] = value, SET
    address = {**chosen, **given}.get("dataset")
    if (
        file
        and file.suffix == ".json"
        and found.get("dataset") == str(file)
        and is_uri(str(address))
    ):
        check_known(parse_uri(str(address)))  # a run's own file may come from anybody
    return {**chosen, **given}, how.with_origins(found)


def with_room(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a number of workers in place of "auto", which is then followed.

    Args:
        settings: by name; of an earlier run, or as a user has given them.
    """
    if settings.get("workers") != AUTO:
        return settings
    servers = settings.get("servers", TrainConfig.servers)
    room = worker_capacity(int(servers) if str(servers).isdecimal() else 1)
    return {"elastic": True, **settings, "workers": room}


def with_whole_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the number of training examples in place of a batch_size of "full".

    Args:
        settings: by name, as a user has given them.

    Raises:
        DatasetError: there is no such dataset to count.
    """
    if settings.get("batch_size") != FULL:
        return settings
    folder = find_dataset(str(settings.get("dataset", TrainConfig.dataset)))
    return {**settings, "batch_size": read_manifest(folder).rows("train")}


def _check_name(name: str, value: Any, how: Spelling) -> None:
    """See that there is such a setting.

    Args:
        name: as the user has written it.
        value: likewise.
        how: with the origin of this name, in which a hint is written too.

    Raises:
        UsageError: there is none; names the one that was meant, if the value can be its.
    """
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    if name in names:
        return
    near = meant_by(name, value)
    if near is None and name.lower() in ALIASES:
        hint = f"It is called {ALIASES[name.lower()]} here"
    elif near is None:
        hint = f"There are: {', '.join(names)}"
    else:
        hint = f"Did you mean {how.with_origins({near: how.origin(name)}).given(near, value)}?"
    raise UsageError(f"{how.given(name, value)}: there is no setting '{name}'", hint)


def meant_by(name: str, value: Any = None) -> str | None:
    """The setting that is meant by a name that there is not.

    Args:
        name: as the user has written it.
        value: that it is to have; one whose value it cannot be is not meant. None for any.
    """
    plain = name.lower().replace("-", "_")
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    near = [plain] if plain in names else difflib.get_close_matches(plain, names, 3, 0.6)
    candidates = [ALIASES[plain]] if plain in ALIASES else near
    return next((one for one in candidates if value is None or can_be(one, value)), None)


def can_be(name: str, value: Any) -> bool:
    """Whether a setting can have a value, with the others as they are by default."""
    if (name, value) in (("workers", AUTO), ("batch_size", FULL)):
        return True
    needed = {"staleness": "ssp", "backup": "backup", "local_steps": "local"}
    others: dict[str, Any] = {"consistency": needed[name]} if name in needed else {}
    try:
        TrainConfig(**{"dataset": "s3://bucket/any", **others, name: value})
    except UsageError:
        return False
    return True


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, or of the config.json of a run.

    Raises:
        UsageError: it cannot be read, or names an unknown setting.
    """
    try:
        content = read_text(path)
        parse = _settings_of_run if path.suffix == ".json" else tomllib.loads
        settings = parse(content)
    except FileNotFoundError:
        raise UsageError(f"--config: there is no file {path}", "Check the path") from None
    except OSError as error:
        raise UsageError(f"--config: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--config: {path} is not valid: {error}", "Write lines such as: epochs = 20"
        ) from None
    for name, value in settings.items():
        _check_name(name, value, spelling().with_origins({name: str(path)}))
    return settings


def _settings_of_run(content: str) -> dict[str, Any]:
    """Raises `ValueError` for whatever is not a run's config.json."""
    match parse_json(content.encode()):
        case {"settings": dict(settings)}:
            return settings
    raise ValueError("it is not the config.json of a run, whose settings are in an object")
