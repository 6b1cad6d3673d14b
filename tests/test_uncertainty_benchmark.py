"""The benchmark of uncertainty: known links are known, and a small run writes."""

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from benchmarks.uncertainty import __main__ as uncertainty
from benchmarks.uncertainty import errors as uncertainty_errors
from benchmarks.uncertainty.__main__ import main
from benchmarks.uncertainty.errors import Repeated, compare, make_case
from benchmarks.uncertainty.links import (
    KINDS,
    LAYERS,
    LEVELS,
    LINKED,
    NODES,
    Discoveries,
    discoveries,
    existing,
    false_positives,
    linked_layers,
    zeros,
)
from benchmarks.uncertainty.tables import false_row, ratio, wilson
from captum_nif import GaussianCopula

COPULA = GaussianCopula()


# --- links ----------------------------------------------------------------------------


def test_linked_layers_correlate_where_links_exist_and_nowhere_else():
    x, y = linked_layers(np.random.default_rng(0), 40_000, 0.4)
    found = np.corrcoef(x.T, y.T)
    among_x, among_y = found[:NODES, :NODES], found[NODES:, NODES:]
    between = torch.from_numpy(found[:NODES, NODES:])
    truth = torch.zeros(NODES, NODES, dtype=torch.float64)
    for j in range(NODES):
        truth[j, j] = truth[(j + 1) % NODES, j] = 0.4
    assert torch.equal(existing(), truth != 0)
    assert int(existing().sum()) == LINKED
    scatter = 5 / math.sqrt(40_000)
    assert (between - truth).abs().max() < scatter
    assert np.abs(among_x - np.eye(NODES)).max() < scatter
    neighbors = np.roll(np.eye(NODES), 1, 0) + np.roll(np.eye(NODES), -1, 0)
    assert np.abs(among_y - np.eye(NODES) - 0.16 * neighbors).max() < scatter
    assert np.abs(y.var(0).numpy() - 1).max() < 2 * scatter


def test_kinds_have_the_ties_they_are_named_for():
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((10_000, 4)))
    for share in (0.5, 0.9, 0.97):
        found = (zeros(share)(z) == 0).double().mean(0)
        assert (found - share).abs().max() < 0.03
    graded = (zeros(0.2, 0.95)(z) == 0).double().mean(0)
    assert (graded - torch.tensor([0.2, 0.45, 0.7, 0.95])).abs().max() < 0.03
    of_x, of_y = KINDS["constant, continuous"]
    assert (of_x(z) == 0).all()
    assert torch.equal(of_y(z), z)
    assert [len(made(z[:, :1]).unique()) for made in KINDS["binary"]] == [2, 2]
    assert (KINDS["rounded to 0.1"].x(z) * 10 % 1 == 0).all()


def test_false_positives_are_the_shares_of_links_up_to_a_level():
    found = false_positives(COPULA, "continuous", 60, 3, seed=1)
    assert found.shape == (3, len(LEVELS))
    assert (np.diff(found, axis=1) >= 0).all()
    assert np.unique(found[:, -1]).size == 3  # repeats differ
    np.testing.assert_array_equal(
        found, false_positives(COPULA, "continuous", 60, 3, seed=1)
    )
    # Correlations of Gaussian variables have a known law. Only the table is by chance.
    assert abs(found[:, LEVELS.index(0.1)].mean() - 0.1) < 0.03
    assert not false_positives(COPULA, "constant, continuous", 60, 2, seed=1).any()


def test_discoveries_are_those_of_testing_each_link_by_itself():
    n, correlation, level = 300, 0.3, 0.05
    found = discoveries(COPULA, "continuous", n, correlation, 4, level, seed=0)
    for graph in range(4):
        where = (0, n, list(LAYERS).index("continuous"), 300, graph)
        x, y = linked_layers(np.random.default_rng(where), n, correlation)
        r = np.corrcoef(x.T, y.T)[:NODES, NODES:].flatten()
        t = np.abs(r) * np.sqrt((n - 2) / (1 - r**2))
        adjusted = scipy.stats.false_discovery_control(
            2 * scipy.stats.t.sf(t, n - 2), method="bh"
        )
        kept = adjusted.reshape(NODES, NODES) <= level
        exists = existing().numpy()
        # Null tables in place of Student's law, normal scores in place of values.
        assert found.true[graph] == pytest.approx((kept & exists).sum(), abs=6)
        assert found.false[graph] == pytest.approx((kept & ~exists).sum(), abs=6)
    empty = discoveries(COPULA, "50 % zeros", 80, 0.0, 2, level, seed=0)
    assert not empty.true.any()


def test_shares_of_discoveries():
    found = Discoveries(np.array([80.0, 0.0, 0.0]), np.array([20.0, 3.0, 0.0]))
    assert found.power.tolist() == [1.0, 0.0, 0.0]
    assert found.false_share.tolist() == [0.2, 1.0, 0.0]


# --- standard errors ------------------------------------------------------------------


