from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import oracles_ksg as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor

from captum_nif.estimators import MixedKSG, PMIEstimator, Prepared

VARIANTS = [
    ("corrected", "normal"),
    ("corrected", "standard"),
    ("corrected", "raw"),
    ("paper", "normal"),
    ("paper", "standard"),
    ("paper", "raw"),
]
every_variant = pytest.mark.parametrize(("formula", "marginals"), VARIANTS)
variants = st.sampled_from(VARIANTS)


def column(draw: st.DrawFn, n: int, seed: int) -> np.ndarray:
    """One variable with one of the tie patterns that real activations show."""
    generator = np.random.default_rng(seed)
    gauss = generator.standard_normal(n)
    patterns = {
        "gauss": gauss,
        "relu": np.maximum(gauss, 0),
        "sparse": np.where(generator.random(n) < 0.9, 0, gauss),
        "levels": generator.integers(0, 4, n),
        "binary": generator.integers(0, 2, n),
        "constant": np.full(n, 0.1),
        "pixels": generator.integers(0, 6, n) / 255,
        "rounded": np.round(gauss, 1) * 3,
        "duplicates": generator.choice(gauss[: n // 2 + 1], n),
        "offset": 100 + generator.integers(0, 5, n) / 10,
        "signed zeros": generator.choice([-0.0, 0.0, 1.0], n),
    }
    return patterns[draw(st.sampled_from(sorted(patterns)))]


@st.composite
def samples(
    draw: st.DrawFn, least: int = 2, most: int = 14, sizes: tuple[int, int] = (2, 2)
) -> tuple[Tensor, Tensor]:
    """x and y, of either precision, independent or sharing columns."""
    n = draw(st.integers(least, most))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    seed = draw(st.integers(0, 2**32 - 1))
    a, b = sizes
    columns = [column(draw, n, seed + i // 2) for i in range(a + b)]
    values = torch.tensor(np.stack(columns, axis=1), dtype=dtype)
    return values[:, :a], values[:, a:]


def expected(x: Tensor, y: Tensor, ksg: MixedKSG, query: Any = None) -> Tensor:
    """The oracle's PMI of all pairs."""
    eps = torch.finfo(x.dtype).eps
    others = len(x) - 1 if query is None else len(x)
    options = (ksg.neighbors(others), ksg.formula, ksg._marginals, eps)
    pairs = []
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            xs, ys = x[:, i : i + 1].tolist(), y[:, j : j + 1].tolist()
            if query is None:
                pairs.append(oracle.pmi(xs, ys, *options))
                continue
            points = zip(
                query[0][:, i : i + 1].tolist(),
                query[1][:, j : j + 1].tolist(),
                strict=True,
            )
            pairs.append([oracle.pmi_of_query(xs, ys, p, *options) for p in points])
    shape = (x.shape[1], y.shape[1], -1)
    return torch.tensor(pairs, dtype=torch.float64).view(shape).permute(2, 0, 1)


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-9)


# ------------------------------------------------------------------- the definition


@given(st.data(), samples(), variants)
def test_pmi_is_the_definition_on_every_tie_pattern(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)), *variant)
    close(ksg.pmi(x, y), expected(x, y, ksg))


@given(st.data(), samples(least=4), variants)
def test_pmi_of_queries_is_the_definition(data, xy, variant):
    x, y = (v[:-3] for v in xy)
    query = tuple(v[-3:] for v in xy)
    ksg = MixedKSG(data.draw(st.integers(1, len(x))), *variant)
    close(ksg.pmi(x, y, query), expected(x, y, ksg, query))


@given(st.data(), samples(sizes=(3, 2)), variants)
def test_joint_is_the_definition_for_vectors(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)), *variant)
    eps = torch.finfo(x.dtype).eps
    wanted = [
        oracle.pmi(x.tolist(), y[:, j : j + 1].tolist(), ksg.k, *variant, eps)
        for j in range(y.shape[1])
    ]
    close(ksg.joint(x, y), torch.tensor(wanted, dtype=torch.float64).t())


