"""Uncertainty, from the model on: p-values of links and standard errors."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from captum_nif import FlowGraph, MixedKSG, NIFAttribution
from captum_nif.flow.jackknife import jackknife, leave_groups_out
from captum_nif.flow.permutation_test import link_pvalues


def net():
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    first.bias.data[0] = -100.0  # dead
    return nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3)).eval()


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x, z):
        h = torch.tanh(self.a(x + z))
        return self.c(h + self.b(h).relu())


def background(samples=120, seed=1):
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))


# --- links ----------------------------------------------------------------------------


def test_population_links_carry_the_pvalues_of_their_nodes():
    model, x = net(), background()
    nif = NIFAttribution(model, estimator=MixedKSG(k=5)).fit(x)
    graph = nif.flow(significance=True)
    hidden = model[:2](x).detach()
    values = {"input": x, "0": hidden, "2": model(x).detach()}
    for link in graph.links:
        wanted = link_pvalues(MixedKSG(k=5), values[link.source], values[link.target])
        assert torch.equal(link.pvalue, wanted)
    assert (graph.links[0].pvalue[:, 0] == 1).all()
    assert (graph.links[1].pvalue[0] == 1).all()
    plain = nif.flow()
    assert not plain.has_pvalues
    for with_pvalue, without in zip(graph.links, plain.links, strict=True):
        assert torch.equal(with_pvalue.weight, without.weight)


def test_links_to_other_targets_are_not_tested():
    nif = NIFAttribution(net()).fit(background())
    graph = nif.flow(target=1, significance=True)
    everything = nif.flow(significance=True)
    last, whole = graph.links[-1], everything.links[-1]
    assert (last.pvalue[:, [0, 2]] == 1).all()
    assert torch.equal(last.pvalue[:, 1], whole.pvalue[:, 1])


def test_significance_may_name_the_null_values_of_a_table():
    model, x = net(), background()
    nif = NIFAttribution(model).fit(x)
    link = nif.flow(significance=150).links[0]
    wanted = link_pvalues(MixedKSG(), x, model[:2](x).detach(), n_permutations=150)
    assert torch.equal(link.pvalue, wanted)
    with pytest.raises(ValueError, match="n_permutations must be at least 100, got 7"):
        nif.flow(significance=7)


def test_pvalues_are_of_groups_and_of_any_rule(tmp_path):
    mask = torch.tensor([[0, 0, 1, 1]])
    for options in (
        {"relevance": "joint"},
        {"beta": 0.01},
        {"scale": "correlation"},
        {"preset": "paper"},
    ):
        nif = NIFAttribution(net(), **options).fit(background())
        graph = nif.flow(feature_mask=mask, significance=True)
        assert graph.links[0].pvalue.shape == (2, 6)
        assert (graph.links[0].pvalue < 0.01).sum() >= 6
        graph.save(tmp_path / "graph")
        assert FlowGraph.load(tmp_path / "graph") == graph


def test_significance_is_of_the_population():
    x = background()
    with pytest.raises(ValueError, match=r"`population_graph\(significance=True\)`"):
        NIFAttribution(net()).fit(x).flow(x[:2], significance=True)


# --- standard errors ------------------------------------------------------------------


def refitted(model, x, groups, seed, explain, **options):
    """Standard errors by fitting anew without each group."""
    replicates = []
    for rows in leave_groups_out(len(x[0]), groups, seed):
        part = tuple(each[rows] for each in x)
        nif = NIFAttribution(model, **options).fit(part if len(part) > 1 else part[0])
        replicates.append(explain(nif))
    return jackknife(torch.stack(replicates))


@pytest.mark.parametrize(
    "options",
    [{}, {"preset": "paper"}, {"relevance": "joint"}, {"scale": "correlation"}],
)
def test_standard_errors_are_those_of_fitting_without_each_group(options):
    model, x, query = net(), background(), background(5, 2)
    nif = NIFAttribution(model, **options).fit(x)

    def explain(nif):
        return nif.attribute(query, target=[0, 1, 2, 0, 1]).double()

    found = nif.standard_error(query, target=[0, 1, 2, 0, 1], groups=4, seed=3)
    wanted = refitted(model, (x,), 4, 3, explain, **options)
    assert found.dtype == query.dtype
    assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-6)
    matrix = refitted(
        model, (x,), 4, 3, lambda nif: nif.attribution_matrix(), **options
    )
    assert torch.allclose(nif.standard_error(groups=4, seed=3), matrix, atol=1e-12)


def test_standard_errors_of_several_inputs_layers_and_groups():
    model = Skip().eval()
    x = torch.randn(80, 3), torch.randn(80, 3)
    query = torch.randn(2, 3), torch.randn(2, 3)
    nif = NIFAttribution(model).fit(x)
    found = nif.standard_error(query, target=1, groups=5)
    assert isinstance(found, tuple)
    for n in range(2):

        def explain(nif, n=n):
            return nif.attribute(query, target=1)[n].double()

        wanted = refitted(model, x, 5, 0, explain)
        assert torch.allclose(found[n].double(), wanted, rtol=1e-4, atol=1e-6)
    mask = torch.tensor([[0, 0, 1]]), torch.tensor([[2, 2, 2]])
    grouped = nif.standard_error(query, target=1, feature_mask=mask, groups=5)
    assert torch.equal(grouped[1], grouped[1][:, :1].expand(-1, 3))
    assert nif.standard_error(layer="b", groups=5).shape == (6, 5)
    assert nif.standard_error(query, target=4, layer="b", groups=5)[0].shape == (2, 3)


def test_standard_errors_where_layers_are_fed_independently():
    x, query = background(300), background(3, 2)
    nif = NIFAttribution(net(), preset="gradient_free").fit(x)
    graph = nif.flow(significance=True)
    assert graph.significant().links[1].weight.to_dense().count_nonzero() >= 12
    found = nif.standard_error(query, target=1, groups=3)
    assert found.shape == query.shape
    assert (found > 0).all()


def test_the_population_without_samples_keeps_its_batches():
    x = background(12)
    population = NIFAttribution(net()).fit(x)._fitted[0].population
    along = torch.arange(12)
    given = replace(
        population,
        batches=[(slice(0, 4), (along[:4], "all")), (slice(4, 12), (along[4:], "all"))],
    )
    part = given.subset(torch.tensor([1, 2, 5, 9]))
    assert torch.equal(part.values["input"], x[[1, 2, 5, 9]])
    assert [(rows, extra[0].tolist(), extra[1]) for rows, extra in part.batches] == [
        (slice(0, 2), [1, 2], "all"),
        (slice(2, 4), [5, 9], "all"),
    ]
    assert [rows for rows, _ in given.subset(torch.tensor([7])).batches] == [
        slice(0, 1)
    ]


def test_a_background_may_be_given_for_one_call():
    x, query = background(), background(3, 2)
    fitted = NIFAttribution(net()).fit(x).standard_error(query, target=0, groups=3)
    found = NIFAttribution(net()).standard_error(
        query, target=0, background=x, groups=3
    )
    assert torch.equal(found, fitted)


def test_standard_errors_are_the_scatter_over_independent_backgrounds():
    model, query = net(), background(8, 999)
    ksg = MixedKSG(k=5)

    def fitted(seed):
        return NIFAttribution(model, estimator=ksg).fit(background(200, seed))

    found = [
        (nif.attribute(query, target=0), nif.attribution_matrix())
        for nif in map(fitted, range(50))
    ]
    errors = [
        (nif.standard_error(query, target=0), nif.standard_error())
        for nif in map(fitted, range(50, 62))
    ]
    for values, estimates in zip(
        map(list, zip(*found, strict=True)), zip(*errors, strict=True), strict=True
    ):
        truth = torch.stack(values).var(0).mean()
        ratio = (torch.stack(estimates).square().mean() / truth).sqrt()
        assert 0.7 < ratio < 1.5


def test_standard_errors_need_a_background_and_enough_of_it():
    x = background(40)
    nif = NIFAttribution(net())
    with pytest.raises(RuntimeError, match="no population yet"):
        nif.standard_error(x, target=0)
    with pytest.raises(RuntimeError, match="no population yet"):
        nif.standard_error()
    nif.fit(x)
    with pytest.raises(ValueError, match=r"groups must be from 2 to .* 40, got 1"):
        nif.standard_error(x, target=0, groups=1)
    with pytest.raises(ValueError, match="`target` needs `inputs`"):
        nif.standard_error(target=0)
    few = NIFAttribution(net()).fit(x[:5])
    with pytest.raises(ValueError, match="without one of 3 groups has 3 samples"):
        few.standard_error(groups=3)


def test_random_state_stays(rng_untouched):
    nif = NIFAttribution(net()).fit(background())
    query = background(2, 2)
    with rng_untouched():
        nif.flow(significance=True)
        nif.standard_error(query, target=0, groups=3)
