"""Eq. 3 in loops, over all ways of cutting the work into blocks."""

import re

import pytest
import torch
from torch import Tensor

from captum_nif import MixedKSG
from captum_nif.flow import link_weights as links_module
from captum_nif.flow.link_weights import LinkRule

KSG = MixedKSG(k=3)
X, Y = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(5))
QUERY = torch.randn(3, 5, generator=torch.Generator().manual_seed(6))


def pair(x: Tensor, i: int, y: Tensor, j: int) -> float:
    return KSG.mi(x[:, i : i + 1], y[:, j : j + 1]).item()


@pytest.mark.parametrize("budget", [1, 40, 1 << 23])
def test_redundancy_sums_the_earlier_nodes(budget, monkeypatch):
    monkeypatch.setattr(links_module, "_BUDGET", budget)
    rule = LinkRule(KSG, beta=0.5)
    expected = [sum([pair(X, i, X, j) for j in range(i)], 0.0) for i in range(5)]
    torch.testing.assert_close(rule.redundancy(X).tolist(), expected)
    of_samples, of_queries = (
        rule.redundancy(X, query, pointwise=True) for query in (None, QUERY)
    )
    for found, pmi in (
        (of_samples, KSG.pmi(X, X)),
        (of_queries, KSG.pmi(X, X, (QUERY, QUERY))),
    ):
        for s in range(len(found)):
            sums = [pmi[s, i, :i].sum() for i in range(5)]
            torch.testing.assert_close(found[s], torch.stack(sums))
    torch.testing.assert_close(of_samples.mean(0), rule.redundancy(X))


def test_no_beta_no_redundancy():
    assert LinkRule(KSG).redundancy(X) == 0.0
    assert torch.equal(LinkRule(KSG).population(KSG.prepare(X), Y), KSG.mi(X, Y))


@pytest.mark.parametrize("relevance", ["pairwise", "joint"])
def test_weights_are_relevance_less_redundancy(relevance):
    rule = LinkRule(KSG, relevance, beta=0.25)
    x, y = KSG.prepare(X), KSG.prepare(Y)
    query = QUERY, QUERY.flip(1)
    population = rule.population(x, y, rule.redundancy(X))
    instances = rule.instances(x, y, query, rule.redundancy(X, QUERY, pointwise=True))
    joint, joint_query = KSG.joint(X, Y).mean(0), KSG.joint(X, Y, query)
    for i in range(5):
        redundancy = sum(pair(X, i, X, j) for j in range(i))
        pointwise = KSG.pmi(X, X, (QUERY, QUERY))[:, i, :i].sum(1)
        for j in range(5):
            whole = relevance == "joint"
            expected = joint[j].item() if whole else pair(X, i, Y, j)
            assert population[i, j].item() == pytest.approx(
                expected - 0.25 * redundancy, abs=1e-12
            )
            single = joint_query[:, j] if whole else KSG.pmi(X, Y, query)[:, i, j]
            torch.testing.assert_close(instances[:, i, j], single - 0.25 * pointwise)


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (TypeError, {"estimator": object()}, "must be a PMIEstimator such as MixedKSG"),
        (TypeError, {"estimator": MixedKSG}, "the class"),
        (ValueError, {"relevance": "all"}, "('pairwise', 'joint'), got 'all'"),
        (TypeError, {"beta": None}, "`beta` must be a number, got None"),
        (ValueError, {"beta": float("inf")}, "`beta` must be finite and >= 0"),
    ],
    ids=str,
)
def test_refused(error, options, words):
    with pytest.raises(error, match=re.escape(words)):
        LinkRule(**{"estimator": KSG, **options})


def test_sizes_beyond_which_redundancy_is_refused():
    limit = links_module.MAX_REDUNDANCY_NODES
    LinkRule(KSG).check_size("input", limit + 1)
    LinkRule(KSG, beta=0.1).check_size("input", limit)
    with pytest.raises(ValueError, match=r"'input'.*feature_mask"):
        LinkRule(KSG, beta=0.1).check_size("input", limit + 1)
