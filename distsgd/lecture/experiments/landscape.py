"""The loss landscape: L(W + a W1) along a line, L(W + a W1 + b W2) over a plane.

Scores are linear in W, so those of a whole plane come from three matrix products:
s = W x + a (W1 x) + b (W2 x).

Source: CS231n notes, "Optimization", visualising the loss function.

What a landscape is made of: the examples, the loss, and the W in the middle.

A landscape as a curve, or as a contour map beside a surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distsgd.core.arrays import Floats, Values
from distsgd.data.conversion import Conversion
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.errors import UsageError
from distsgd.figures.drawn import as_text, new_figure
from distsgd.lecture.experiments.landscape_directions import (
    PRINCIPAL,
    Path,
    directions,
    in_plane,
    path_of,
)
from distsgd.lecture.material import (
    LOSS_OF_SCORES,
    Examples,
    check_examples,
    check_limit,
    check_loss,
    gradient_of,
)
from distsgd.on_ray.task_pool import task_pool
from distsgd.runs.opened_run import dataset_of_run
from distsgd.spelling import spelled
from distsgd.training.measuring import conversion_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_landscape", "draw_lines", "draw_planes", "landscape"]


LARGEST = 1e30
"""The largest number that an extent, a scale or a penalty may be: its square is finite."""

_SCALE = 64.0
_EXAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class View:
    """The examples that are looked at, as the model sees them.

    Attributes:
        dataset: where they come from.
        low: number of the first.
        high: one more than that of the last.
        mean: what is subtracted from pixels.
        scale: what they are divided by.
        conversion: to the examples that the run takes; None for those of the dataset.
    """

    dataset: str
    low: int
    high: int
    mean: Floats
    scale: float
    conversion: Conversion | None = None

    def examples(self, opened: Dataset, low: int, high: int) -> Examples:
        """Training examples low to high - 1."""
        pixels: Values = np.empty((high - low, opened.manifest.features), dtype=opened.train.dtype)
        opened.train.gather(np.arange(low, high), pixels)
        labels, classes = opened.train.labels[low:high], len(opened.manifest.classes)
        if self.conversion is not None:
            pixels, labels = self.conversion.rows(pixels), self.conversion.labels(labels)
            classes = self.conversion.classes
        features = np.ones((high - low, len(self.mean) + 1))
        features[:, :-1] = (pixels - self.mean) / self.scale
        return Examples(features, labels.astype(np.intp), classes)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is looked at: a run's settings where none were given.

    Attributes:
        dataset: where examples come from.
        loss: "svm" or "softmax".
        regularization: lambda.
        scale: what centred pixels are divided by.
        path: of the run; None without one.
        around: what W is; empty for random W.
    """

    dataset: str
    loss: str
    regularization: float
    scale: float
    path: Path | None
    around: str


def scene_of(
    run: str | None, dataset: str | None, loss: str | None, regularization: float | None
) -> Scene:
    """What was asked for, filled up with the settings of a run.

    Raises:
        UsageError: loss or lambda cannot be used.
        RunError: see `path_of`, or the run's dataset is another by now.
    """
    given = {"dataset": dataset, "loss": loss, "regularization": regularization}
    result: dict[str, Any] = {
        "dataset": "cifar10", "loss": "svm", "regularization": 0.0, "scale": _SCALE,
        "path": None, "around": "",
    }  # fmt: skip
    if run is not None:
        folder, path = path_of(run)
        settings = folder.settings()
        own = settings.dataset if dataset is not None else str(dataset_of_run(folder).folder)
        result = {
            "dataset": own, "loss": settings.loss,
            "regularization": settings.regularization, "scale": settings.pixel_scale,
            "path": path, "around": f"the last W of {folder.path.name}",
        }  # fmt: skip
    result.update({name: value for name, value in given.items() if value is not None})
    check_loss(result["loss"])
    if not 0 <= result["regularization"] <= LARGEST:
        words = f"Give a number from 0 to {LARGEST:g}"
        raise UsageError(f"{spelled('regularization')} cannot be {regularization}", words)
    return Scene(**result)


