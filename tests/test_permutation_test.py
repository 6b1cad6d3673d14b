import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_nif import MixedKSG
from captum_nif.flow.jackknife import leave_groups_out
from captum_nif.flow.permutation_test import link_pvalues, tie_classes, upper_tail
from tests.tied_variables import KINDS, variables

floats = st.floats(-10, 10, allow_subnormal=False)


# --- p-values of links ----------------------------------------------------------------


@pytest.mark.parametrize(
    "pair", [*(("untied", kind) for kind in KINDS), *((k, k) for k in KINDS[1:])]
)
def test_independent_links_are_as_significant_as_chance_allows(pair):
    ksg, found = MixedKSG(k=5), []
    for seed in range(8):
        x, y = (variables(kind, 120, 10, 2 * seed + n) for n, kind in enumerate(pair))
        found.append(link_pvalues(ksg, x, y, seed=seed))
    pvalues = torch.cat(found).flatten()
    # Of 800 links: five standard deviations of chance, and of a table of 1024 draws
    # (or more tables) in each of 8 runs.
    for level, most in ((0.2, 0.28), (0.05, 0.093), (0.01, 0.03)):
        assert (pvalues <= level).double().mean() < most
    if "binary" not in pair and "levels" not in pair:  # p-values are continuous
        assert (pvalues <= 0.2).double().mean() > 0.12
        assert (pvalues <= 0.05).double().mean() > 0.009
    assert ((pvalues > 0) & (pvalues <= 1)).all()


@pytest.mark.parametrize("kind", ["untied", "90 % zeros", "levels"])
def test_biased_estimators_are_compared_with_their_own_bias(kind):
    eq6 = MixedKSG(k=3, formula="paper")  # negative for all pairs, on average
    found = [
        link_pvalues(
            eq6,
            variables(kind, 60, 8, 2 * n),
            variables(kind, 60, 8, 2 * n + 1),
            seed=n,
        )
        for n in range(3)
    ]
    # Five standard deviations, as above.
    assert 0.01 < (torch.stack(found) <= 0.2).double().mean() < 0.4


def permutation_pvalue(ksg, x, y, permutations):
    """The p-value of one link by itself, from permutations of y."""
    generator = torch.Generator().manual_seed(123)
    observed = ksg.mi(x, y)
    reached = sum(
        bool(ksg.mi(x, y[torch.randperm(len(y), generator=generator)]) >= observed)
        for _ in range(permutations)
    )
    return (1 + reached) / (1 + permutations)


def test_pvalues_are_those_of_permuting_each_link_by_itself():
    ksg, samples, permutations = MixedKSG(k=3), 100, 400
    hidden = variables("untied", samples, 1)
    # Of each kind one, so that each is a class by itself.
    x = torch.cat([variables(kind, samples, 1, 5) for kind in KINDS], dim=1)
    y = torch.cat([variables(kind, samples, 1, 6) for kind in KINDS[:2]], dim=1)
    y = y + 0.25 * hidden * (y != 0)
    x = x + 0.25 * hidden * (x != 0)
    found = link_pvalues(ksg, x, y)
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            wanted = permutation_pvalue(ksg, x[:, [i]], y[:, [j]], permutations)
            p = max(wanted, 0.01)
            scatter = math.sqrt(p * (1 - p) * (1 / permutations + 1 / 1024))
            assert found[i, j].item() == pytest.approx(wanted, abs=5 * scatter)


@dataclass
class Spearman:
    """Squared rank correlation: a measure whose p-values are known, of no estimator."""

    min_samples = 3

    def prepare(self, x):
        raise NotImplementedError

    pmi = joint = prepare

    def mi(self, x, y, *, progress=None):
        ranks = [
            torch.from_numpy(
                scipy.stats.zscore(scipy.stats.rankdata(v.numpy(), axis=0))
            )
            for v in (x, y)
        ]
        return (ranks[0].T @ ranks[1] / len(x)) ** 2


