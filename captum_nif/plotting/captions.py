"""What is read on a static picture: names, shares, legends, and space for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import node_spans
from captum_nif.network.export import PALETTE
from captum_nif.plotting.columns import image_planes, layer_columns
from captum_nif.plotting.geometry import Number, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

INK, MUTED = "#1c2733", "#5d6975"
FLOW, NEGATIVE, WEAK = "#44566c", "#c0392b", "#d0d5da"
_OTHER = "#9aa2ab"
_MARKERS = "os^DvPX"
"""With the colors, so that communities differ in gray and to the color-blind."""

_LETTER = 4.6  # width of a letter, in points
_LEGEND = 100.0  # height that legends take, in points
_LONGEST = 24  # letters of a node's name that are written
_MANY_COLUMNS = 9  # beyond which names are written aslant
_TIMES = "\N{MULTIPLICATION SIGN}"


class Margins(NamedTuple):
    """The space around a picture of height 1, in units of that height.

    Args:
        left (float): Space left of the first column.
        right (float): Space right of the last.
        top (float): Space above.
        bottom (float): Space below.
        width (float): From the first column to the last.
        scale (float): Size of letters: 1, or less in a small axes.
    """

    left: float
    right: float
    top: float
    bottom: float
    width: float
    scale: float

    @classmethod
    def of(cls, ax: Axes, graph: FlowGraph) -> Margins:
        """What names and legends leave of the axes."""
        figure = ax.get_figure(root=True)
        assert figure is not None
        box = ax.get_window_extent()
        width, height = (72 / figure.dpi * side for side in (box.width, box.height))
        scale = min(max(min(width / 440.0, height / 320.0), 0.6), 1.0)
        columns = layer_columns(graph)
        top = scale * (100.0 if is_crowded(graph) else 58.0)
        # In a small axes the picture keeps two fifths of the height.
        unit = max(height - top - scale * _LEGEND, 0.4 * height)
        left, right = (
            max(
                _beside(layer, unit / scale)
                for layer, at in zip(graph.layers, columns, strict=True)
                if at == column
            )
            for column in (0, max(columns))
        )
        return cls(
            left=left,
            right=right,
            top=top / unit,
            bottom=(height - top) / unit - 1.0,
            width=max(width / unit - left - right, 0.1),
            scale=scale,
        )

    def apply(self, ax: Axes) -> None:
        """Sets the limits of the axes."""
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_xlim(-self.left, self.width + self.right)
        ax.set_ylim(-self.bottom, 1.0 + self.top)
        ax.set_axis_off()


def _beside(layer: Layer, unit: float) -> float:
    if planes := image_planes(layer):
        _, rows, columns = planes
        return 0.6 * columns / max(rows, columns) + 10.0 / unit
    if layer.kind == "hidden":
        return 40.0 / unit
    letters = max(len(_short(label)) for label in layer.node_labels())
    return (max(24.0, _LETTER * letters) + 16.0) / unit


def is_crowded(graph: FlowGraph) -> bool:
    """Whether a graph has so many columns that they stand close together."""
    return max(layer_columns(graph)) > _MANY_COLUMNS


def link_width(relative: Number, crowded: bool) -> Number:
    """Width in points of links of that relative flow."""
    return (0.25 + 2.95 * relative) * (0.45 if crowded else 1.0)


def link_alpha(relative: Number) -> Number:
    """Opacity of links of that relative flow."""
    return 0.3 + 0.55 * relative


def community_style(group: int) -> dict[str, str]:
    """Marker and color of a community, by its place among those with a color."""
    if group >= len(_MARKERS):
        return {"marker": "o", "color": _OTHER}
    red, green, blue = PALETTE[group]
    return {"marker": _MARKERS[group], "color": f"#{red:02x}{green:02x}{blue:02x}"}


def write_share(ax: Axes, picture: Picture) -> None:
    """States below the picture how much of the graph is drawn."""
    share = float(np.mean(list(picture.shares.values()))) if picture.shares else 0.0
    ax.annotate(
        f"Drawn: {len(picture.flow.weight):,} of {picture.total:,} links, "
        f"{_percent(share)} of the flow (mean over layers)",
        (0.0, 0.0),
        xycoords="axes fraction",
        xytext=(6.0, 4.0),
        textcoords="offset points",
        size=7.5 * picture.scale,
        color=MUTED,
    )


def write_names(ax: Axes, picture: Picture) -> None:
    """Names layers above their columns, and nodes beside them."""
    graph, places = picture.graph, picture.places
    columns = layer_columns(graph)
    crowded = is_crowded(graph)
    for n, (layer, (start, stop)) in enumerate(
        zip(graph.layers, node_spans(graph), strict=True)
    ):
        at = (float(np.nanmean(places.x[start:stop])), places.tops[n])
        _write_heading(ax, picture, n, at, crowded)
        if n not in places.boxes and not (crowded and layer.kind == "hidden"):
            _name_nodes(ax, picture, layer, start, leftmost=columns[n] == 0)
    for x, y, count in places.folded.values():
        more = f"+ {count:,}" if crowded else f"and {count:,} more"
        ax.text(
            x, y, more, ha="center", va="top", size=6.5 * picture.scale, color=MUTED
        )


def _write_heading(
    ax: Axes, picture: Picture, n: int, at: tuple[float, float], crowded: bool
) -> None:
    layer = picture.graph.layers[n]
    count = f" {_TIMES} ".join(map(str, layer.shape))
    facts = [f"{count} node{'s' * (layer.size > 1)}"]
    if n in picture.shares:
        facts.append(f"{_percent(picture.shares[n])}{'' if crowded else ' drawn'}")
    scale = picture.scale
    style: dict[str, Any] = {"textcoords": "offset points", "va": "bottom"}
    if crowded:
        heading = ", ".join([_short(layer.name), *facts])
        style |= {"ha": "left", "rotation": 45, "rotation_mode": "anchor"}
        ax.annotate(heading, at, (0, 10), size=6.5 * scale, color=INK, **style)
        return
    style["ha"] = "center"
    below = "\n".join([*facts, ""][:2])  # names stand in line
    ax.annotate(below, at, (0, 10 * scale), size=7 * scale, color=MUTED, **style)
    above = (0, 34 * scale)
    style |= {"weight": "bold", "size": 8.5 * scale}
    ax.annotate(_short(layer.name), at, above, color=INK, **style)


def _name_nodes(
    ax: Axes, picture: Picture, layer: Layer, start: int, leftmost: bool
) -> None:
    from matplotlib.patheffects import withStroke

    labels = layer.node_labels()
    radius = np.sqrt(picture.area(picture.size)) / 2
    halo = [withStroke(linewidth=1.6, foreground="white")]
    for index in range(layer.size):
        node = start + index
        if not picture.dots[node]:
            continue
        at = (picture.places.x[node], picture.places.y[node])
        style: dict[str, Any] = {"textcoords": "offset points", "zorder": 4}
        if layer.kind == "hidden":
            beside = (radius[node] + 1.0, 0.6 * radius[node] + 0.5)
            style |= {"size": 6 * picture.scale, "color": MUTED, "path_effects": halo}
            ax.annotate(str(index), at, beside, **style)
            continue
        beside = (radius[node] + 4.0, 0.0)
        style |= {"va": "center", "ha": "left", "size": 8 * picture.scale, "color": INK}
        if leftmost:
            beside, style["ha"] = (-beside[0], 0.0), "right"
        ax.annotate(_short(labels[index]), at, beside, **style)


def write_legends(ax: Axes, picture: Picture) -> None:
    """Explains width, size and color, in three legends below the picture."""
    from matplotlib.legend import Legend

    crowded = is_crowded(picture.graph)
    width = [
        _handle(
            f"{part:.0%}",
            "",
            color=FLOW,
            lw=link_width(part, crowded),
            ls="-",
            alpha=link_alpha(part),
        )
        for part in (1.0, 0.5, 0.1)
    ]
    if (picture.flow.weight < 0).any():
        width.append(_handle("negative", "", color=NEGATIVE, lw=1.5, ls="-"))
    if len(picture.weak.weight):
        width.append(_handle(picture.weakness, "", color=WEAK, lw=1.0, ls="-"))
    size = [
        _handle(
            _readable(part * picture.largest), "o", picture.area(part), color="white"
        )
        for part in ((1.0, 0.5, 0.0) if picture.largest else (0.0,))
    ]
    if picture.places.boxes:
        size.append(_handle("pixel: flow out", "s", 40.0, color="0.6"))
    color = []
    alive = picture.dots & ~picture.dead
    for group in np.unique(picture.group[alive]).tolist():
        named = group < len(picture.names)
        label = str(picture.names[group]) if named else "smaller ones"
        style = community_style(group)
        color.append(_handle(label, style["marker"], 40.0, color=style["color"]))
    if (picture.dead & picture.dots).any():
        color.append(_handle("hollow: dead", "o", 40.0, color="white"))
    for title, handles, place, spacing in (
        (
            "Width: flow, relative to the\nstrongest drawn into the layer",
            width,
            0.0,
            0.5,
        ),
        ("Size: betweenness", size, 0.42, 0.9),
        ("Color, shape: community", color, 0.66, 0.5),
    ):
        legend = Legend(
            ax,
            handles,
            [str(handle.get_label()) for handle in handles],
            title=title,
            loc="upper left",
            # From the left in parts of the axes, down from just below the picture.
            bbox_to_anchor=(place, -0.03),
            bbox_transform=ax.get_yaxis_transform(),
            ncols=1 + (len(handles) > 4),
            labelspacing=spacing,
            frameon=False,
            fontsize=7.5 * picture.scale,
            title_fontsize=7.5 * picture.scale,
            alignment="left",
            labelcolor=INK,
        )
        ax.add_artist(legend)


def _handle(label: str, marker: str, size: float = 0.0, **style: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        label=label,
        marker=marker,
        markersize=size**0.5,
        markeredgewidth=0.7,
        markeredgecolor=INK,
        **{"ls": "", **style},
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def _readable(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
