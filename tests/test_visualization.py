from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from random_graphs import dense, flow_graphs

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities
from captum_nif.network.export import PALETTE
from captum_nif.network.summary import flow_shares
from captum_nif.plotting.flow_figure import plot_flow

WEAK, NEGATIVE = "#d0d5da", "#c0392b"


@pytest.fixture
def ax():
    return Figure(figsize=(9, 5.6)).add_axes((0, 0, 1, 1))


@pytest.fixture(autouse=True)
def no_figures_stay():
    yield
    plt.close("all")


def chain(*sizes, seed=0, lowest=0.0):
    numbers = torch.Generator().manual_seed(seed)
    kinds = ["input", *["hidden"] * (len(sizes) - 2), "output"]
    layers = [
        Layer(f"layer{n}", size, kind)
        for n, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    ]
    links = [
        Link(
            a.name,
            b.name,
            torch.rand(a.size, b.size, generator=numbers, dtype=torch.float64)
            * (1 - lowest)
            + lowest,
        )
        for a, b in pairwise(layers)
    ]
    return FlowGraph(layers, links)


def entries(graph):
    """Every connection as (source node, target node, weight)."""
    return [
        ((source, row), (target, column), value)
        for (source, target), matrix in dense(graph).items()
        for row, line in enumerate(matrix)
        for column, value in enumerate(line)
        if value
    ]


def lines(ax):
    """Widths, colors and ends of the links drawn: those that count, and the weak."""
    flow, weak = (c for c in ax.collections if isinstance(c, LineCollection))
    return flow, weak


def dots(ax):
    """Place, area and fill of every node drawn."""
    return [
        (tuple(place), area, to_hex(collection.get_facecolors()[0]))
        for collection in ax.collections
        if isinstance(collection, PathCollection)
        for place, area in zip(
            collection.get_offsets(), collection.get_sizes(), strict=True
        )
    ]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legends(ax):
    return {
        legend.get_title().get_text().split(":")[0]: [
            text.get_text() for text in legend.get_texts()
        ]
        for legend in ax.artists
        if isinstance(legend, Legend)
    }


# --- what is drawn --------------------------------------------------------------------


def test_width_is_flow_relative_to_the_strongest_link_into_the_layer(ax):
    graph = chain(3, 3, 2)
    plot_flow(graph, ax, links_per_node=9)
    largest = {}
    for _, (layer, _), weight in entries(graph):
        largest[layer] = max(largest.get(layer, 0.0), weight)
    relative = sorted(weight / largest[node[0]] for _, node, weight in entries(graph))
    flow, weak = lines(ax)
    widths = np.sort(flow.get_linewidths())
    # Affine in the relative flow, from a hairline to the widest.
    assert widths == pytest.approx(np.interp(relative, [0, 1], [0.25, 3.2]))
    assert len(weak.get_paths()) == 0


def test_size_is_betweenness_and_color_is_community(ax):
    graph = chain(4, 5, 3, lowest=0.1)
    plot_flow(graph, ax)
    betweenness = torch.cat(list(betweenness_centrality(graph).values()))
    relative = np.sort((betweenness / betweenness.max()).numpy())
    drawn = dots(ax)
    areas = np.sort([area for _, area, _ in drawn])
    assert areas == pytest.approx(np.interp(relative, [0, 1], [16, 260]))
    groups = torch.cat(list(communities(graph).values())).bincount()
    for group, count in enumerate(groups.tolist()):
        fill = to_hex(np.array(PALETTE[group]) / 255)
        assert sum(color == fill for _, _, color in drawn) == count


def test_communities_differ_in_shape_as_well_and_beyond_seven_are_grey(ax):
    graph = chain(9, 9, 1)
    apart = {"layer0": torch.arange(9), "layer1": torch.arange(9) % 9}
    apart["layer2"] = torch.zeros(1, dtype=torch.int64)
    plot_flow(graph, ax, community=apart)
    shapes, fills = set(), set()
    for collection in ax.collections:
        if isinstance(collection, PathCollection) and len(collection.get_offsets()):
            shapes.add(collection.get_paths()[0].vertices.tobytes())
            fills.add(to_hex(collection.get_facecolors()[0]))
    assert len(fills) == 8
    assert len(shapes) == 7  # the gray ones are round, as the first
    assert legends(ax)["Color, shape"] == [*"0123456", "smaller ones"]