@given(st.data(), samples(least=3, sizes=(2, 3)), variants)
def test_a_sample_is_a_query_against_the_others(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)), *variant)
    for of in (ksg.pmi, ksg.joint):
        for i in range(len(x)):
            others = torch.arange(len(x)) != i
            alone = of(x[others], y[others], query=(x[i : i + 1], y[i : i + 1]))
            assert torch.equal(alone[0], of(x, y)[i])


@given(st.data(), samples(), variants)
def test_mi_is_the_mean_of_pmi(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)), *variant)
    close(ksg.mi(x, y), ksg.pmi(x, y).mean(0))
    assert torch.equal(ksg.mi(x, y), ksg.mi(y, x).t())


# ----------------------------------------------------------- neighbors by default


def test_the_default_k_is_the_cube_root_of_the_other_samples():
    ksg = MixedKSG()
    wanted = [max(k for k in range(20) if k**3 <= m) for m in range(6000)]
    for m, k in enumerate(wanted):
        assert ksg.neighbors(m) == min(max(k, 3), 15)
    assert ksg.min_samples == 4
    assert [ksg.neighbors(m) for m in (10**3 - 1, 10**3, 10**9)] == [9, 10, 15]
    assert MixedKSG(7).neighbors(10_000) == 7 == MixedKSG(7).min_samples - 1
    assert MixedKSG(formula="paper").neighbors(10_000) == 10


@pytest.mark.parametrize("n", [4, 16, 64, 65, 66, 125, 126, 127])  # 64 = 4^3, 125 = 5^3
def test_the_default_k_is_that_of_the_other_samples(n):
    x, y = some(n, size=3), some(n + 1, size=2)[1:].relu()
    y[:, 0] += x[:, 0]
    fixed = MixedKSG(max(k for k in range(10) if k == 3 or k**3 <= n - 1))
    for ask in ("mi", "pmi", "joint"):
        by_default, by_fixed = getattr(MixedKSG(), ask), getattr(fixed, ask)
        assert torch.equal(by_default(x, y), by_fixed(x, y))
    close(MixedKSG().mi(x, y), MixedKSG().pmi(x, y).mean(0))


@pytest.mark.parametrize("n", [5, 64, 65, 66, 125, 126])
def test_a_sample_is_a_query_against_the_others_whatever_k_they_have(n):
    x, y = some(n), some(n + 1)[1:].relu()
    y[:, 0] += x[:, 0]
    ksg = MixedKSG()
    for of in (ksg.pmi, ksg.joint):
        whole = of(x, y)
        for i in range(0, n, 7):
            others = torch.arange(n) != i
            alone = of(x[others], y[others], query=(x[i : i + 1], y[i : i + 1]))
            assert torch.equal(alone[0], whole[i])


def test_a_query_has_one_neighbor_more_where_the_samples_reach_a_cube():
    x = some(64)  # 64 samples for a query, but 63 for each of them
    query = (x[:5] + 0.1, x[:5])
    assert torch.equal(MixedKSG().pmi(x, x), MixedKSG(3).pmi(x, x))
    assert torch.equal(MixedKSG().pmi(x, x, query), MixedKSG(4).pmi(x, x, query))
    close(MixedKSG().pmi(x, x, query), expected(x, x, MixedKSG(), query))


@given(samples(least=4, most=30), variants.filter(lambda v: v[0] == "corrected"))
def test_pmi_by_default_is_the_definition(xy, variant):
    x, y = xy
    ksg = MixedKSG(None, *variant)
    close(ksg.pmi(x, y), expected(x, y, ksg))


def test_what_was_prepared_serves_any_k():
    x = some(130)
    prepared = MixedKSG(3).prepare(x)
    assert torch.equal(MixedKSG().mi(prepared, prepared), MixedKSG(5).mi(x, x))
    assert MixedKSG(3).with_k(None) == MixedKSG()


# --------------------------------------------------------------------- exact symmetries


@given(st.data(), samples(), variants)
def test_permuting_samples_permutes_the_result(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)), *variant)
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    assert torch.equal(ksg.pmi(x[order], y[order]), ksg.pmi(x, y)[order])
    assert torch.equal(ksg.mi(x[order], y[order]), ksg.mi(x, y))


