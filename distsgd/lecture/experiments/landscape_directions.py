"""Where a landscape is looked at: its W, the directions along which it is cut, an optimiser's path.

Source: CS231n notes, "Optimization", visualising the loss function; for the directions of a path,
Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsgd.core.arrays import Floats
from distsgd.core.model import LINEAR
from distsgd.errors import RunError, UsageError
from distsgd.runs import (
    Model,
    RunFolder,
    checkpoint_path,
    checkpoint_versions,
    find_run,
    read_if_kept,
)
from distsgd.spelling import spelled

__all__ = ["PRINCIPAL", "Path", "directions", "in_plane", "path_of", "principal_directions"]

PRINCIPAL = ("pca1", "pca2")
_PARALLEL = 1e-6
_MOST_POINTS = 200
"""Checkpoints of a path that are read: each is held in memory."""


@dataclass(frozen=True, eq=False)
class Path:
    """The checkpoints of a run.

    Attributes:
        versions: updates applied to each.
        weights: shape (checkpoints, classes, features + 1), float64, in order.
        model: the last of them; None if only W is known.
    """

    versions: tuple[int, ...]
    weights: Floats
    model: Model | None = None


def path_of(run: str) -> tuple[RunFolder, Path]:
    """A run and its checkpoints.

    Raises:
        RunError: there is no such run, it is of another model, or a checkpoint is damaged.
    """
    folder = find_run(run)
    model = folder.settings().model
    if model != LINEAR:
        raise RunError(
            f"{folder.path} is a run of {model}; landscapes are of a linear score function",
            "Give a run of a linear model",
        )
    versions = _some(checkpoint_versions(folder.checkpoints))
    kept = (read_if_kept(checkpoint_path(folder.checkpoints, v), LINEAR) for v in versions)
    result = [model for model in kept if model is not None]
    if not result:
        raise RunError(f"{folder.path} has no checkpoint", "Train for an epoch, at least")
    weights = np.stack([model.weights for model in result]).astype(float)
    return folder, Path(tuple(model.version for model in result), weights, result[-1])


def _some(versions: list[int]) -> list[int]:
    """All of them, or as many as are worth drawing, evenly spaced, with the first and the last."""
    if len(versions) <= _MOST_POINTS:
        return versions
    at = np.linspace(0, len(versions) - 1, _MOST_POINTS).round().astype(int)
    return [versions[place] for place in at]


def principal_directions(path: Path) -> tuple[Floats, tuple[float, ...]]:
    """The two directions that a path goes along most, by PCA of W_k - W_last.

    Returns:
        the directions, shape (2, classes, features + 1), of length 1 and at right angles, each
        with its largest entry positive; and the share of the path's squares along each.

    Raises:
        RunError: there are fewer than three checkpoints.
    """
    if len(path.versions) < 3:
        raise RunError(
            f"a plane through the path of a run needs 3 checkpoints; it has {len(path.versions)}",
            f"Train it for more epochs, or give directions with {spelled('along')}",
        )
    steps = (path.weights - path.weights[-1]).reshape(len(path.versions), -1)
    _, spread, rows = np.linalg.svd(steps, full_matrices=False)
    for row in rows[:2]:
        row *= np.sign(row[np.argmax(np.abs(row))]) or 1.0
    shares = spread**2 / (spread**2).sum()
    return rows[:2].reshape(2, *path.weights.shape[1:]), tuple(shares[:2].tolist())


def directions(
    names: Sequence[str], weights: Floats, gradient: Floats, path: Path | None
) -> Floats:
    """Directions by their names, of length 1.

    Args:
        names: one for a line, two for a plane: "random:SEED"; "weights", along W itself;
            "gradient", of the loss at W; "run:RUN", towards the last W of that run; "pca1" and
            "pca2", see `principal_directions`.
        weights: W, shape (classes, features + 1).
        gradient: of the loss, of the same shape; anything, if no direction is called that.
        path: of the run that is looked at, if there is one.

    Returns:
        shape (len(names), classes, features + 1), float64.

    Raises:
        UsageError: there is no such direction, one is zero, or two are parallel.
        RunError: see `path_of`.
    """
    if not 1 <= len(names) <= 2:
        raise UsageError(
            f"{spelled('along')} was given {len(names)} times",
            "Give it once for a line, twice for a plane",
        )
    result = np.stack([_direction(name, weights, gradient, path) for name in names])
    lengths = np.sqrt((result**2).sum(axis=(1, 2)))
    for name, length in zip(names, lengths, strict=True):
        if not length > 0:
            raise UsageError(f"{spelled('along')} {name} is zero here", "Give another direction")
    result /= lengths[:, None, None]
    if len(names) == 2 and 1 - abs(float((result[0] * result[1]).sum())) < _PARALLEL:
        raise UsageError(
            f"{spelled('along')}: {names[0]} and {names[1]} are parallel and span no plane",
            "Give two that differ, as random:0 and random:1, or one alone for a line",
        )
    return result


def _direction(name: str, weights: Floats, gradient: Floats, path: Path | None) -> Floats:
    kind, _, rest = name.partition(":")
    if kind == "random" and rest.isdecimal():
        return np.random.default_rng(int(rest)).standard_normal(weights.shape)
    if name == "weights":
        return weights
    if name == "gradient":
        return gradient
    if kind == "run" and rest:
        return _towards(name, path_of(rest)[1], weights, path)
    if name in PRINCIPAL and path is not None:
        one: Floats = principal_directions(path)[0][PRINCIPAL.index(name)]
        return one
    hint = f"Give random:SEED, weights, gradient, run:RUN; with {spelled('run')} also pca1, pca2"
    raise UsageError(f"{spelled('along')} cannot be {name}", hint)


def _towards(name: str, other: Path, weights: Floats, path: Path | None) -> Floats:
    """From W to the last W of another run, if both take the same examples."""
    end = other.weights[-1]
    if end.shape != weights.shape:
        raise UsageError(
            f"{spelled('along')} {name} has W of another shape", "Give a run on this dataset"
        )
    ours, theirs = path.model if path else None, other.model
    if ours and theirs and (ours.columns, ours.classes) != (theirs.columns, theirs.classes):
        raise UsageError(
            f"{spelled('along')} {name} has other columns, steps or classes than {spelled('run')}",
            "Give a run on the same dataset",
        )
    result: Floats = end - weights
    return result


def in_plane(path: Path, along: Floats) -> tuple[Floats, float]:
    """The point of the plane that is nearest to each checkpoint; the last one is the origin.

    Args:
        path: the checkpoints.
        along: directions, shape (1 or 2, classes, features + 1).

    Returns:
        multiples of the directions, shape (checkpoints, 1 or 2), and the share of the squares of
        W_k - W_last that lies in the plane.
    """
    steps = (path.weights - path.weights[-1]).reshape(len(path.versions), -1)
    basis = along.reshape(len(along), -1)
    points = np.linalg.solve(basis @ basis.T, basis @ steps.T).T
    whole = float((steps**2).sum())
    return points, float(((points @ basis) ** 2).sum() / whole) if whole else 1.0