@settings(max_examples=40)
@given(flow_graphs(max_size=5))
def test_the_strongest_links_are_drawn_and_their_share_is_stated(graph):
    ax = Figure().add_axes((0, 0, 1, 1))
    plot_flow(graph, ax, links_per_node=2)
    flow, _ = lines(ax)
    expected = set()
    everything = entries(graph)
    for side, count in ((1, 2), (0, 1)):
        for node in {entry[side] for entry in everything}:
            mine = [entry for entry in everything if entry[side] == node]
            mine.sort(key=lambda entry: -abs(entry[2]))
            # Which of equals is drawn does not matter here: count them all.
            least = abs(mine[min(count, len(mine)) - 1][2])
            expected |= {entry for entry in mine if abs(entry[2]) >= least}
    drawn = len(flow.get_paths())
    assert drawn <= len(expected)
    strengths = sorted({abs(weight) for *_, weight in everything})
    if len(strengths) == len(everything):
        assert drawn == len(expected)
        into, kept = {}, {}
        for entry in everything:
            layer = entry[1][0]
            into[layer] = into.get(layer, 0.0) + abs(entry[2])
            kept[layer] = kept.get(layer, 0.0) + abs(entry[2]) * (entry in expected)
        shares = [kept[layer] / into[layer] for layer in into] or [0.0]
        percent = 100 * sum(shares) / len(shares)
        assert texts(ax)[0] == (
            f"Drawn: {drawn} of {len(everything)} links, {percent:.0f} % of the flow "
            "(mean over layers)"
        )