def test_any_measure_of_ranks_will_do_and_tails_are_continued():
    x = variables("untied", 80, 12)
    y = variables("untied", 80, 6, 1) + 0.5 * x[:, :6]
    assert Spearman.__hash__ is None
    found = link_pvalues(Spearman(), x, y)
    for i in range(12):
        for j in range(6):
            wanted = scipy.stats.spearmanr(x[:, i], y[:, j]).pvalue
            if wanted > 0.05:
                scatter = math.sqrt(wanted * (1 - wanted) / 1024)
                assert found[i, j].item() == pytest.approx(wanted, abs=5 * scatter)
            else:
                # Within 10 of 51 excesses, the spread of a sum of so many.
                assert math.log(found[i, j]) == pytest.approx(
                    math.log(wanted), rel=0.5, abs=1.0
                )
    assert found.diagonal().max() < 0.05


def test_dependent_links_are_found():
    samples = 300
    x = variables("untied", samples, 3)
    noise = variables("untied", samples, 3, 1)
    y = torch.stack(
        [
            0.6 * x[:, 0] + 0.8 * noise[:, 0],
            x[:, 1].square() + 0.5 * noise[:, 1],  # without any correlation
            (x[:, 2] + 0.5 * noise[:, 2]).relu(),
        ],
        dim=1,
    )
    assert (link_pvalues(MixedKSG(k=5), x, y).diagonal() < 1e-4).all()
    itself = link_pvalues(MixedKSG(k=5), x, x).diagonal()
    assert ((itself > 0) & (itself < 1e-9)).all()


def test_constants_tell_nothing():
    x = torch.cat([variables("untied", 60, 2), torch.ones(60, 2)], dim=1)
    y = torch.cat([torch.zeros(60, 1), x[:, :1]], dim=1)
    found = link_pvalues(MixedKSG(), x, y)
    assert (found[:, 0] == 1).all()
    assert (found[2:] == 1).all()
    assert found[0, 1] < 1e-4


def test_pvalues_do_not_change_under_monotone_maps_and_come_again():
    x, y = variables("relu", 100, 4), variables("untied", 100, 3, 1)
    once = link_pvalues(MixedKSG(), x, y)
    assert torch.equal(link_pvalues(MixedKSG(), x, y), once)
    assert torch.equal(link_pvalues(MixedKSG(), x.exp(), y**3), once)
    # The normal scores of normal scores are what they were.
    assert torch.equal(link_pvalues(MixedKSG(marginals="normal"), x, y), once)
    raw = MixedKSG(formula="paper")
    assert torch.equal(link_pvalues(raw, x, y), link_pvalues(raw, x.exp(), y**3))
    assert not torch.equal(link_pvalues(MixedKSG(), x, y, seed=1), once)
    assert not torch.equal(link_pvalues(MixedKSG(), x, y, n_permutations=100), once)


def test_samples_stay_and_so_does_random_state(rng_untouched):
    x, y = variables("relu", 50, 4), variables("binary", 50, 3)
    before = x.clone(), y.clone()
    with rng_untouched():
        link_pvalues(MixedKSG(), x, y)
        list(leave_groups_out(20))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_progress_counts_all_pairs_that_were_estimated():
    told = []
    x, y = variables("untied", 50, 3), variables("90 % zeros", 50, 1)
    link_pvalues(MixedKSG(), x, y, progress=told.append)
    assert sum(told) == 50 * (3 + 1024)


@dataclass
class Counted(Spearman):
    """Remembers the shapes of what it estimated."""

    seen: list

    def mi(self, x, y, *, progress=None):
        self.seen.append((x.shape[1], y.shape[1]))
        return super().mi(x, y, progress=progress)


