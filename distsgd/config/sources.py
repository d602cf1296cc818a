"""From settings as they are given, in a call, a file or a command, to a `TrainConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsgd.config.data_facts import facts_of
from distsgd.config.recipes import recipe_for_data
from distsgd.config.settings import SETTINGS, TrainConfig, refuse
from distsgd.data.dataset import Dataset
from distsgd.data.find import dataset_name, find_dataset
from distsgd.data.manifest import read_manifest
from distsgd.data.remote.addresses import check_known, is_uri, parse_uri
from distsgd.data.text_files import parse_json, read_text
from distsgd.errors import DatasetError, UsageError
from distsgd.on_ray.capacity import worker_capacity
from distsgd.spelling import Spelling, spelling, written

__all__ = [
    "ALIASES",
    "check_name",
    "config_elsewhere",
    "config_from",
    "meant_by",
    "read_config_file",
    "resumed_config",
    "suited",
    "trained_rows",
]

_AUTO, _FULL = SETTINGS["workers"].special, SETTINGS["batch_size"].special

_LARGEST = 1 << 40

ALIASES = {alias: name for name, known in SETTINGS.items() for alias in known.aliases}
"""Names that other tools have for a setting -> its name here."""


def config_from(
    settings: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> TrainConfig:
    """The complete settings.

    ``workers="auto"`` becomes the number of workers that there is room for, ``batch_size="full"``
    the number of training examples. Settings that are not given and whose defaults depend on the
    data (`distsgd.config.recipes.recipe_for_data`) have those of the dataset, unless it is remote:
    then `suited` has them once it is open.

    Args:
        settings: by name; None means not given.
        origins: where the values come from that are not arguments of the call, such as the name
            of a file; see `Spelling`.

    Raises:
        UsageError: a setting is unknown or cannot be used.
    """
    chosen, how = _checked(settings, origins or {})
    with written(lambda: how):
        chosen = _with_whole_batch(_with_room(chosen))
        config = _config(chosen)
        if is_uri(config.dataset):  # a store is asked once, for training
            return config.with_given(frozenset(chosen))
        with suppress(DatasetError):  # which is raised when it is opened
            return suited(
                config.with_given(frozenset(chosen)), Dataset(find_dataset(config.dataset))
            )
        return config


def suited(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The settings with what was not given as it suits the dataset.

    Args:
        config: of `config_from`; any other is complete, and returned as it is.
        dataset: that it names.

    Raises:
        CorruptDataError: a shard of the training set is not what the manifest says.
    """
    if config.names_given is None:
        return config
    given = {name: getattr(config, name) for name in config.names_given}
    rows = trained_rows(dataset.manifest.rows("train"), config.validation)
    found: dict[str, Any] = {"batch_size": min(config.batch_size, rows)}
    if not set(given) >= _DECIDED_BY_DATA:
        facts = facts_of(dataset, rows)
        found |= recipe_for_data(config.model, config.loss, config.optimizer, facts, given)
    found = {name: value for name, value in found.items() if name not in given}
    return dataclasses.replace(config, **found).with_filled(found)


_DECIDED_BY_DATA = frozenset(
    {"learning_rate", "regularization", "epochs", "batch_size", "pixel_scale"}
)
"""Settings whose defaults depend on the data."""


def config_elsewhere(
    settings: Mapping[str, Any], origins: Mapping[str, str] | None = None
) -> TrainConfig:
    """The same for a training on another machine, whose room and data are not known here.

    Workers that depend on them have their default, a whole batch is as large as can be.

    Raises:
        UsageError: see `config_from`, or the address of the dataset cannot be used.
    """
    chosen, how = _checked(settings, origins or {})
    if chosen.get("workers") == _AUTO:
        del chosen["workers"]
    if chosen.get("batch_size") == _FULL:
        chosen["batch_size"] = _LARGEST
    with written(lambda: how):
        config = _config(chosen)
    if is_uri(config.dataset):
        parse_uri(config.dataset)
    elif "/" in config.dataset and not Path(config.dataset).is_absolute():
        raise UsageError(
            f"{config.given('dataset')} is a relative path, which is not on the cluster",
            "Give an absolute path on the cluster's machines, a name of `data list` there, or a "
            "URI",
        )
    return config


