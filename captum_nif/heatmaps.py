"""Attributions as pictures: on top of an image, and as a matrix (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

_RED, _BLUE = (0.72, 0.11, 0.11), (0.10, 0.30, 0.72)
_INK, _MUTED = "#1c2733", "#5d6975"
_NUMBERS = 200  # cells up to which a matrix shows its numbers


def plot_saliency(
    attribution: Tensor,
    image: Tensor,
    ax: Axes | None = None,
    *,
    clip: float = 0.99,
    cmap: str = "gray",
) -> Axes:
    r"""Draws an attribution on top of the image it explains, as in the paper's Fig. 4.

    Blue pixels are positive, red ones negative, and the larger, the more opaque. The
    image is pale and without colours, and attributions are summed over its channels.

    Args:
        attribution (Tensor): Attribution of one image, shape [rows, columns] or
            [channels, rows, columns], also with a leading axis of 1.
        image (Tensor): The image, of any range, with the same rows and columns.
        ax (matplotlib.axes.Axes, optional): Where to draw.
            Default: ``None`` (a new pyplot figure)
        clip (float, optional): Quantile of the absolute values that is fully opaque,
            so that single pixels do not make all others pale.
            Default: ``0.99``
        cmap (str, optional): Matplotlib's colour map for the image; ``"gray_r"`` shows
            digits dark on white.
            Default: ``"gray"``

    Returns:
        matplotlib.axes.Axes: Where it was drawn.

    Raises:
        TypeError: If ``attribution`` or ``image`` is no tensor.
        ValueError: If one is not an image, their rows and columns differ, a value is
            NaN or infinite, or ``clip`` is not in (0, 1].

    Examples::

        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_saliency(torch.randn(3, 8, 8), torch.rand(3, 8, 8), ax) is ax
        True
    """
    if not 0.0 < clip <= 1.0:
        raise ValueError(f"clip must be more than 0 and at most 1, got {clip}")
    values = _planes(attribution, "attribution").sum(0)
    grey = _planes(image, "image").mean(0)
    if values.shape != grey.shape:
        raise ValueError(
            f"attribution has {_size(values)} pixels and image {_size(grey)}: give the "
            "attribution of this image"
        )
    magnitude = np.abs(values)
    limit = float(np.quantile(magnitude, clip) or magnitude.max() or 1.0)
    opacity = (magnitude / limit).clip(0.0, 1.0)
    colours = np.where(values[..., None] < 0.0, _RED, _BLUE)
    if ax is None:
        ax = _new_axes(4.6, 4.0)
    spread = float(np.ptp(grey)) or 1.0
    # A third of the range leaves the other two for the colours on top.
    ax.imshow((grey - grey.min()) / spread, cmap=cmap, alpha=0.35, vmin=0.0, vmax=1.0)
    ax.imshow(np.concatenate([colours, opacity[..., None]], axis=-1))
    ax.set_axis_off()
    _add_scale(ax, _mappable(-limit, limit), "attribution", -limit)
    return ax


def plot_attribution_matrix(
    matrix: Tensor,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    image_shape: Sequence[int] | None = None,
) -> Axes:
    r"""Draws an attribution matrix (Eq. 4) as a heat map, or one image for each class.

    All classes share one scale. Blue is positive, red negative.

    Args:
        matrix (Tensor): Attributions, shape [n_features, C].
        feature_names (sequence of str, optional): Names of the rows.
            Default: ``None`` (their numbers)
        class_names (sequence of str, optional): Names of the columns.
            Default: ``None`` (their numbers)
        ax (matplotlib.axes.Axes, optional): Where to draw.
            Default: ``None`` (a new pyplot figure)
        image_shape (sequence of int, optional): [rows, columns] or [channels, rows,
            columns] of an image whose elements are the features: draws an image for
            each class, summed over channels.
            Default: ``None``

    Returns:
        matplotlib.axes.Axes: Where it was drawn.

    Raises:
        TypeError: If ``matrix`` is no tensor.
        ValueError: If it is not a matrix or holds NaN or infinity, or if names or
            ``image_shape`` do not fit it.

    Examples::

        >>> from matplotlib.figure import Figure
        >>> matrix = torch.tensor([[0.5, 0.0], [0.1, 0.2]])
        >>> ax = plot_attribution_matrix(
        ...     matrix, ["age", "fare"], ["no", "yes"], Figure().subplots()
        ... )
        >>> [text.get_text() for text in ax.texts]
        ['0.50', '0.00', '0.10', '0.20']
    """
    values = _finite(matrix, "matrix")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"matrix must be [n_features, C], got {list(values.shape)}")
    features = _names(feature_names, values.shape[0], "feature_names")
    classes = _names(class_names, values.shape[1], "class_names")
    limit = float(np.abs(values).max()) or 1.0
    scale = _mappable(-limit if values.min() < 0 else 0.0, limit)
    if image_shape is None:
        if ax is None:
            height = min(max(2.4, 0.34 * len(features) + 1.2), 12.0)
            ax = _new_axes(min(2.6 + 0.8 * len(classes), 12.0), height)
        _draw_matrix(ax, values, features, classes, scale)
    else:
        planes = _planes_of_classes(values, image_shape)
        columns = math.ceil(math.sqrt(1.6 * len(classes)))
        if ax is None:
            rows = math.ceil(len(classes) / columns)
            ax = _new_axes(1.5 * columns + 1.0, 1.65 * rows + 0.2)
        _draw_images(ax, planes, classes, columns, scale)
    _add_scale(ax, scale, "sum over paths", float(min(values.min(), 0.0)))
    return ax


def _draw_matrix(
    ax: Axes,
    values: NDArray[np.float64],
    features: Sequence[str],
    classes: Sequence[str],
    scale: ScalarMappable,
) -> None:
    ax.imshow(values, cmap=scale.cmap, clim=scale.get_clim(), aspect="auto")
    ax.set_xticks(range(len(classes)), classes)
    # Too many names to be told apart are not written.
    step = math.ceil(len(features) / 40)
    ax.set_yticks(range(0, len(features), step), features[::step])
    ax.tick_params(length=0, labelsize=8, labelcolor=_INK)
    ax.spines[:].set_visible(False)
    if values.size > _NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        dark = abs(value) > 0.55 * np.abs(values).max()
        ax.text(
            column,
            row,
            _number(value, float(np.abs(values).max())),
            ha="center",
            va="center",
            size=8,
            color="white" if dark else _INK,
        )


def _draw_images(
    ax: Axes,
    planes: NDArray[np.float64],
    classes: Sequence[str],
    columns: int,
    scale: ScalarMappable,
) -> None:
    _, height, width = planes.shape
    across, down = 1.08 * width, 1.22 * height
    for n, (plane, name) in enumerate(zip(planes, classes, strict=True)):
        row, column = divmod(n, columns)
        left, top = column * across, -row * down
        extent = (left, left + width, top - height, top)
        ax.imshow(plane, cmap=scale.cmap, clim=scale.get_clim(), extent=extent)
        right, bottom = left + width, top - height
        outline = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        ax.plot(*outline, color=_MUTED, lw=0.5)
        ax.text(
            left + width / 2,
            top + 0.03 * height,
            name,
            ha="center",
            va="bottom",
            size=8,
            color=_INK,
        )
    rows = math.ceil(len(classes) / columns)
    ax.set_xlim(-0.02 * width, columns * across)
    ax.set_ylim(-rows * down + 0.1 * height, 0.22 * height)
    ax.set_axis_off()


def _planes_of_classes(
    values: NDArray[np.float64], image_shape: Sequence[int]
) -> NDArray[np.float64]:
    """Attributions to each class as an image, [C, rows, columns]."""
    shape = (1, *image_shape)[-3:]
    if len(image_shape) not in (2, 3) or math.prod(shape) != len(values):
        raise ValueError(
            f"image_shape must be [rows, columns] or [channels, rows, columns] of "
            f"{len(values)} features, got {list(image_shape)}"
        )
    images: NDArray[np.float64] = values.T.reshape(-1, *shape).sum(1)
    return images


def _planes(image: Tensor, name: str) -> NDArray[np.float64]:
    values = _finite(image, name)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"{name} must be one image, [rows, columns] or [channels, rows, columns], "
            f"got shape {list(image.shape)}"
        )
    return values


def _finite(values: Tensor, name: str) -> NDArray[np.float64]:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(values).__name__}")
    array: NDArray[np.float64] = values.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity; every value must be finite")
    return array


def _names(names: Sequence[str] | None, count: int, what: str) -> Sequence[str]:
    if names is None:
        return [str(n) for n in range(count)]
    if len(names) != count:
        raise ValueError(
            f"{what} has {len(names)} names for {count}; give one for each"
        )
    return list(names)


def _size(plane: NDArray[np.float64]) -> str:
    return " x ".join(map(str, plane.shape))


def _number(value: float, largest: float) -> str:
    return f"{value:.2f}" if 0.1 <= largest < 100 else f"{value:.1e}"


def _new_axes(width: float, height: float) -> Axes:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def _mappable(lowest: float, highest: float) -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(lowest, highest), _colours(lowest < 0))


def _colours(signed: bool) -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    ends = [_RED, (1.0, 1.0, 1.0), _BLUE] if signed else [(1.0, 1.0, 1.0), _BLUE]
    return LinearSegmentedColormap.from_list("red_white_blue", ends)


def _add_scale(ax: Axes, scale: ScalarMappable, label: str, lowest: float) -> None:
    """Adds the colour bar, from the lowest value on."""
    figure = ax.get_figure(root=False)
    assert figure is not None
    bar = figure.colorbar(scale, ax=ax, fraction=0.046, pad=0.03)
    bar.ax.set_ylim(lowest, scale.get_clim()[1])
    bar.set_label(label, size=8, color=_INK)
    bar.ax.tick_params(labelsize=7, labelcolor=_MUTED, length=2)
    bar.outline.set_visible(False)
