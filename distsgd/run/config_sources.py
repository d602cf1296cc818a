"""Settings from flags, --set and files, into one checked `TrainConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from distsgd.data.locations import find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.uri import is_uri, parse_uri
from distsgd.errors import UsageError
from distsgd.run.config import TrainConfig, setting
from distsgd.runtime.room import room_for_workers

__all__ = [
    "AUTO",
    "FULL",
    "config_elsewhere",
    "config_from",
    "read_config_file",
    "with_room",
    "with_whole_batch",
]

AUTO = "auto"
"""As many workers as there is room for."""

FULL = "full"
"""A minibatch of all examples: gradient descent."""

_LARGEST = 1 << 40


def config_from(
    settings: dict[str, Any], file: Path | None = None, assignments: list[str] | None = None
) -> TrainConfig:
    """The settings of a config file, over which go those of --set and of flags.

    Args:
        settings: settings by name; None means not given.
        file: a TOML file, or the config.json of a run.
        assignments: texts of the form "name=value".

    Raises:
        UsageError: a setting is unknown, given twice, or cannot be used.
    """
    return TrainConfig(**with_whole_batch(with_room(_given(settings, file, assignments))))


def config_elsewhere(
    settings: dict[str, Any], file: Path | None = None, assignments: list[str] | None = None
) -> TrainConfig:
    """The same for a training on another machine, whose room and data are not known here.

    Workers that depend on them have their default, a whole batch is as large as can be.

    Raises:
        UsageError: see `config_from`, or the address of the dataset cannot be used.
    """
    chosen = _given(settings, file, assignments)
    if chosen.get("workers") == AUTO:
        del chosen["workers"]
    if chosen.get("batch_size") == FULL:
        chosen["batch_size"] = _LARGEST
    config = TrainConfig(**chosen)
    if is_uri(config.dataset):
        parse_uri(config.dataset)
    elif "/" in config.dataset and not Path(config.dataset).is_absolute():
        raise UsageError(
            f"--dataset {config.dataset} is a path from this folder, which is not there",
            "Give a whole path of the cluster's machines, a name of `data list` there, or a URI",
        )
    return config


def _given(
    settings: dict[str, Any], file: Path | None, assignments: list[str] | None
) -> dict[str, Any]:
    """See `config_from`."""
    chosen = read_config_file(file) if file else {}
    given = {name: value for name, value in settings.items() if value is not None}
    for text in assignments or []:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise UsageError(f"--set {text} has no value", "Write it as --set name=value")
        _check_name(name, "--set")
        if name in given:
            raise UsageError(f"{name} is given twice: by {setting(name)} and by --set {text}")
        given[name] = value.strip()
    for name in given:
        _check_name(name, "train()")
    return {**chosen, **given}


def with_room(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a number of workers in place of "auto", which is then followed.

    Args:
        settings: by name; of an earlier run, or as a user has given them.
    """
    if settings.get("workers") != AUTO:
        return settings
    servers = settings.get("servers", TrainConfig.servers)
    room = room_for_workers(int(servers) if str(servers).isdecimal() else 1)
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


def _check_name(name: str, where: str) -> None:
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names)}"
        raise UsageError(f"{where}: there is no setting '{name}'", hint.rstrip("."))


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, or of the config.json of a run.

    Raises:
        UsageError: it cannot be read, or names an unknown setting.
    """
    try:
        content = path.read_text(encoding="utf-8")
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
    for name in settings:
        _check_name(name, f"--config {path}")
    return settings


def _settings_of_run(content: str) -> dict[str, Any]:
    """Raises `ValueError` for whatever is not a run's config.json."""
    match json.loads(content):
        case {"settings": dict(settings)}:
            return settings
    raise ValueError("it is not the config.json of a run, whose settings are in an object")