@pytest.mark.parametrize(
    ("n_permutations", "sides"),
    [
        # Twenty for each of 3 x 3 links, 3 x 60, 60 x 3 and 60 x 60; 1024 to 16384.
        (None, [32, 60, 60, 128]),
        (200, [15, 15, 15, 15]),
    ],
)
def test_tables_grow_with_the_links_they_serve(n_permutations, sides):
    halves = (torch.arange(80.0) < 40).double()[:, None].expand(-1, 60)
    both = torch.cat([variables("untied", 80, 3), halves], dim=1)
    seen = []
    link_pvalues(Counted(seen), both, both, n_permutations=n_permutations)
    assert seen == [(63, 63), *((side, side) for side in sides)]


def test_the_old_name_of_n_permutations_is_still_taken():
    x, y = variables("untied", 50, 3), variables("untied", 50, 2)
    with pytest.warns(DeprecationWarning, match="n_permutations") as warned:
        old = link_pvalues(MixedKSG(), x, y, draws=100)
    assert warned[0].filename == __file__
    assert torch.equal(old, link_pvalues(MixedKSG(), x, y, n_permutations=100))
    with pytest.raises(TypeError, match="drop `draws`"):
        link_pvalues(MixedKSG(), x, y, draws=100, n_permutations=100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_changes_nothing(dtype):
    # A sample size of its own, so that tables are made under the setting.
    samples = 60 + torch.finfo(dtype).bits + (dtype == torch.bfloat16)
    x, y = variables("untied", samples, 3), variables("relu", samples, 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        within = link_pvalues(MixedKSG(), x, y, n_permutations=100)
    finally:
        torch.set_default_dtype(before)
    # As the default is 4 here, k=4 gives the same from tables of its own.
    fresh = link_pvalues(MixedKSG(k=4), x, y, n_permutations=100)
    assert MixedKSG().neighbors(samples - 1) == 4
    assert torch.equal(within, fresh)


def test_bad_links_are_refused():
    x, y = variables("untied", 50, 3), variables("untied", 50, 2)
    with pytest.raises(ValueError, match="n_permutations must be at least 100, got 99"):
        link_pvalues(MixedKSG(), x, y, n_permutations=99)
    with pytest.raises(TypeError, match="n_permutations must be an int or None"):
        link_pvalues(MixedKSG(), x, y, n_permutations="many")
    with pytest.raises(TypeError, match="y must be a tensor"):
        link_pvalues(MixedKSG(), x, y.numpy())
    with pytest.raises(ValueError, match="samples"):
        link_pvalues(MixedKSG(), x, y[:-1])
    with pytest.raises(ValueError, match="NaN"):
        link_pvalues(MixedKSG(), x, y / 0)
    with pytest.raises(ValueError, match="k = 50 neighbors"):
        link_pvalues(MixedKSG(k=50), x, y)


# --- classes --------------------------------------------------------------------------


def share_of_differing_pairs(values):
    pairs = list(combinations(values, 2))
    return sum(a != b for a, b in pairs) / len(pairs)


@given(
    st.lists(
        st.lists(
            st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0, 3.0]), min_size=9, max_size=9
        )
        | st.lists(floats, min_size=9, max_size=9),
        min_size=1,
        max_size=8,
    )
)
def test_classes_hold_variables_that_tie_alike(columns):
    classes = tie_classes(torch.tensor(columns, dtype=torch.float64).T)
    named = sorted(
        column for members in classes.values() for column in members.tolist()
    )
    assert named == [n for n, values in enumerate(columns) if len(set(values)) > 1]
    for kind, members in classes.items():
        differ = [share_of_differing_pairs(columns[n]) for n in members.tolist()]
        distinct = [len(Counter(columns[n])) for n in members.tolist()]
        assert max(differ) <= min(differ) * math.sqrt(2) + 1e-9
        assert max(distinct) <= 4 * min(distinct)
        assert (kind == ()) == (min(distinct) == 9)


def test_classes_of_more_variables_than_are_sorted_at_once(monkeypatch):
    x = torch.cat([variables(kind, 40, 5) for kind in KINDS], dim=1)
    whole = tie_classes(x)
    monkeypatch.setattr("captum_nif._blocks._limit", 32 * 120)
    parts = tie_classes(x)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[kind], parts[kind]) for kind in whole)


