"""Path analysis: Wright's rule on linear networks, and paths listed one by one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from oracles_flow import paths
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy_models import Net, ResNet, no_hooks_of_ours

from captum_nif import (
    FlowGraph,
    GaussianCopula,
    NIFAttribution,
    betweenness_centrality,
    plot_flow,
    summarize,
)

COPULA = GaussianCopula()
DRAWS = 4096
"""As many as a fit makes; the standard error of a correlation is 1 / 64 at most."""


def deviations(values, like):
    """Standard deviations from the mean of a sample."""
    like = like.double()
    return (values.double() - like.mean(0)) / like.std(0, correction=0)


# --- linear networks ------------------------------------------------------------------


def linear(*widths):
    parts = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*parts).eval()


def coefficients(weight, deviation):
    """Correlation of each independent input with each output of a linear layer."""
    scaled = weight.detach().double() * deviation
    return (scaled / scaled.norm(dim=1, keepdim=True)).T


def test_links_of_a_linear_network_are_wrights_coefficients():
    model = linear(5, 4, 3)
    x = torch.randn(1000, 5) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    graph = NIFAttribution(model, preset="gradient_free").fit(x).flow()
    hidden = model[0](x).detach()
    for link, layer, fed in zip(graph.links, model, (x, hidden), strict=True):
        wanted = coefficients(layer.weight, fed.double().std(0))
        assert (link.weight - wanted).abs().max() < 5 / math.sqrt(DRAWS)
        assert link.weight.abs().max() <= 1


def test_products_of_links_are_the_correlation_of_the_ends():
    model = linear(5, 4, 3)
    x = torch.randn(3000, 5)
    matrix = NIFAttribution(model, preset="gradient_free").fit(x).attribution_matrix()
    first = coefficients(model[0].weight, x.double().std(0))
    second = coefficients(model[1].weight, model[0](x).detach().double().std(0))
    assert (matrix - first @ second).abs().max() < 5 * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize("widths", [(4, 2), (6, 5, 3)])
def test_attributions_add_up_to_the_deviation_of_the_class(widths):
    model = linear(*widths)
    x, query = torch.randn(3000, widths[0]), torch.randn(100, widths[0])
    nif = faithful(model, x)
    given = nif._fitted[0].flow.values["1" if len(widths) > 2 else "0"]
    wanted = deviations(model(query).detach(), given)[:, 1]
    total = nif.attribute(query, 1).sum(1).double()
    # each layer's coefficients err by 1 / 64 at most, times the inputs' deviations
    error = len(widths) * deviations(query, x).norm(dim=1) / math.sqrt(DRAWS)
    assert ((total - wanted).abs() < 5 * error).all()


def test_depth_does_no_harm_where_units_are_uncorrelated():
    # orthogonal layers keep independent inputs of one scale uncorrelated
    model = linear(6, 6, 6, 6)
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    x, query = torch.randn(3000, 6), torch.randn(100, 6)
    nif = faithful(model, x)
    wanted = deviations(model(query).detach(), model(x).detach())[:, 1]
    total = nif.attribute(query, 1).sum(1).double()
    error = 4 * deviations(query, x).norm(dim=1) / math.sqrt(DRAWS)
    assert ((total - wanted).abs() < 5 * error).all()


def test_gains_of_a_linear_network_are_one():
    model = linear(5, 4, 3)
    nif = NIFAttribution(model, preset="gradient_free").fit(torch.randn(1000, 5))
    basis, _ = nif._fitted
    query = nif._method.query(basis, (torch.randn(200, 5),), (), 64)
    _, gains = basis.flow._sample(query)
    for gain in gains.values():
        assert abs(float(gain.mean()) - 1) < 0.02
        assert (gain - 1).abs().max() < 0.15


# --- any network, one path at a time --------------------------------------------------


def network():
    return nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)
    ).eval()


def two_branches():
    """Two inputs, a shortcut, and a merge: no chain."""
    return Net(
        lambda m, x, y: m.c(torch.cat([m.a(x).relu(), m.b(y).tanh(), y], 1)),
        a=nn.Linear(3, 2),
        b=nn.Linear(2, 2),
        c=nn.Linear(6, 2),
    ).eval()


NETWORKS = {"chain": (network, (4,)), "branches": (two_branches, (3, 2))}


@pytest.mark.parametrize("sampling", ["observed", "independent"])
@pytest.mark.parametrize("name", NETWORKS)
def test_attributions_are_sums_over_listed_paths(name, sampling):
    make, widths = NETWORKS[name]
    model = make()
    x = tuple(torch.randn(100, width) for width in widths)
    nif = NIFAttribution(
        model, scale="correlation", sampling=sampling, estimator=COPULA
    )
    basis, _ = nif.fit(x)._fitted
    flow, graph = basis.flow, nif.flow()
    end = graph.layers[-1].name
    correlations = {link.ends: link.weight.tolist() for link in graph.links}
    found = nif.attribute(x, 1)
    observed = run(model, x)
    for i in range(3):
        gains, entered = {}, {}
        for layer in graph.layers:
            value = observed[layer.name][i]
            # a layer hands on values of the background, and gives others when fed
            moved = deviations(value, flow.passed_on[layer.name])
            entered[layer.name] = moved.tolist()
            came = deviations(value, flow.values[layer.name]).tolist()
            for j in range(layer.size):
                expected = sum(
                    rows[a][j] * entered[source][a]
                    for (source, target), rows in correlations.items()
                    if target == layer.name
                    for a in range(len(rows))
                )
                gains[layer.name, j] = (came[j] * expected + 1) / (expected**2 + 1)
        weighed = {
            (source, target): [
                [
                    r * (1 if target == end else gains[target, j])
                    for j, r in enumerate(row)
                ]
                for row in rows
            ]
            for (source, target), rows in correlations.items()
        }
        for part, layer in zip(found, graph.inputs, strict=True):
            for element in range(layer.size):
                listed = sum(paths(weighed, layer.name, element, end, 1))
                wanted = entered[layer.name][element] * listed
                assert float(part[i, element]) == pytest.approx(wanted, abs=1e-5)


def run(model, x):
    """Values of all layers, by name."""
    with torch.no_grad():
        if len(x) == 1:
            a = model[:2](x[0])
            b = model[2:4](a)
            return {"input": x[0], "0": a, "2": b, "4": model[4](b)}
        a, b = model.a(x[0]).relu(), model.b(x[1]).tanh()
        return {"input0": x[0], "input1": x[1], "a": a, "b": b, "c": model(*x)}


# --- every combination of options -----------------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 3),
    ).eval()


def images(count=256):
    return torch.randn(count, 1, 8, 8)


def faithful(model, x, extra=None):
    """Fitted in large batches, so that independent inputs take few passes."""
    return NIFAttribution(model, preset="gradient_free").fit(
        x, additional_forward_args=extra, batch_size=len(x)
    )


EXAMPLES = {
    "cnn": (cnn, images),
    "resnet": (lambda: ResNet().eval(), images),
    "two inputs": (two_branches, lambda: (torch.randn(256, 3), torch.randn(256, 2))),
}


def flat(attributions):
    parts = attributions if isinstance(attributions, tuple) else (attributions,)
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("example", ["cnn", "resnet", "two inputs"])
@pytest.mark.parametrize("sampling", ["observed", "independent"])
@pytest.mark.parametrize("nodes", ["channel", "neuron"])
@pytest.mark.parametrize("scale", ["nats", "correlation"])
def test_attributions_are_the_path_sums_of_the_graphs(example, sampling, nodes, scale):
    make, data = EXAMPLES[example]
    model, x = make(), data()
    nif = NIFAttribution(
        model,
        estimator=COPULA,
        scale=scale,
        nodes=nodes,
        sampling=sampling,
    ).fit(x, batch_size=256)
    first = tuple(part[:4] for part in x) if isinstance(x, tuple) else x[:4]
    targets = [0, 1, 1, 0]
    graphs = nif.flow(first, targets)
    if scale == "nats" and not is_chain(graphs[0]):
        graphs = [graph.normalized("node") for graph in graphs]
    sums = [graph.path_sums(t) for graph, t in zip(graphs, targets, strict=True)]
    found = flat(nif.attribute(first, targets)).double()
    torch.testing.assert_close(found, torch.stack(sums).double(), rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 0.01


def is_chain(graph):
    targets = [link.target for link in graph.links]
    return len(set(targets)) == len(targets)


def test_a_neuron_inside_is_explained_and_its_graph_ends_there():
    model, x = cnn(), images()
    nif = faithful(model, x)
    node = (2, 1, 3)  # channel, row and column of a 3 x 4 x 4 map
    index = 2 * 16 + 1 * 4 + 3
    found = nif.attribute(x[:3], node, layer="0")
    graphs = nif.flow(x[:3], node, layer="0")
    sums = torch.stack([graph.path_sums(index) for graph in graphs])
    torch.testing.assert_close(flat(found), sums.float())
    others = torch.arange(48) != index
    assert not graphs[0].path_sums()[:, others].any()
    seen = found.abs().sum((0, 1)) > 0
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[1:5, 5:8] = True  # rows 2, 3 and columns 6, 7 pooled; 3 x 3 kernels
    assert not (seen & ~wanted).any()
    assert seen.sum() > 6, "some of the 12 pixels are too weak to tell from chance"
    population = nif.flow(target=node, layer="0")
    assert population.links[0].weight.is_sparse
    assert not population.path_sums()[:, others].any()
    torch.testing.assert_close(
        population.path_sums(index), nif.attribution_matrix(layer="0")[:, index]
    )


def test_groups_of_features_share_one_attribution():
    model, x = cnn(), images()
    nif = faithful(model, x)
    side = torch.arange(4).repeat_interleave(2)
    mask = 4 * side[:, None] + side
    found = nif.attribute(x[:3], 1, feature_mask=mask)[:, 0]
    for group in range(16):
        assert (found[:, mask == group].std(1) == 0).all()
    graphs = nif.flow(x[:3], 1, feature_mask=mask)
    sums = torch.stack([graph.path_sums(1) for graph in graphs]).float()
    torch.testing.assert_close(found[:, ::2, ::2].flatten(1), sums)
    assert nif.attribution_matrix(feature_mask=mask).shape == (16, 3)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (lambda: Net(lambda m, x: m.a(x[:, None]).tanh(), a=nn.Linear(1, 3)), (200,)),
        (lambda: nn.Linear(4, 2), (200, 4)),
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
            (201, 4),
        ),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(20, 2)
            ),
            (201, 5, 3),
        ),
    ],
    ids=["one number a sample", "one layer", "norm", "tokens"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_of_inputs(model, x, dtype):
    model, x = model().to(dtype).eval(), torch.randn(x, dtype=dtype)
    nif = NIFAttribution(model, preset="gradient_free").fit(x, batch_size=100)
    found = nif.attribute(x, 1)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    assert found.abs().max() > 0.1


def test_token_ids_get_nothing_and_floats_beside_them_do():
    model = Net(
        lambda m, i, x: m.c(torch.cat([m.e(i).flatten(1), m.a(x).relu()], 1)),
        e=nn.Embedding(9, 3),
        a=nn.Linear(2, 3),
        c=nn.Linear(9, 2),
    )
    x = torch.randint(9, (200, 2)), torch.randn(200, 2)
    nif = NIFAttribution(model, preset="gradient_free").fit(x, batch_size=150)
    with pytest.warns(UserWarning, match="input0 holds token ids"):
        ids, numbers = nif.attribute(x, 1)
    assert not ids.any()
    assert numbers.any()
    with pytest.warns(UserWarning, match="input0 holds token ids"):
        assert not any(part.any() for part in nif.attribute(x, (1, 1), layer="e"))


@pytest.mark.parametrize("extra", [2.0, (torch.rand(256, 1), 3)])
def test_further_arguments(extra):
    model = Net(
        lambda m, x, scale, power=1: m.b((m.a(x) * scale**power).relu()),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    )
    x = torch.randn(256, 4)
    nif = faithful(model, x, extra)
    found = nif.attribute(x, 1, additional_forward_args=extra)
    graphs = nif.flow(x, 1, additional_forward_args=extra)
    sums = torch.stack([graph.path_sums(1) for graph in graphs])
    torch.testing.assert_close(found, sums.float())


# --- in use ---------------------------------------------------------------------------


def test_backgrounds_of_every_kind_give_the_same():
    model, x = cnn(), images(200)
    wanted = NIFAttribution(model, preset="gradient_free").fit(x, batch_size=150)
    loader = DataLoader(TensorDataset(x, torch.zeros(200)), batch_size=150)
    streamed = NIFAttribution(model, preset="gradient_free").fit(loader)
    per_call = NIFAttribution(model, preset="gradient_free")
    found = wanted.attribute(x[:5], 2)
    assert torch.equal(streamed.attribute(x[:5], 2), found)
    assert torch.equal(per_call.attribute(x[:5], 2, background=loader), found)
    assert torch.equal(wanted.attribute(x[:5], 2, internal_batch_size=5), found)
    assert not per_call.is_fitted


def test_a_batch_may_be_its_own_population():
    model, x = cnn(), images(40)
    nif = NIFAttribution(model, preset="gradient_free")
    found = nif.attribute(x, 1)
    assert torch.equal(found, nif.attribute(x, 1, background=x))
    with pytest.raises(ValueError, match="31 samples are too few"):
        NIFAttribution(model, preset="gradient_free").attribute(x[:31], 1)


def test_the_caller_keeps_what_is_his(rng_untouched):
    model, x = cnn().requires_grad_(), images().requires_grad_()
    before = x.detach().clone(), {k: v.clone() for k, v in model.state_dict().items()}
    with rng_untouched():
        first, again = (faithful(model, x).attribute(x, 1) for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert torch.equal(x, before[0])
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert no_hooks_of_ours(model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_under_inference_mode():
    model, x = cnn(), images()
    with torch.inference_mode():
        nif = faithful(model, x)
        inside = nif.attribute(x, 1)
    assert torch.equal(nif.attribute(x, 1), inside)


def test_with_captums_tools():
    model, x = cnn(), images()
    nif = faithful(model, x)
    found = nif.attribute(x[:3], 1)
    noisy = NoiseTunnel(nif).attribute(x[:3], nt_samples=4, stdevs=1e-4, target=1)
    torch.testing.assert_close(noisy, found, rtol=0.1, atol=0.01)
    assert (sensitivity_max(nif.attribute, x[:3], target=1) < 1).all()

    def perturb(inputs):
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    assert infidelity(model, perturb, x[:3], found, target=1).isfinite().all()


def test_graphs_with_sparse_links_are_graphs(tmp_path):
    model, x = cnn(), images()
    nif = faithful(model, x)
    for graph in (nif.flow(), *nif.flow(x[:1], 1)):
        assert graph.links[0].weight.is_sparse
        graph.save(tmp_path / "flow")
        assert FlowGraph.load(tmp_path / "flow") == graph
        assert betweenness_centrality(graph)["0"].shape == (48,)
        plot_flow(graph).figure.clear()
        assert "bottleneck" in str(summarize(graph)).lower()


@pytest.mark.parametrize("dead", ["weights", "background"])
def test_where_nothing_flows_all_is_zero(dead):
    model, x = cnn(), images()
    if dead == "weights":
        nn.init.zeros_(model[0].weight)
    background = x if dead == "weights" else torch.ones_like(x)
    nif = faithful(model, background)
    assert not nif.attribute(x, 1).any()
    assert not nif.attribution_matrix().any()


def test_too_few_samples_for_the_estimator():
    nif = NIFAttribution(network(), preset="gradient_free")
    with pytest.raises(ValueError, match=r"2 samples.*needs at least 3"):
        nif.fit(torch.randn(2, 4))
    assert not nif.is_fitted


def test_samples_that_do_not_fit_the_model():
    nif = NIFAttribution(network(), preset="gradient_free")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        nif.fit(torch.randn(40, 5))
    with pytest.raises(ValueError, match="background is empty"):
        nif.fit([])


def test_signs_say_for_and_against():
    # the logit rises with the first feature, falls with the second, ignores the third
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    nif = NIFAttribution(model, preset="gradient_free").fit(torch.randn(1000, 3))
    found = nif.attribute(torch.tensor([[2.0, 2.0, 2.0]]))[0]
    assert found[0] > 0.5
    assert found[1] < -0.5
    assert abs(found[2]) < 0.2
    assert F.cosine_similarity(found[:2], torch.tensor([1.0, -1.0]), dim=0) > 0.95