def middle(scene: Scene, opened: Dataset, scale: float, seed: int) -> Floats:
    """W: the run's last, or randn * scale.

    Raises:
        UsageError: the scale cannot be used.
    """
    if scene.path is None:
        if not 0 <= scale <= LARGEST:
            words = f"Give a number from 0 to {LARGEST:g}"
            raise UsageError(f"{spelled('scale')} cannot be {scale:g}", words)
        shape = len(opened.manifest.classes), opened.manifest.features + 1
        return np.random.default_rng(seed).standard_normal(shape) * scale
    weights: Floats = scene.path.weights[-1]
    return weights


def view_of(scene: Scene, opened: Dataset, examples: int | None, example: int | None) -> View:
    """The first examples, or only one of them.

    Raises:
        UsageError: there are fewer, or they do not go with the run, see `Conversion`.
    """
    model = scene.path.model if scene.path else None
    if example is None:
        few = min(_EXAMPLES, len(opened.train))
        wanted = few if examples is None else examples
        low, high = 0, check_limit("examples", wanted, len(opened.train))
    else:
        low = check_limit("example", example, len(opened.train) - 1, least=0)
        high = low + 1
    mean = opened.pixel_mean if model is None else model.preprocessing.mean
    conversion = conversion_for(model, opened) if model is not None else None
    return View(scene.dataset, low, high, mean.astype(float), scene.scale, conversion)


_PIECE = 500
"""Examples of a task."""
_EXTENT = 10.0
_MARGIN = 0.25


