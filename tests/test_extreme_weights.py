"""Weights at the ends of floating point: the same network, whatever its unit."""

from __future__ import annotations

import math

import pytest
import torch

from captum_nif import (
    FlowGraph,
    Layer,
    Link,
    betweenness_centrality,
    communities,
    flow_shares,
    gamma_sweep,
    modularity,
    path_flow,
    summarize,
    to_html,
)

LAYERS = [Layer("x", 3, "input"), Layer("h", 2, "hidden"), Layer("y", 2, "output")]


def graph(scale: float, sparse: bool = False, skip: bool = False) -> FlowGraph:
    """Weights that are whole multiples of a scale, exact also where it is tiny."""
    ends = [("x", "h"), ("h", "y"), *([("x", "y")] if skip else [])]
    sizes = {layer.name: layer.size for layer in LAYERS}
    links = []
    for n, (a, b) in enumerate(ends):
        numbers = torch.arange(sizes[a] * sizes[b]).view(sizes[a], sizes[b]) * 3 + n
        weight = (numbers % 7 + 1).double() * scale
        links.append(Link(a, b, weight.to_sparse() if sparse else weight))
    return FlowGraph(LAYERS, links)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1070, 2.0**-1000])
def test_analyses_do_not_depend_on_the_unit_of_weights(scale, sparse, skip):
    plain, extreme = graph(1.0, sparse, skip), graph(scale, sparse, skip)
    for analysis in (betweenness_centrality, communities, flow_shares, path_flow):
        expected = analysis(plain)
        for name, found in analysis(extreme).items():
            torch.testing.assert_close(found, expected[name], rtol=1e-12, atol=0)
    groups = communities(plain)
    assert math.isclose(modularity(extreme, groups), modularity(plain, groups))
    for step, other in zip(gamma_sweep(extreme), gamma_sweep(plain), strict=True):
        assert (step.count, step.gamma) == (other.count, other.gamma)
    assert summarize(extreme).bottleneck == summarize(plain).bottleneck
    assert "<html" in to_html(extreme)


def test_layers_of_very_different_units():
    """Shares within a chain do not compare its layers."""
    links = graph(1.0).links
    scaled = [
        Link(*link.ends, link.weight * 2.0**shift)
        for link, shift in zip(links, (1000, -1000), strict=True)
    ]
    for analysis in (flow_shares, path_flow):
        expected = analysis(graph(1.0))
        for name, found in analysis(FlowGraph(LAYERS, scaled)).items():
            torch.testing.assert_close(found, expected[name])