def test_comparisons_are_those_of_the_definitions():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    errors = torch.rand(5, 2, 3, generator=generator, dtype=torch.float64) + 0.5
    values[:, 0, 0] = 2.0  # never varies
    found = compare(Repeated(values, errors))
    squares, variances, scatters, covered, clear = [], [], [], [], []
    for i, j in itertools.product(range(2), range(3)):
        if (i, j) == (0, 0):
            continue
        v, e = values[:, i, j].tolist(), errors[:, i, j].tolist()
        squares.append(statistics.fmean(x * x for x in e))
        variances.append(statistics.variance(v))
        scatters.append(statistics.variance(e))
        for one in range(5):
            others = statistics.fmean(v[:one] + v[one + 1 :])
            reach = scipy.stats.t.ppf(0.975, 9) * e[one] * math.sqrt(1 + 1 / 4)
            covered.append(abs(v[one] - others) <= reach)
            clear.append(abs(v[one]) > 2 * e[one])
    mean_square = statistics.fmean(squares)
    assert found == pytest.approx(
        {
            "ratio": math.sqrt(mean_square / statistics.fmean(variances)),
            "off": math.sqrt(statistics.fmean(scatters) / mean_square),
            "covered": statistics.fmean(covered),
            "clear": statistics.fmean(clear),
        }
    )


def test_true_standard_errors_have_a_ratio_of_1():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 3, 400)
    values = scale * torch.randn(9, 400, generator=generator)
    found = compare(Repeated(values, scale.expand(9, 400)))
    assert found["ratio"] == pytest.approx(1, abs=0.06)
    assert found["off"] == 0
    # Student's interval for nine degrees of freedom, of an error that is exact.
    inside = 1 - 2 * scipy.stats.norm.sf(scipy.stats.t.ppf(0.975, 9))
    assert found["covered"] == pytest.approx(inside, abs=0.015)
    half = compare(Repeated(values, scale.expand(9, 400) / 2))
    assert half["ratio"] == pytest.approx(found["ratio"] / 2)


@pytest.mark.parametrize("name", ["table", "digits"])
def test_backgrounds_share_no_sample_with_each_other_or_what_is_explained(
    name, monkeypatch
):
    monkeypatch.setattr(uncertainty_errors, "trained", lambda *_: nn.Identity())
    case = make_case(name, 0, 3, 250)
    samples = torch.cat([case.inputs, *case.backgrounds]).flatten(1)
    assert [len(x) for x in case.backgrounds] == [250] * 3
    assert len(samples.unique(dim=0)) == len(samples)


# --- report ---------------------------------------------------------------------------


def test_ratios_and_wilsons_interval():
    shares = np.tile(LEVELS, (3, 1)) * np.array([[0.5], [1.0], [1.5]])
    told = ratio(shares, 0.01)
    assert told.mean == pytest.approx(1)
    assert told.half == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.5 / math.sqrt(3))
    z = scipy.stats.norm.ppf(0.975)
    for hits, count in ((0, 30), (3, 50), (10, 10)):
        p, shrink = hits / count, 1 + z * z / count
        middle = (p + z * z / (2 * count)) / shrink
        half = math.sqrt(p * (1 - p) / count + (z / count / 2) ** 2) * z / shrink
        wanted = max(0, middle - half), min(1, middle + half)
        assert wilson(hits, count) == pytest.approx(wanted, abs=1e-9)


def test_false_discoveries_of_one_size_are_told_together():
    def graphs(*false):
        return Discoveries(np.full(len(false), 3.0), np.array(false, dtype=float))

    found = {
        ("KSG", 100, "continuous", 0.0): graphs(9, 9, 9),
        ("KSG", 100, "continuous", 0.1): graphs(1, 1),
        ("KSG", 100, "continuous", 0.2): graphs(0, 3),
        ("KSG", 100, "90 % zeros", 0.1): graphs(9, 9),
        ("KSG", 500, "continuous", 0.1): graphs(9, 9),
    }
    told = false_row(found, "KSG", 100, "continuous")
    assert told.mean == pytest.approx((0.25 + 0.25 + 0 + 0.5) / 4)


def test_a_small_run_writes_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty, "CORRELATIONS", (0.0, 0.6))
    monkeypatch.setattr(uncertainty, "LAYERS", ("continuous", "50 % zeros"))
    monkeypatch.setattr(uncertainty, "KINDS", ("binary", "constant, continuous"))
    monkeypatch.setattr(uncertainty, "PRESETS", {"default": None})
    arguments = "--dataset table --sizes 60 --repeats 2 --graphs 1 --trainings 1"
    few = "--backgrounds 2 --background 60"
    main([*arguments.split(), *few.split(), "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "uncertainty.md",
        "uncertainty.png",
        *(
            f"uncertainty_{part}.csv"
            for part in (
                "discoveries",
                "empty_graphs",
                "false_positives",
                "standard_errors",
            )
        ),
    }
    page = (tmp_path / "uncertainty.md").read_text()
    constant = "| MixedKSG() | 60 | constant, continuous | 0.00 ± 0.00 |"
    assert constant in page