class PathPoint(NamedTuple):
    """A checkpoint, as it lies over the landscape."""

    step: int
    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Losses along a line or over a plane.

    Attributes:
        loss: "svm" or "softmax".
        examples: that losses are means over.
        regularization: lambda of the penalty that is part of them.
        around: what W is.
        along: names of the directions.
        a: multiples of the first direction, which has length 1.
        b: of the second; only 0 for a line.
        losses: for each b, those of all a.
        lowest: the smallest of them.
        lowest_at: (a, b) of it.
        path: the run's checkpoints, if a run was given.
        path_share: the share of the path's squares that lies in the plane; None without a run.
    """

    loss: str
    examples: int
    regularization: float
    around: str
    along: tuple[str, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    lowest: float
    lowest_at: tuple[float, float]
    path: tuple[PathPoint, ...]
    path_share: float | None

    @property
    def kinks(self) -> int:
        """Places where the slope of a line changes, if it is made of straight pieces.

        A kink between two points bends the line at both, and counts once.
        """
        bent = np.abs(np.diff(self.losses[0], 2)) > 1e-9
        return int(bent[0]) + int(np.count_nonzero(bent[1:] & ~bent[:-1]))


@dataclass(frozen=True, eq=False)
class _Grid:
    """The recipe of a task: sums of losses over a piece of the examples, at every point.

    Attributes:
        stack: W and the directions, shape (2 or 3, classes, features + 1).
    """

    view: View
    loss: str
    stack: Floats
    a: Floats
    b: Floats

    def open(self) -> Callable[[tuple[int, int]], Floats]:
        opened = open_dataset(self.view.dataset)
        measure = LOSS_OF_SCORES[self.loss]

        def sums(piece: tuple[int, int]) -> Floats:
            result = self.view.examples(opened, *piece)
            scores = np.stack([result.features @ one.T for one in self.stack])
            total = np.empty((len(self.b), len(self.a)))
            for row, b in enumerate(self.b):
                base = scores[0] + b * scores[2] if len(scores) > 2 else scores[0]
                points = base[:, None, :] + self.a[:, None] * scores[1][:, None, :]
                total[row] = measure(points, result.labels).sum(axis=0)
            return total

        return sums


def landscape(
    dataset: str | None = None,
    *,
    loss: str | None = None,
    run: str | None = None,
    along: Sequence[str] = (),
    points: int = 41,
    extent: float | None = None,
    examples: int | None = None,
    example: int | None = None,
    scale: float = 1e-4,
    regularization: float | None = None,
    workers: int = 2,
    seed: int = 0,
) -> Landscape:
    """Compute the loss at every point of a line or a plane through W.

    Args:
        dataset: where examples come from; None for the run's, else CIFAR-10.
        loss: "svm" or "softmax"; None for the run's, else "svm".
        run: look around its last W, and draw its path; None for W = randn * ``scale``.
        along: one direction for a line, two for a plane, see `directions`; none for "pca1" and
            "pca2" of the run, or else two random ones.
        points: how many along each direction.
        extent: the multiples go from -extent to extent; None for 10, or for what the path needs.
        examples: how many of the first training examples; None for 2,000 or all, if fewer.
        example: only this one, from 0, instead.
        scale: standard deviation of random W.
        regularization: lambda; None for the run's, else 0.
        workers: worker processes; the answer does not depend on them.
        seed: of random W.

    Raises:
        UsageError: an argument cannot be used: see `directions` too.
        RunError: see `path_of`.
    """
    if not 2 <= points <= 1_001:
        raise UsageError(
            f"{spelled('points')} cannot be {points}", "Give a whole number from 2 to 1,001"
        )
    if extent is not None and not 0 < extent <= LARGEST:
        words = f"Give a number above 0, up to {LARGEST:g}"
        raise UsageError(f"{spelled('extent')} cannot be {extent:g}", words)
    scene = scene_of(run, dataset, loss, regularization)
    opened = open_dataset(scene.dataset)
    view = view_of(scene, opened, examples, example)
    weights = middle(scene, opened, scale, seed)
    names = tuple(along) or (PRINCIPAL if scene.path else ("random:1", "random:2"))
    slope = _slope(view, opened, scene, weights) if "gradient" in names else np.zeros(0)
    chosen = directions(names, weights, slope, scene.path)
    a, b, path, share = _axes(chosen, scene.path, points, extent)
    losses = _losses(_Grid(view, scene.loss, np.stack([weights, *chosen]), a, b), workers)
    losses += scene.regularization * _squares(weights, chosen, a, b)
    row, column = np.unravel_index(int(np.argmin(losses)), losses.shape)
    return Landscape(
        loss=scene.loss, examples=view.high - view.low, regularization=scene.regularization,
        around=scene.around or f"randn * {scale:g}", along=names, a=tuple(a.tolist()),
        b=tuple(b.tolist()), losses=tuple(tuple(one) for one in losses.tolist()),
        lowest=float(losses.min()), lowest_at=(float(a[column]), float(b[row])), path=path,
        path_share=share,
    )  # fmt: skip


def _slope(view: View, opened: Dataset, scene: Scene, weights: Floats) -> Floats:
    """The gradient of the loss at W, over all examples at once."""
    check_examples(view.high - view.low, weights.shape[1])
    slope = gradient_of(weights, view.examples(opened, view.low, view.high), scene.loss)
    slope[:, :-1] += 2 * scene.regularization * weights[:, :-1]
    return slope


def _axes(
    chosen: Floats, path: Path | None, points: int, extent: float | None
) -> tuple[Floats, Floats, tuple[PathPoint, ...], float | None]:
    """The multiples of both directions, the path over them, and its share."""
    where, share = in_plane(path, chosen) if path else (np.zeros((1, len(chosen))), None)
    if len(chosen) == 1:
        where = np.hstack([where, np.zeros((len(where), 1))])
    spans = []
    for axis in range(len(chosen)):
        low, high = where[:, axis].min(), where[:, axis].max()
        if extent is not None or not high > low:
            reach = extent or _EXTENT
            spans.append(np.linspace(-reach, reach, points))
        else:
            margin = _MARGIN * (high - low)
            spans.append(np.linspace(low - margin, high + margin, points))
    b = spans[1] if len(spans) == 2 else np.zeros(1)
    drawn: tuple[PathPoint, ...] = ()
    if path:
        drawn = tuple(
            PathPoint(version, float(one[0]), float(one[1]))
            for version, one in zip(path.versions, where, strict=True)
        )
    return spans[0], b, drawn, share


def _losses(grid: _Grid, workers: int) -> Floats:
    view = grid.view
    pieces = [(low, min(low + _PIECE, view.high)) for low in range(view.low, view.high, _PIECE)]
    total = np.zeros((len(grid.b), len(grid.a)))
    with task_pool(workers) as pool:
        for part in pool.map(grid, pieces):
            total += part
    return total / (view.high - view.low)


def _squares(weights: Floats, chosen: Floats, a: Floats, b: Floats) -> Floats:
    """Sum of the squares of W + a W1 + b W2, without the bias, at every point."""
    stack = np.stack([weights, *chosen])[:, :, :-1].reshape(len(chosen) + 1, -1)
    products = stack @ stack.T
    factors = [np.ones((len(b), len(a))), np.tile(a, (len(b), 1)), np.tile(b[:, None], len(a))]
    parts = np.stack(factors[: len(stack)])
    result: Floats = np.einsum("iba,ij,jba->ba", parts, products, parts)
    return result


def draw_landscape(result: Landscape) -> Figure:
    """A line as a curve; a plane as contours and a surface."""
    return draw_lines([result]) if len(result.b) == 1 else draw_planes([result], surface=True)


def draw_lines(result: list[Landscape]) -> Figure:
    """Curves beside each other."""
    figure = new_figure(max(5.0, 3.6 * len(result)), 3.4)
    for axes, one in zip(np.atleast_1d(figure.subplots(1, len(result))), result, strict=True):
        axes.plot(one.a, one.losses[0])
        for point in one.path:
            axes.axvline(point.a, color="C3", linewidth=0.6)
        axes.set(xlabel=f"a, along {as_text(one.along[0])}", ylabel="loss", title=_title(one))
        axes.grid(alpha=0.3)
    return figure


def draw_planes(result: list[Landscape], surface: bool = False) -> Figure:
    """Contour maps, with a run's path; with ``surface`` the landscape itself beside each."""
    wide = 2 if surface else 1
    figure = new_figure(3.7 * len(result) * wide, 3.6)
    for number, one in enumerate(result):
        flat = figure.add_subplot(1, wide * len(result), wide * number + 1)
        _contours(flat, one)
        if surface:
            a, b = np.meshgrid(one.a, one.b)
            axes = figure.add_subplot(1, wide * len(result), wide * number + 2, projection="3d")
            axes.plot_surface(
                a, b, np.array(one.losses), cmap="viridis", rcount=60, ccount=60, rasterized=True
            )
            axes.set(xlabel="a", ylabel="b", title="loss")
    return figure


def _contours(axes: Axes, one: Landscape) -> None:
    losses = np.array(one.losses)
    low, high = losses.min(), losses.max()
    if low > 0 and high >= 50 * low:
        levels = np.geomspace(low, high, 22)
    else:
        levels = np.linspace(low, high if high > low else low + 1, 22)
    mapped = axes.contourf(one.a, one.b, losses, levels=np.unique(levels), cmap="viridis")
    axes.figure.colorbar(mapped, ax=axes, format="%.3g")
    if one.path:
        places = np.array([(point.a, point.b) for point in one.path])
        axes.plot(*places.T, "o-", color="white", markersize=3, linewidth=1)
        axes.plot(*places[-1], "*", color="red", markersize=10)
    axes.set(xlabel=f"a, along {as_text(one.along[0])}", ylabel=f"b, along {as_text(one.along[1])}",
             title=_title(one))  # fmt: skip


def _title(one: Landscape) -> str:
    return f"{one.loss}, {one.examples:,} example{'s' if one.examples > 1 else ''}"
