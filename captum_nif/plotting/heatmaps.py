"""Attributions as pictures: on top of an image, and as a matrix (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_nif.plotting.captions import INK, MUTED
from captum_nif.plotting.shading import (
    BLUE,
    RED,
    add_legend,
    add_scale,
    color_scale,
    errors_of,
    finite,
    is_unclear,
    new_axes,
    shrunk,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_NUMBERS = 200  # cells up to which a matrix shows its numbers


def plot_saliency(
    attribution: Tensor,
    image: Tensor,
    ax: Axes | None = None,
    *,
    standard_error: Tensor | None = None,
    clip: float = 0.99,
    cmap: str = "gray",
) -> Axes:
    r"""Draws an attribution on top of the image it explains, as in the paper's Fig. 4.

    Blue pixels are positive, red ones negative, and the larger, the more opaque. The
    image is pale and without colors, and attributions are summed over its channels.
    With ``standard_error``, full squares can be told from 0 and small ones cannot.

    Args:
        attribution (Tensor): Attribution of one image, shape [rows, columns] or
            [channels, rows, columns], also with a leading axis of 1.
        image (Tensor): The image, of any range, with the same rows and columns.
        ax (matplotlib.axes.Axes, optional): Where to draw.
            Default: ``None`` (a new pyplot figure)
        standard_error (Tensor, optional): Standard error of each attribution, from
            :meth:`.NIFAttribution.standard_error`, of the same shape. Pixels within 2
            standard errors of 0 are drawn as small squares (in large images, pale),
            and their share is told. The errors of channels are added up, which is never
            too little, and exact where a ``feature_mask`` makes the channels of each
            pixel one feature.
            Default: ``None`` (all pixels are drawn alike)
        clip (float, optional): Quantile of the absolute values that is fully opaque,
            so that single pixels do not make all others pale.
            Default: ``0.99``
        cmap (str, optional): Matplotlib's color map for the image; ``"gray_r"`` shows
            digits dark on white.
            Default: ``"gray"``

    Returns:
        matplotlib.axes.Axes: Where it was drawn.

    Raises:
        TypeError: If ``attribution``, ``image`` or ``standard_error`` is no tensor.
        ValueError: If one is not an image, their rows and columns differ, a value is
            NaN or infinite, standard errors are negative or of another shape than the
            attribution, or ``clip`` is not in (0, 1].

    Examples::

        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_saliency(torch.randn(3, 8, 8), torch.rand(3, 8, 8), ax) is ax
        True
    """
    if not 0.0 < clip <= 1.0:
        raise ValueError(f"clip must be more than 0 and at most 1, got {clip}")
    planes = _planes(attribution, "attribution")
    values = planes.sum(0)
    gray = _planes(image, "image").mean(0)
    if values.shape != gray.shape:
        raise ValueError(
            f"attribution has {_size(values)} pixels and image {_size(gray)}: give the "
            "attribution of this image"
        )
    unclear = None
    if standard_error is not None:
        errors = _planes(standard_error, "standard_error")
        unclear = is_unclear(values, errors_of(errors, planes).sum(0))
    magnitude = np.abs(values)
    limit = float(np.quantile(magnitude, clip) or magnitude.max() or 1.0)
    opacity = (magnitude / limit).clip(0.0, 1.0)
    colors = np.where(values[..., None] < 0.0, RED, BLUE)
    overlay = np.concatenate([colors, opacity[..., None]], axis=-1)
    if ax is None:
        ax = new_axes(4.6, 4.0)
    spread = float(np.ptp(gray)) or 1.0
    # A third of the range leaves the other two for the colors on top.
    ax.imshow((gray - gray.min()) / spread, cmap=cmap, alpha=0.35, vmin=0.0, vmax=1.0)
    if unclear is None:
        ax.imshow(overlay)
    else:
        ax.imshow(shrunk(overlay, unclear), extent=_extent(values))
        add_legend(ax, unclear)
    ax.set_axis_off()
    add_scale(ax, color_scale(-limit, limit), "attribution", -limit)
    return ax


def plot_attribution_matrix(
    matrix: Tensor,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    standard_error: Tensor | None = None,
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
        standard_error (Tensor, optional): Standard error of each attribution, from
            :meth:`.NIFAttribution.standard_error` without inputs, shape [n_features,
            C]. It stands below each number; in images, and where there are too many
            cells for numbers, those within 2 standard errors of 0 are drawn small, as
            in :func:`plot_saliency`.
            Default: ``None``

    Returns:
        matplotlib.axes.Axes: Where it was drawn.

    Raises:
        TypeError: If ``matrix`` or ``standard_error`` is no tensor.
        ValueError: If it is not a matrix or holds NaN or infinity, if names,
            ``image_shape`` or ``standard_error`` do not fit it, or if a standard error
            is negative.

    Examples::

        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> matrix = torch.tensor([[0.5, 0.0], [0.1, 0.2]])
        >>> ax = plot_attribution_matrix(
        ...     matrix, ["age", "fare"], ["no", "yes"], Figure().subplots()
        ... )
        >>> [text.get_text() for text in ax.texts]
        ['0.50', '0.00', '0.10', '0.20']
    """
    values = finite(matrix, "matrix")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"matrix must be [n_features, C], got {list(values.shape)}")
    features = _names(feature_names, values.shape[0], "feature_names")
    classes = _names(class_names, values.shape[1], "class_names")
    errors = None
    if standard_error is not None:
        errors = errors_of(finite(standard_error, "standard_error"), values)
    limit = float(np.abs(values).max()) or 1.0
    scale = color_scale(-limit if values.min() < 0 else 0.0, limit)
    if image_shape is None:
        if ax is None:
            line = 0.34 if errors is None else 0.46
            height = min(max(2.4, line * len(features) + 1.2), 12.0)
            ax = new_axes(min(2.6 + 0.8 * len(classes), 12.0), height)
        _draw_matrix(ax, values, errors, features, classes, scale)
    else:
        planes = _planes_of_classes(values, image_shape)
        unclear = None
        if errors is not None:
            unclear = is_unclear(planes, _planes_of_classes(errors, image_shape))
        columns = math.ceil(math.sqrt(1.6 * len(classes)))
        if ax is None:
            rows = math.ceil(len(classes) / columns)
            ax = new_axes(1.5 * columns + 1.0, 1.65 * rows + 0.2)
        _draw_images(ax, planes, unclear, classes, columns, scale)
    add_scale(ax, scale, "sum over paths", float(min(values.min(), 0.0)))
    return ax