@given(st.data(), samples(least=5, sizes=(3, 2)), variants)
def test_blocks_and_company_do_not_matter(data, xy, variant):
    x, y = xy
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 3)), *variant)
    query = (x[-2:], y[-2:])
    together = ksg.mi(x, y), ksg.pmi(x, y), ksg.pmi(x[:-2], y[:-2], query)
    for i in range(3):
        for j in range(2):
            one, other = x[:, i : i + 1], y[:, j : j + 1]
            alone = (
                ksg.mi(one, other)[None],
                ksg.pmi(one, other),
                ksg.pmi(one[:-2], other[:-2], (one[-2:], other[-2:])),
            )
            for whole, part in zip(together, alone, strict=True):
                assert torch.equal(whole[..., i, j].flatten(), part.flatten())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_nif._blocks._limit", 32 * 20)
        small = ksg.mi(x, y), ksg.pmi(x, y), ksg.pmi(x[:-2], y[:-2], query)
        joint = ksg.joint(x, y)
    for whole, part in zip(together, small, strict=True):
        assert torch.equal(whole, part)
    assert torch.equal(joint, ksg.joint(x, y))


@given(st.data(), samples())
def test_monotone_maps_change_nothing_on_normal_scores(data, xy):
    x, y = (v.double() for v in xy)
    ksg = MixedKSG(data.draw(st.integers(1, len(x) - 1)))
    value = ksg.pmi(x, y)
    for stretched in (1000 * x, x.exp(), x**3 + x, -x, -x.exp()):
        assert torch.equal(ksg.pmi(stretched, y), value)


def test_signed_zeros_tie():
    x = torch.tensor([[-0.0], [0.0], [-0.0], [0.0], [1.0], [2.0]])
    for variant in VARIANTS:
        ksg = MixedKSG(2, *variant)
        assert torch.equal(ksg.pmi(x, x), ksg.pmi(x + 0.0, x + 0.0))
        zeros = torch.tensor([[-0.0], [0.0]])
        value = ksg.pmi(x, x, query=(zeros, zeros))
        assert torch.equal(value[0], value[1])


@pytest.mark.parametrize("formula", ["corrected", "paper"])
@pytest.mark.parametrize("marginals", ["raw", "standard"])
def test_distances_that_tie_but_for_rounding_tie(formula, marginals):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 12, (200, 3), generator=generator).double()
    ksg = MixedKSG(4, formula, marginals)
    exact = ksg.pmi(levels, levels)
    pixels = levels.float() / 255
    for lattice in (pixels, levels / 255, levels * 0.1 + 7, -levels * 1e-30):
        close(ksg.pmi(lattice, lattice), exact)


half_precision = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@every_variant
@half_precision
def test_half_precision_means_its_values_widened(formula, marginals, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator).to(dtype)
    y = (x.float() + 0.5 * torch.randn(300, 3, generator=generator)).to(dtype)
    y[:, 1] = y[:, 1].relu()
    ksg = MixedKSG(4, formula, marginals)
    query = x[:9] + 0.01, y[:9]
    wide = query[0].double(), query[1].double()
    assert torch.equal(ksg.mi(x, y), ksg.mi(x.double(), y.double()))
    for of in (ksg.pmi, ksg.joint):
        value = of(x[9:], y[9:], query)
        assert torch.equal(value, of(x[9:].double(), y[9:].double(), wide))


@pytest.mark.parametrize("formula", ["corrected", "paper"])
@pytest.mark.parametrize("unit", [1e-12, 2.0**-24, 1e-6])
def test_units_of_one_variable_do_not_blur_the_other(formula, unit):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=generator)
    y = torch.cat([x > 0, x + torch.randn(400, 2, generator=generator)], 1).float()
    small, ksg = unit * x, MixedKSG(5, formula, "raw")
    value = ksg.pmi(small, y)
    # In single precision as in double, where rounding errors are out of the way,
    assert torch.equal(value, ksg.pmi(small.double(), y.double()))
    # and whichever is the small one.
    assert torch.equal(value.mT, ksg.pmi(y, small))
    # Beside a class, a variable has the same neighbors in every unit.
    assert ksg.mi(small, y)[0, 0] > 0.4
    of_powers = ksg.pmi(2.0**-60 * x, y)[..., :2]
    assert torch.equal(ksg.pmi(2.0**-20 * x, y)[..., :2], of_powers)