# --- tails ----------------------------------------------------------------------------


def tail_by_hand(null, value):
    ordered = sorted(null)
    reached = sum(draw >= value for draw in ordered)
    start = ordered[-5:][0]
    if value <= start:
        return (1 + reached) / (len(ordered) + 1)
    excesses = [draw - start for draw in ordered if draw > start]
    tail = len(excesses) + 1.0
    for _ in excesses:
        tail /= 1 + (value - start) / sum(excesses)
    return max(tail, reached) / (len(ordered) + 1)


@given(
    st.lists(floats, min_size=3, max_size=80) | st.lists(st.integers(0, 3), min_size=3),
    st.lists(floats | st.integers(0, 4), min_size=1, max_size=9),
)
def test_tails_are_those_of_the_formula_and_fall(null, values):
    null = [float(draw) for draw in null]
    values = sorted({*map(float, values), *null[:3]})
    found = upper_tail(
        torch.tensor(null, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
    ).tolist()
    assert found == pytest.approx([tail_by_hand(null, v) for v in values], rel=1e-9)
    assert all(0 < p <= 1 for p in found)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("draws", [100, 1024])
def test_tails_are_exact_where_the_null_is_exponential(draws):
    generator = torch.Generator().manual_seed(0)
    null = torch.empty(4000, draws + 1, dtype=torch.float64)
    null.exponential_(generator=generator)
    pvalues = torch.stack([upper_tail(row[1:], row[:1]) for row in null])
    for level in (0.2, 0.02, 0.002):
        hits = int((pvalues <= level).sum())
        chance = scipy.stats.binom(4000, level)
        assert chance.sf(hits - 1) > 1e-6  # not too many
        assert chance.cdf(hits) > 1e-6  # nor too few


def test_tails_hold_where_the_null_is_a_mixture():
    # Exponential with means from 1 to 2, as of variables that tie alike.
    generator = torch.Generator().manual_seed(0)
    null = torch.empty(300, 1024, dtype=torch.float64).exponential_(generator=generator)
    null *= 1 + torch.rand(null.shape, generator=generator)
    values = torch.logspace(-2, 4, 6001, dtype=torch.float64)
    means = torch.linspace(1, 2, 101, dtype=torch.float64)
    law = torch.exp(-values[:, None] / means).mean(1)  # probability to reach a value
    found = torch.stack([upper_tail(row, values) for row in null])
    for level in (0.05, 1e-3, 1e-4):  # a tenth of what the draws themselves resolve
        least = [law[int((row > level).sum())] for row in found]
        assert np.mean(least) <= 1.2 * level


@pytest.mark.parametrize("expected", [0.3, 1.0, 4.0])
def test_tails_hold_where_the_null_takes_few_values(expected):
    # How many samples two rarely active neurons are both active on is about Poisson,
    # and many of the largest draws are alike.
    generator = torch.Generator().manual_seed(0)
    poisson = torch.poisson(torch.full((300, 1025), expected), generator=generator)
    law = scipy.stats.poisson(expected)
    values = torch.arange(40.0)
    found = torch.stack([upper_tail(null, values) for null in poisson])
    # The share of nulls and of values, by their law, that come out below a level.
    for level in (0.05, 0.01, 0.001, 1e-4):
        taken = (found <= level).double().mean(0).numpy()
        assert taken @ law.pmf(values.numpy()) <= 1.1 * level


def test_draws_that_are_all_alike_tell_nothing_beyond_their_number():
    found = upper_tail(torch.full((999,), 0.5), torch.tensor([0.4, 0.5, 0.6, 9.0]))
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.001, 0.001])


def test_far_values_are_never_impossible():
    null = torch.linspace(0, 1, 1000)
    assert upper_tail(null, torch.tensor([1e300])).item() > 0