def _draw_matrix(
    ax: Axes,
    values: NDArray[np.float64],
    errors: NDArray[np.float64] | None,
    features: Sequence[str],
    classes: Sequence[str],
    scale: ScalarMappable,
) -> None:
    numbers = values.size <= _NUMBERS
    unclear = None if errors is None or numbers else is_unclear(values, errors)
    _show(ax, values, unclear, scale, _extent(values), aspect="auto")
    ax.set_xticks(range(len(classes)), classes)
    # Too many names to be told apart are not written.
    step = math.ceil(len(features) / 40)
    ax.set_yticks(range(0, len(features), step), features[::step])
    ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    ax.spines[:].set_visible(False)
    if unclear is not None:
        add_legend(ax, unclear, below=3.0)
    if not numbers:
        return
    largest = float(np.abs(values).max())
    for (row, column), value in np.ndenumerate(values):
        dark = abs(value) > 0.55 * largest
        text = _number(value, largest)
        if errors is not None:
            error = _number(float(errors[row, column]), largest)
            text += f"\n\N{PLUS-MINUS SIGN} {error}"
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            size=8,
            color="white" if dark else INK,
        )


def _draw_images(
    ax: Axes,
    planes: NDArray[np.float64],
    unclear: NDArray[np.bool_] | None,
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
        _show(ax, plane, None if unclear is None else unclear[n], scale, extent)
        right, bottom = left + width, top - height
        outline = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        ax.plot(*outline, color=MUTED, lw=0.5)
        ax.text(
            left + width / 2,
            top + 0.03 * height,
            name,
            ha="center",
            va="bottom",
            size=8,
            color=INK,
        )
    rows = math.ceil(len(classes) / columns)
    ax.set_xlim(-0.02 * width, columns * across)
    ax.set_ylim(-rows * down + 0.1 * height, 0.22 * height)
    ax.set_axis_off()
    if unclear is not None:
        add_legend(ax, unclear)


def _show(
    ax: Axes,
    values: NDArray[np.float64],
    unclear: NDArray[np.bool_] | None,
    scale: ScalarMappable,
    extent: tuple[float, float, float, float],
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """Draws cells in the colors of a scale, and those that are unclear small."""
    if unclear is not None:
        values = shrunk(values, unclear)
    limits = scale.get_clim()
    ax.imshow(values, cmap=scale.cmap, clim=limits, extent=extent, aspect=aspect)


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
    values = finite(image, name)
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


def _names(names: Sequence[str] | None, count: int, what: str) -> Sequence[str]:
    if names is None:
        return [str(n) for n in range(count)]
    if len(names) != count:
        raise ValueError(
            f"{what} has {len(names)} names for {count}; give one for each"
        )
    return list(names)


def _extent(plane: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of cells whose middles are at whole numbers."""
    rows, columns = plane.shape
    return -0.5, columns - 0.5, rows - 0.5, -0.5


def _size(plane: NDArray[np.float64]) -> str:
    return " x ".join(map(str, plane.shape))


def _number(value: float, largest: float) -> str:
    return f"{value:.2f}" if 0.1 <= largest < 100 else f"{value:.1e}"