@pytest.mark.parametrize("formula", ["corrected", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardized_variables_have_no_unit(formula, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator).to(dtype)
    y = torch.cat([x > 0, x + torch.randn(300, 2, generator=generator)], 1).to(dtype)
    ksg = MixedKSG(5, formula, "standard")
    value = ksg.mi(x, y)
    for unit in (2.0**-40, 2.0**40):
        assert torch.equal(ksg.mi(unit * x, y), value)
        assert torch.equal(ksg.mi(x, unit * y), value)
    for unit in (1e-6, 1e6):  # rounds each value anew, which may move a neighbor
        torch.testing.assert_close(ksg.mi(unit * x, y), value, rtol=0, atol=1e-3)


# --------------------------------------------------------------------- analytic truths


def gaussian(generator: np.random.Generator, rho: float, n: int = 500) -> np.ndarray:
    z = generator.standard_normal((2, n))
    return np.stack([z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]])


def discrete_and_uniform(generator: np.random.Generator) -> np.ndarray:
    x = generator.integers(0, 5, 500)
    return np.stack([x, x + 2 * generator.random(500)])


def gao_mixture(generator: np.random.Generator) -> np.ndarray:
    """Half a Gaussian of correlation 0.9, half signs that agree 9 times in 10."""
    sign = generator.choice([-1.0, 1.0], 500)
    other = np.where(generator.random(500) < 0.9, sign, -sign)
    continuous = generator.random(500) < 0.5
    return np.where(continuous, gaussian(generator, 0.9), np.stack([sign, other]))


TASKS = {  # samples, true MI, and published bias of either formula with its spread
    "independent": (lambda g: gaussian(g, 0), 0, 0.011, 0.019, -0.039),
    "gaussian": (lambda g: gaussian(g, 0.6), 0.223, 0.013, 0.038, -0.041),
    "discrete": (discrete_and_uniform, 1.055, -0.016, 0.019, -0.202),
    "gao mixture": (gao_mixture, 1.292, -0.002, 0.038, -0.380),
    "relu 0": (lambda g: gaussian(g, 0).clip(0), 0, -0.001, 0.014, -0.166),
    "relu 0.9": (lambda g: gaussian(g, 0.9).clip(0), 0.554, 0.007, 0.041, -0.116),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("formula", ["corrected", "paper"])
def test_bias_is_as_published(task, formula):
    draw, truth, corrected, spread, paper = TASKS[task]
    published = corrected if formula == "corrected" else paper
    ksg = MixedKSG(5, formula)
    bias = []
    for seed in range(20):
        x, y = torch.tensor(draw(np.random.default_rng(seed)))[:, :, None]
        bias.append(ksg.mi(x, y).item() - truth)
    assert abs(np.mean(bias) - published) < spread


def test_rounded_data_are_not_biased():
    bias = []
    for seed in range(20):
        draw = gaussian(np.random.default_rng(seed), 0.6).round(1)
        x, y = torch.tensor(draw)[:, :, None]
        bias.append(MixedKSG(5).mi(x, y).item() - 0.223)
    assert abs(np.mean(bias) - 0.004) < 0.036  # as published, within one run's spread


@pytest.mark.parametrize("k", [1, 3, 10])
def test_a_constant_tells_nothing(k):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(100, 3, generator=generator)
    y[:, 1].clamp_(min=0)
    y[:, 2] = 4
    constant = torch.full((100, 1), 0.3)
    for marginals in ("normal", "standard", "raw"):
        ksg = MixedKSG(k, "corrected", marginals)
        assert torch.equal(ksg.pmi(constant, y), torch.zeros(100, 1, 3).double())
        alone = ksg.pmi(constant, y, query=(torch.full((2, 1), 0.3), y[:2]))
        assert torch.equal(alone, torch.zeros(2, 1, 3).double())


def test_a_dead_neuron_is_biased_by_the_papers_formula():
    y = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    for k in (3, 5, 10):
        value = MixedKSG(k, "paper").pmi(torch.zeros(64, 1), y)
        close(value, torch.full_like(value, digamma(k) - math.log(k + 1)))


def test_single_samples_follow_the_true_pmi():
    generator = np.random.default_rng(0)
    rho = 0.8
    x, y = gaussian(generator, rho, 1000)
    exponent = (x**2 - 2 * rho * x * y + y**2) / (1 - rho**2) - x**2 - y**2
    truth = -exponent / 2 - math.log(1 - rho**2) / 2
    pmi = MixedKSG(10).pmi(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    assert np.corrcoef(pmi.flatten().numpy(), truth)[0, 1] > 0.85


# ------------------------------------------------------------------- use and misuse


def some(n: int = 20, size: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(n)).to(dtype)


def test_it_keeps_the_protocol():
    ksg = MixedKSG(3)
    assert isinstance(ksg, PMIEstimator)
    assert isinstance(ksg.prepare(some()), Prepared)


@every_variant
def test_prepared_samples_stand_for_tensors(formula, marginals):
    x, y = some(size=3), some().relu()
    query = (x[:4] + 0.1, y[:4])
    ksg = MixedKSG(3, formula, marginals)
    once = ksg.prepare(x), ksg.prepare(y)
    again = pickle.loads(pickle.dumps(once)), copy.deepcopy(once)
    for first, second in (once, (x, once[1]), (once[0], y), *again):
        assert torch.equal(ksg.mi(first, second), ksg.mi(x, y))
        assert torch.equal(ksg.pmi(first, second), ksg.pmi(x, y))
        assert torch.equal(ksg.pmi(first, second, query), ksg.pmi(x, y, query))
        assert torch.equal(ksg.joint(first, second, query), ksg.joint(x, y, query))
    other = ksg.with_k(2)
    assert torch.equal(other.mi(*once), MixedKSG(2, formula, marginals).mi(x, y))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_precisions(formula, marginals, dtype):
    x = some(dtype=dtype)
    ksg = MixedKSG(3, formula, marginals)
    value = ksg.pmi(x, x, query=(x[:2], x[:2].double()))
    assert value.dtype == torch.float64
    assert value.isfinite().all()
    if marginals == "normal":
        assert torch.equal(ksg.pmi(x, x), ksg.pmi(x.double(), x.double()))


def test_nothing_outside_changes(rng_untouched):
    x, y = some(size=4), some(size=6)
    frozen = x.clone()
    with rng_untouched():
        value = MixedKSG(3).mi(x, y)
    assert torch.equal(x, frozen)
    strided = torch.stack([x, x], dim=1)[:, 1].requires_grad_()
    transposed = y.t().contiguous().t()
    assert torch.equal(MixedKSG(3).mi(strided, transposed), value)
    with torch.inference_mode():
        prepared = MixedKSG(3).prepare(x + 0)
    assert torch.equal(MixedKSG(3).mi(prepared, y), value)


def test_empty_sets_of_variables_and_queries_have_empty_results():
    ksg, x, none = MixedKSG(3), some(), some(size=0)
    assert ksg.mi(x, none).shape == (2, 0)
    assert ksg.pmi(none, x).shape == (20, 0, 2)
    assert ksg.pmi(x, x, query=(x[:0], x[:0])).shape == (0, 2, 2)
    assert ksg.joint(x, none).shape == (20, 0)
    with pytest.raises(ValueError, match="at least one"):
        ksg.joint(none, x)


def test_as_few_samples_as_neighbors_allow():
    x = some(4)
    assert MixedKSG(3).mi(x, x).isfinite().all()
    assert MixedKSG(4).pmi(x, x, query=(x[:1], x[:1])).isfinite().all()
    with pytest.raises(ValueError, match=r"k = 4 .* only 3 other samples"):
        MixedKSG(4).mi(x, x)
    with pytest.raises(ValueError, match=r"k = 5 .* only 4 other samples"):
        MixedKSG(5).pmi(x, x, query=(x[:1], x[:1]))
    for ksg in (MixedKSG(1), MixedKSG()):
        with pytest.raises(ValueError, match="only 0 other samples"):
            ksg.pmi(x[:0], x[:0])
    assert MixedKSG().mi(x, x).isfinite().all()
    with pytest.raises(ValueError, match=r"k = 3 .* only 2 other samples"):
        MixedKSG().mi(x[:3], x[:3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "at least 1, not 0"),
        ({"k": 2.0}, TypeError, "int or None, but is 2.0"),
        ({"k": True}, TypeError, "int or None, but is True"),
        ({"formula": "new"}, ValueError, "formula must be one of .* not 'new'"),
        ({"marginals": "rank"}, ValueError, "marginals must be one of .* not 'rank'"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        MixedKSG(**arguments)


BAD_SAMPLES = [
    (torch.arange(40).view(20, 2), TypeError, "floating point, not torch.int64"),
    (torch.ones(20, 2, dtype=torch.complex64), TypeError, "not torch.complex64"),
    (some().to_sparse(), TypeError, "dense"),
    (np.ones((20, 2)), TypeError, "tensor .* not numpy.ndarray"),
    (some()[:, 0], ValueError, r"shape \[20\]; use .unsqueeze"),
    (some()[None], ValueError, r"shape \[1, 20, 2\]"),
    (some().index_fill(0, torch.tensor([7]), torch.nan), ValueError, "first in row 7"),
    (some().index_fill(0, torch.tensor([9]), torch.inf), ValueError, "1 of 20 rows"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_SAMPLES)
def test_bad_samples(bad, error, message):
    ksg, good = MixedKSG(3), some()
    with pytest.raises(error, match=f"(?s)^x .*{message}"):
        ksg.prepare(bad)
    with pytest.raises(error, match=f"(?s)^y .*{message}"):
        ksg.mi(good, bad)
    with pytest.raises(error, match=f"(?s)^query's x .*{message}"):
        ksg.pmi(good, good, query=(bad, good))
    with pytest.raises(error, match=f"(?s)^query's y .*{message}"):
        ksg.joint(good, good, query=(good, bad))


def test_samples_that_do_not_belong_together():
    ksg, x = MixedKSG(3), some()
    with pytest.raises(ValueError, match="x has 20 samples and y has 19"):
        ksg.mi(x, x[1:])
    with pytest.raises(ValueError, match=r"prepared for 'raw' .* uses 'normal'"):
        ksg.mi(MixedKSG(3, marginals="raw").prepare(x), x)
    with pytest.raises(TypeError, match="prepare"):
        ksg.mi("x", x)
    with pytest.raises(ValueError, match="x is on cpu and y on meta"):
        ksg.mi(ksg.prepare(x), _elsewhere(ksg.prepare(x)))
    huge = some(dtype=torch.float64) * 1e305
    with pytest.raises(ValueError, match="overflow"):
        MixedKSG(3, marginals="raw").prepare(huge)
    assert torch.equal(ksg.mi(huge, huge), ksg.mi(x, x))


def _elsewhere(prepared: Any) -> Any:
    moved = copy.copy(prepared)
    moved.device = torch.device("meta")
    return moved


def test_bad_queries():
    ksg, x = MixedKSG(3), some()
    for query in (x, [x, x], (x,), (x, x, x)):
        with pytest.raises(TypeError, match="tuple of two tensors"):
            ksg.pmi(x, x, query=query)
    with pytest.raises(ValueError, match="3 rows for x and 4 for y"):
        ksg.pmi(x, x, query=(x[:3], x[:4]))
    with pytest.raises(ValueError, match="query's y has 1 variables"):
        ksg.pmi(x, x, query=(x, x[:, :1]))
    with pytest.raises(ValueError, match="infinity"):  # too large for the samples
        ksg.pmi(x, x, query=(x.double() * 1e300, x))