def test_layers_stand_from_left_to_right_and_skips_are_bent(ax):
    graph = chain(2, 3, 2)
    skip = Link("layer0", "layer2", torch.ones(2, 2, dtype=torch.float64))
    plot_flow(FlowGraph(graph.layers, [*graph.links, skip]), ax, links_per_node=9)
    xs = sorted({place[0] for place, _, _ in dots(ax)})
    assert len(xs) == 3
    flow, _ = lines(ax)
    bent = 0
    for path in flow.get_paths():
        ends = path.vertices[[0, -1]]
        assert ends[0, 0] < ends[1, 0]
        if ends[1, 0] - ends[0, 0] > 1.5 * (xs[1] - xs[0]):
            assert path.vertices[:, 1].max() > ends[:, 1].max() - 1e-9
            middle = path.vertices[len(path.vertices) // 2, 1]
            assert middle > ends[:, 1].mean() + 0.01
            bent += 1
        else:
            # Rises or falls all the way, within its ends.
            steps = np.diff(path.vertices[:, 1])
            assert (steps >= 0).all() or (steps <= 0).all()
    assert bent == 4


def test_wide_layers_are_folded_to_the_nodes_that_carry_most_flow(ax):
    graph = chain(4, 30, 3)
    plot_flow(graph, ax, max_nodes=5)
    assert "and 25 more" in texts(ax)
    best = flow_shares(graph)["layer1"].argsort(descending=True)[:5]
    numbers = {text for text in texts(ax) if text.isdigit()}
    assert numbers == {str(n) for n in best.tolist()}
    assert len(dots(ax)) == 4 + 5 + 3


def test_an_image_is_drawn_as_its_pixels_with_the_flow_out_of_each(ax):
    layers = [
        Layer("image", 50, "input", shape=(2, 5, 5)),
        Layer("y", 3, "output"),
    ]
    weight = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    plot_flow(FlowGraph(layers, [Link("image", "y", weight)]), ax)
    (image,) = ax.images
    expected = weight.double().sum(1).view(2, 5, 5).sum(0)
    assert np.asarray(image.get_array()) == pytest.approx(expected.numpy())
    assert len(dots(ax)) == 3
    # Links start at the middle of their pixel.
    left, right, bottom, top = image.get_extent()
    flow, _ = lines(ax)
    best = weight.topk(3, dim=0).indices.flatten() % 25
    starts = {
        (round(left + (n % 5 + 0.5) * (right - left) / 5, 6),
         round(top - (n // 5 + 0.5) * (top - bottom) / 5, 6))
        for n in best.tolist()
    }  # fmt: skip
    drawn = {tuple(path.vertices[0].round(6).tolist()) for path in flow.get_paths()}
    assert drawn == starts
    assert "pixel: flow out" in legends(ax)["Size"]


def test_dead_nodes_are_hollow(ax):
    graph = chain(2, 3, 2)
    first, second = (link.weight.clone() for link in graph.links)
    first[:, 1] = 0.0  # layer1[1] hears nothing
    second[2] = 0.0  # layer1[2] tells nothing
    ends = (link.ends for link in graph.links)
    links = [
        Link(*end, weight) for end, weight in zip(ends, (first, second), strict=True)
    ]
    plot_flow(FlowGraph(graph.layers, links), ax)
    assert sum(fill == "#ffffff" for *_, fill in dots(ax)) == 2
    assert legends(ax)["Color, shape"][-1] == "hollow: dead"


@pytest.mark.parametrize(
    "threshold", [0.5, {("layer0", "layer1"): 0.5, ("layer1", "layer2"): 0.5}]
)
def test_weak_links_are_grey_and_count_for_nothing(ax, threshold):
    graph = chain(4, 4, 4)
    plot_flow(graph, ax, threshold=threshold, links_per_node=9)
    flow, weak = lines(ax)
    strong = [entry for entry in entries(graph) if entry[2] >= 0.5]
    assert len(flow.get_paths()) == len(strong)
    assert len(weak.get_paths()) == 32 - len(strong)
    assert to_hex(weak.get_colors()[0]) == WEAK
    assert texts(ax)[0].startswith(
        f"Drawn: {len(strong)} of {len(strong)} links, 100 %"
    )
    assert "below threshold" in legends(ax)["Width"]
    kept = FlowGraph(
        graph.layers,
        [
            Link(*link.ends, torch.where(link.weight >= 0.5, link.weight, 0.0))
            for link in graph.links
        ],
    )
    largest = max(b.max() for b in betweenness_centrality(kept).values())
    assert legends(ax)["Size"][0] == f"{largest:.2g}"


def test_insignificant_links_are_grey_and_count_for_nothing(ax):
    graph = chain(3, 3, 3)
    first, second = graph.links
    chance = torch.full((3, 3), 0.5)
    chance[0, 1] = 0.002  # the tenth of 18: adjusted 0.0036
    links = [replace(first, pvalue=torch.full((3, 3), 1e-6))]
    links.append(replace(second, pvalue=chance))
    tested = FlowGraph(graph.layers, links)
    plot_flow(tested, ax, links_per_node=9)
    flow, weak = lines(ax)
    assert (len(flow.get_paths()), len(weak.get_paths())) == (10, 8)
    assert to_hex(weak.get_colors()[0]) == WEAK
    assert texts(ax)[0].startswith("Drawn: 10 of 10 links, 100 %")
    assert "not significant" in legends(ax)["Width"]
    # Two of the last layer, and two of the one before it.
    assert sum(fill == "#ffffff" for *_, fill in dots(ax)) == 4
    ax.clear()
    plot_flow(tested, ax, links_per_node=9, fdr=0.003, threshold=0.0)
    assert len(lines(ax)[1].get_paths()) == 9
    assert "below threshold or not significant" in legends(ax)["Width"]
    ax.clear()
    plot_flow(tested.significant(), ax, links_per_node=9)
    assert "not significant" not in legends(ax)["Width"]


def test_a_threshold_may_hold_for_some_links_only(ax):
    graph = chain(3, 3, 3)
    plot_flow(graph, ax, threshold={("layer1", "layer2"): 2.0}, links_per_node=9)
    flow, weak = lines(ax)
    assert len(flow.get_paths()) == len(weak.get_paths()) == 9
    # Nothing reaches the last layer or leaves the one before it.
    assert sum(fill == "#ffffff" for *_, fill in dots(ax)) == 6


def test_negative_flow_is_red_and_explained(ax):
    graph = chain(2, 2, 1)
    first, second = graph.links
    plot_flow(FlowGraph(graph.layers, [first, Link(*second.ends, -second.weight)]), ax)
    flow, _ = lines(ax)
    red = [tuple(color[:3]) == to_rgba(NEGATIVE)[:3] for color in flow.get_colors()]
    assert sum(red) == 2
    assert "negative" in legends(ax)["Width"]


def test_the_legends_explain_all_three_encodings(ax):
    plot_flow(chain(3, 4, 2), ax)
    found = legends(ax)
    assert list(found) == ["Width", "Size", "Color, shape"]
    assert found["Width"] == ["100%", "50%", "10%"]
    assert len(found["Size"]) == 3
    drawn = [legend for legend in ax.artists if isinstance(legend, Legend)]
    boxes = [legend.get_window_extent() for legend in drawn]
    whole = ax.get_window_extent()
    for box in boxes:
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_names_stand_where_their_layers_and_nodes_are(ax):
    layers = [
        Layer(
            "measurements",
            2,
            "input",
            labels=("height", "a name of more letters than fit"),
        ),
        Layer("y", 1, "output", labels=("yes",)),
    ]
    plot_flow(FlowGraph(layers, [Link("measurements", "y", torch.ones(2, 1))]), ax)
    found = texts(ax)
    assert {"measurements", "2 nodes\n", "height", "a name of more letters …"} <= set(
        found
    )
    assert {"y", "1 node\n100 % drawn", "yes"} <= set(found)


def test_numbers_stand_clear_of_their_nodes_whatever_the_shape(ax):
    graph = chain(3, 6, 2)
    community = {
        layer.name: torch.arange(layer.size) for layer in graph.layers
    }  # a shape for each
    plot_flow(graph, ax, community=community)
    places = [
        (ax.transData.transform(place), (area**0.5 / 2) * ax.figure.dpi / 72)
        for place, area, _ in dots(ax)
    ]
    ax.figure.canvas.draw()
    hidden = [text for text in ax.texts if text.get_text() in "012345"]
    assert len(hidden) == 6
    for text in hidden:
        node = ax.transData.transform(text.xy)
        (radius,) = {r for at, r in places if np.allclose(at, node)}
        assert text.get_window_extent().x0 >= node[0] + radius


def test_all_text_lies_within_the_figure():
    for graph in (chain(4, 8, 5, 3), chain(*[6] * 14)):
        figure = plot_flow(graph).figure
        figure.canvas.draw()
        whole = figure.bbox
        for text in figure.axes[0].texts:
            box = text.get_window_extent()
            assert whole.x0 <= box.x0
            assert box.x1 <= whole.x1
            assert whole.y0 <= box.y0
            assert box.y1 <= whole.y1, text


# --- figures and axes -----------------------------------------------------------------


def test_given_axes_are_used_and_pyplot_is_left_alone(ax):
    before = plt.get_fignums()
    assert plot_flow(chain(2, 2, 1), ax) is ax
    assert plt.get_fignums() == before == []


def test_without_axes_there_is_a_pyplot_figure_wider_for_deeper_graphs():
    shallow = plot_flow(chain(2, 2, 1)).figure
    deep = plot_flow(chain(*[2] * 25)).figure
    assert plt.get_fignums() == [shallow.number, deep.number]
    assert deep.get_figwidth() > 1.5 * shallow.get_figwidth()


def test_small_axes_inside_a_larger_figure(tmp_path):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax in axes:
        plot_flow(chain(3, 4, 2), ax)
    figure.savefig(tmp_path / "two.png")


@settings(max_examples=25)
@given(flow_graphs())
def test_every_graph_can_be_drawn(graph):
    figure = Figure()
    plot_flow(graph, figure.add_axes((0, 0, 1, 1)))
    figure.canvas.draw()


def test_graphs_of_one_layer_can_be_drawn(ax):
    plot_flow(FlowGraph([Layer("lone", 4, "hidden")], []), ax)
    assert len(dots(ax)) == 4
    assert texts(ax)[0].startswith("Drawn: 0 of 0 links, 0 % of the flow")


def test_random_state_stays(ax, rng_untouched):
    with rng_untouched():
        plot_flow(chain(3, 4, 2), ax)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments", "words"),
    [
        (TypeError, {"graph": "graph"}, "got str"),
        (ValueError, {"links_per_node": 0}, "links_per_node"),
        (ValueError, {"max_nodes": 0}, "max_nodes"),
        (ValueError, {"threshold": -0.1}, "threshold"),
        (ValueError, {"fdr": 0.0}, "fdr"),
        (TypeError, {"fdr": "5 %"}, "fdr"),
        (ValueError, {"threshold": float("nan")}, "threshold"),
        (ValueError, {"threshold": {("layer0", "layer9"): 0.1}}, "layer9"),
        (ValueError, {"betweenness": {"layer0": torch.zeros(2)}}, "betweenness"),
        (ValueError, {"community": {"layer0": torch.zeros(2)}}, "partition"),
    ],
)
def test_bad_arguments_are_refused_before_a_figure_is_made(error, arguments, words):
    with pytest.raises(error, match=words):
        plot_flow(**{"graph": chain(2, 2, 1), **arguments})
    assert plt.get_fignums() == []
