"""The colors of heat maps: their scale, and the cells that may be noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif.plotting.captions import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

RED, BLUE = (0.72, 0.11, 0.11), (0.10, 0.30, 0.72)
_CLEAR = 2.0  # standard errors from 0 beyond which few values come by noise


def finite(values: Tensor, name: str) -> NDArray[np.float64]:
    """The values in double precision, if all of them can be drawn."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(values).__name__}")
    array: NDArray[np.float64] = values.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity; every value must be finite")
    return array


def errors_of(
    errors: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The standard errors, if they can be those of these attributions."""
    if errors.shape != values.shape:
        raise ValueError(
            f"standard_error has shape {list(errors.shape)} and the attributions "
            f"{list(values.shape)}: give the standard errors of these attributions"
        )
    if (errors < 0.0).any():
        raise ValueError(
            f"standard_error holds negative values, such as {errors.min():g}: give "
            "standard errors, not attributions"
        )
    return errors


def is_unclear(
    values: NDArray[np.float64], errors: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which attributions noise alone may have made."""
    return np.abs(values) <= _CLEAR * errors


def shrunk(
    cells: NDArray[np.float64], unclear: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Makes every cell 3 x 3, and leaves only the middle of those that are unclear."""
    rim = np.array([[True, True, True], [True, False, True], [True, True, True]])
    fine = cells.repeat(3, axis=0).repeat(3, axis=1)
    fine[np.kron(unclear, rim)] = 0.0
    return fine


def new_axes(width: float, height: float) -> Axes:
    """An axes in a pyplot figure of that size, in inches."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def color_scale(lowest: float, highest: float) -> ScalarMappable:
    """White at 0, blue above, and red below where there is anything."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(lowest, highest), _colors(lowest < 0))


def _colors(signed: bool) -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    ends = [RED, (1.0, 1.0, 1.0), BLUE] if signed else [(1.0, 1.0, 1.0), BLUE]
    return LinearSegmentedColormap.from_list("red_white_blue", ends)


def add_scale(ax: Axes, scale: ScalarMappable, label: str, lowest: float) -> None:
    """Adds the color bar, from the lowest value on."""
    figure = ax.get_figure(root=False)
    assert figure is not None
    bar = figure.colorbar(scale, ax=ax, fraction=0.046, pad=0.03)
    bar.ax.set_ylim(lowest, scale.get_clim()[1])
    bar.set_label(label, size=8, color=INK)
    bar.ax.tick_params(labelsize=7, labelcolor=MUTED, length=2)
    bar.outline.set_visible(False)


def add_legend(ax: Axes, unclear: NDArray[np.bool_], below: float = 0.5) -> None:
    """Says what small squares are and how many, that many letters below the axes."""
    from matplotlib.lines import Line2D

    share = float(unclear.mean())
    text = f"within {_CLEAR:.0f} standard errors of 0 ({share:.0%})"
    small = Line2D([], [], ls="", marker="s", ms=2.5, color=BLUE, mew=0, label=text)
    ax.legend(
        handles=[small],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=below,
        frameon=False,
        fontsize=7,
        labelcolor=MUTED,
        handletextpad=0.0,
    )