def resumed_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run with those that a resume changes.

    Args:
        config: as they were.
        changes: new values of resumable settings by name; None for the old ones.

    Raises:
        UsageError: a value cannot be used, or there are fewer epochs than before.
    """
    chosen = {name: value for name, value in changes.items() if value is not None}
    if "epochs" in chosen:
        try:
            epochs = SETTINGS["epochs"].parse(chosen["epochs"])
        except ValueError:
            refuse("epochs", chosen["epochs"])
        if epochs < config.epochs:
            raise UsageError(
                f"{spelling().given('epochs', epochs)} is fewer than the {config.epochs} of the "
                "run",
                f"Give {config.epochs} or more",
            )
    if chosen.get("workers") == _AUTO:
        chosen = _with_room({"servers": config.servers, **chosen})
    elif "workers" in chosen:
        chosen["elastic"] = False  # a number was given
    return dataclasses.replace(config, **chosen)


def _checked(
    settings: Mapping[str, Any], origins: Mapping[str, str]
) -> tuple[dict[str, Any], Spelling]:
    """The settings that were given, all of them known, and how they are written."""
    chosen = {name: value for name, value in settings.items() if value is not None}
    how = spelling().with_origins(origins)
    for name, value in chosen.items():
        check_name(name, value, how)
    dataset, origin = chosen.get("dataset"), origins.get("dataset", "")
    if dataset is not None and how.is_own("dataset"):
        chosen["dataset"] = dataset_name(dataset)
    elif origin.endswith(".json") and is_uri(str(dataset)):
        check_known(parse_uri(str(dataset)))  # the file of a run may come from anybody
    return chosen, how


def _config(chosen: dict[str, Any]) -> TrainConfig:
    """The settings; what was given in the call itself must have a meaning."""
    config = TrainConfig(**chosen)
    for name in chosen:
        if config.spelling.is_own(name):
            config.check_belongs(name)
    return config


def _with_room(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a number of workers in place of "auto", which is then followed."""
    if settings.get("workers") != _AUTO:
        return settings
    servers = settings.get("servers", TrainConfig.servers)
    room = worker_capacity(int(servers) if str(servers).isdecimal() else 1)
    return {"elastic": True, **settings, "workers": room}


def _with_whole_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the number of training examples in place of a batch_size of "full".

    Raises:
        DatasetError: there is no such dataset to count.
    """
    if settings.get("batch_size") != _FULL:
        return settings
    folder = find_dataset(str(settings.get("dataset", TrainConfig.dataset)))
    rows, share = read_manifest(folder).rows("train"), settings.get("validation", 0.0)
    with suppress(ValueError):  # refused with the other settings
        rows = trained_rows(rows, SETTINGS["validation"].parse(share))
    return {**settings, "batch_size": rows}


def trained_rows(rows: int, validation: float) -> int:
    """How many of the training rows are left for minibatches, or a few less.

    Args:
        rows: of the training set.
        validation: the setting.
    """
    return max(1, rows - round(validation * rows))


def check_name(name: str, value: Any, how: Spelling) -> None:
    """Check that a setting exists.

    Args:
        name: as the user has written it.
        value: likewise.
        how: with the origin of this name; the hint is written as the name was.

    Raises:
        UsageError: it does not; names the setting that was meant, if it can have the value.
    """
    if name in SETTINGS:
        return
    near = meant_by(name, value)
    if near is None and name.lower() in ALIASES:
        hint = f"It is called {ALIASES[name.lower()]} here"
    elif near is None:
        hint = f"There are: {', '.join(SETTINGS)}"
    else:
        alike = how.with_origins({near: how.origins[name]} if name in how.origins else {})
        hint = f"Did you mean {alike.given(near, value)}?"
    raise UsageError(f"{how.given(name, value)}: there is no setting '{name}'", hint)


def meant_by(name: str, value: Any = None) -> str | None:
    """The setting that is probably meant by an unknown name; None if there is none.

    Args:
        name: as the user has written it.
        value: that it is to have; a setting that cannot have it is not meant. None for any.
    """
    plain = name.lower().replace("-", "_")
    near = [plain] if plain in SETTINGS else difflib.get_close_matches(plain, SETTINGS, 3, 0.6)
    candidates = [ALIASES[plain]] if plain in ALIASES else near
    return next((one for one in candidates if value is None or _can_be(one, value)), None)


def _can_be(name: str, value: Any) -> bool:
    """Whether a setting can have a value, whatever the others are."""
    try:
        SETTINGS[name].parse(value)
    except ValueError:
        return bool(value) and bool(value == SETTINGS[name].special)
    return True


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, or of the config.json of a run.

    Raises:
        UsageError: it cannot be read.
    """
    config = spelling().setting("config")
    try:
        content = read_text(path)
        parse = _settings_of_run if path.suffix == ".json" else tomllib.loads
        return parse(content)
    except FileNotFoundError:
        raise UsageError(f"{config}: there is no file {path}", "Check the path") from None
    except OSError as error:
        raise UsageError(f"{config}: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{config}: {path} is not valid: {error}", "Write lines such as: epochs = 20"
        ) from None


def _settings_of_run(content: str) -> dict[str, Any]:
    """Raises `ValueError` for anything but a run's config.json."""
    match parse_json(content.encode()):
        case {"settings": dict(settings)}:
            return settings
    raise ValueError("it is not the config.json of a run, whose settings are in an object")
