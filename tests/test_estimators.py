"""What every estimator promises, whatever it estimates by."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mixed_ksg import BAD_SAMPLES, samples, some
from torch import Tensor

from captum_nif.estimators import (
    EDGE,
    MINE,
    GaussianCopula,
    MixedKSG,
    PMIEstimator,
    Prepared,
)
from captum_nif.estimators.cells import ensemble
from captum_nif.estimators.mixed_ksg import _tabulated
from captum_nif.estimators.normal_scores import normal_scores

ESTIMATORS = [
    EDGE(),
    EDGE(width=0.7, shifts=3),
    GaussianCopula(),
    GaussianCopula("standard"),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
or_mixed_ksg = pytest.mark.parametrize(
    "estimator",
    [
        *ESTIMATORS,
        MixedKSG(),
        MixedKSG(formula="paper"),
        MixedKSG(3, "paper", "normal"),
    ],
    ids=repr,
)
estimators = st.sampled_from(ESTIMATORS)


def close(actual: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=atol)


@settings(max_examples=40)
@given(samples(least=7), estimators)
def test_a_sample_is_a_query_against_the_others(xy, estimator):
    x, y = xy
    pmi, joint = estimator.pmi(x, y), estimator.joint(x, y)
    assert pmi.isfinite().all()
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        population, query = (x[others], y[others]), (x[i : i + 1], y[i : i + 1])
        assert torch.equal(estimator.pmi(*population, query=query)[0], pmi[i])
        close(estimator.joint(*population, query=query)[0], joint[i])


@given(samples(least=6), estimators)
def test_mi_is_the_mean_of_pmi_and_symmetric(xy, estimator):
    x, y = xy
    close(estimator.mi(x, y), estimator.pmi(x, y).mean(0))
    assert torch.equal(estimator.mi(x, y), estimator.mi(y, x).t())


@given(samples(least=6, sizes=(1, 3)), estimators)
def test_a_vector_of_one_component_is_a_variable(xy, estimator):
    x, y = xy
    query = (x[:2], y[:2])
    close(estimator.joint(x, y), estimator.pmi(x, y)[:, 0])
    close(estimator.joint(x, y, query), estimator.pmi(x, y, query)[:, 0])


@given(st.data(), samples(least=6), estimators)
def test_permuting_samples_permutes_the_result(data, xy, estimator):
    x, y = xy
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    pmi = estimator.pmi(x, y)
    assert torch.equal(estimator.pmi(x[order], y[order]), pmi[order])
    assert torch.equal(estimator.mi(x[order], y[order]), estimator.mi(x, y))


@given(samples(least=9, sizes=(3, 2)), estimators)
def test_blocks_and_company_do_not_matter(xy, estimator):
    x, y = xy
    query = (x[-2:], y[-2:])

    def results(x, y, query):
        population = x[:-2], y[:-2]
        return (
            estimator.mi(x, y)[None],
            estimator.pmi(x, y),
            estimator.pmi(*population, query),
        )

    together = results(x, y, query)
    for i in range(3):
        for j in range(2):
            one, other = x[:, i : i + 1], y[:, j : j + 1]
            alone = results(one, other, (one[-2:], other[-2:]))
            for whole, part in zip(together, alone, strict=True):
                assert torch.equal(whole[:, i, j], part[:, 0, 0])
    joint = estimator.joint(x, y), estimator.joint(x, y, query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_nif.estimators.cells._WIDE", 2)
        patch.setattr("captum_nif._blocks._limit", 32 * 20)
        small = results(x, y, query)
        parts = estimator.joint(x, y), estimator.joint(x, y, query)
    for whole, part in zip(together, small, strict=True):
        assert torch.equal(whole, part)
    for whole, part in zip(joint, parts, strict=True):
        close(whole, part)


@every_estimator
def test_a_constant_tells_nothing(estimator):
    y = some(100, 3)
    y[:, 1].clamp_(min=0)
    y[:, 2] = 4
    constant = torch.full((100, 2), 0.3)
    query = (torch.full((2, 2), 0.3), y[:2])
    assert torch.equal(estimator.mi(constant, y), torch.zeros(2, 3).double())
    assert torch.equal(estimator.pmi(constant, y), torch.zeros(100, 2, 3).double())
    assert torch.equal(estimator.joint(constant, y), torch.zeros(100, 3).double())
    pmi = estimator.pmi(constant, y, query)
    assert torch.equal(pmi, torch.zeros(2, 2, 3).double())
    assert torch.equal(estimator.joint(constant, y, query), pmi[:, 0])
    # a query unlike all samples is no reason to expect anything else
    assert estimator.pmi(constant, y, query=(y[:2, :2], y[:2])).isfinite().all()


@every_estimator
def test_it_keeps_the_protocol(estimator):
    assert isinstance(estimator, PMIEstimator)
    assert isinstance(estimator.prepare(some()), Prepared)
    assert hash(estimator) == hash(copy.copy(estimator))


@every_estimator
def test_prepared_samples_stand_for_tensors(estimator):
    x, y = some(size=3), some().relu()
    query = (x[:4] + 0.1, y[:4])
    once = estimator.prepare(x), estimator.prepare(y)
    again = pickle.loads(pickle.dumps(once))
    for first, second in (once, (x, once[1]), (once[0], y), again):
        assert torch.equal(estimator.mi(first, second), estimator.mi(x, y))
        assert torch.equal(estimator.pmi(first, second), estimator.pmi(x, y))
        for of in (estimator.pmi, estimator.joint):
            assert torch.equal(of(first, second, query), of(x, y, query))


@or_mixed_ksg
def test_some_variables_of_prepared_samples(estimator):
    x, y = some(30, 5), some(31, 4)[1:].relu()
    query = (x[:4] + 0.1, y[:4])
    first, second = estimator.prepare(x), estimator.prepare(y)
    estimator.pmi(first, second, query)  # what it keeps is of all variables
    for chosen in ([2], [3, 0], [1, 1], [0, 1, 2, 3], []):
        columns = torch.tensor(chosen, dtype=torch.int64)
        part = second.select(columns)
        assert (part.samples, part.size) == (30, len(chosen))
        assert isinstance(part, Prepared)
        asked = query[0], query[1][:, columns]
        mi, pmi = estimator.mi(first, second), estimator.pmi(first, second, query)
        assert torch.equal(estimator.mi(first, part), mi[:, columns])
        assert torch.equal(estimator.pmi(first, part, asked), pmi[..., columns])
        assert torch.equal(estimator.mi(part, first), mi[:, columns].t())
        joint = estimator.joint(first, second, query)[:, columns]
        close(estimator.joint(first, part, asked), joint)
    assert second.size == 4
    with pytest.raises(IndexError):
        second.select(torch.tensor([4]))
    with pytest.raises(TypeError, match="int64, but is of torch"):
        second.select(torch.tensor([1.0]))
    with pytest.raises(TypeError, match="int64 and shape"):
        second.select(torch.tensor(1))


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_precisions(estimator, dtype):
    x = some(dtype=dtype)
    query = (x[:2], x[:2].double())
    for value in (
        estimator.mi(x, x),
        estimator.pmi(x, x, query),
        estimator.joint(x, x),
    ):
        assert value.dtype == torch.float64
        assert value.isfinite().all()
    assert torch.equal(estimator.pmi(x, x), estimator.pmi(x.double(), x.double()))


@every_estimator
def test_nothing_outside_changes_or_matters(estimator, rng_untouched):
    x = some(2001, 4).relu()  # counts beyond 256, which half precision rounds
    y = torch.cat([x[:, :1], some(2001, 2)], dim=1)
    frozen, query = x.clone(), (x[:8], y[:8])
    with rng_untouched():
        mi, pmi = estimator.mi(x, y), estimator.pmi(x, y, query)
    assert torch.equal(x, frozen)
    strided = torch.stack([x, x], dim=1)[:, 1].requires_grad_()
    assert torch.equal(estimator.mi(strided, y.t().contiguous().t()), mi)
    assert not estimator.mi(strided, y).requires_grad
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(estimator.mi(x, y), mi)
        assert torch.equal(estimator.pmi(x, y, query), pmi)


@pytest.mark.parametrize(
    "estimator",
    [*ESTIMATORS, MixedKSG(), MixedKSG(formula="paper"), MINE(8, steps=10, batch=16)],
    ids=repr,
)
@pytest.mark.parametrize("setting", ["meta", torch.float16, torch.bfloat16])
def test_settings_of_the_process_change_nothing_then_or_later(estimator, setting):
    # As many samples as no other test has, so that tables are made under the setting.
    n = 1301 + 2 * ["meta", torch.float16, torch.bfloat16].index(setting)
    x, y = some(n, 2), some(n + 1, 1)[1:].relu()
    queries = x[:3] + 0.1, y[:3]
    dtype = torch.get_default_dtype()

    def results() -> tuple[Tensor, ...]:
        return estimator.mi(x, y), estimator.pmi(x, y, queries), estimator.joint(x, y)

    if setting == "meta":
        with torch.device("meta"):
            under = results()
    else:
        torch.set_default_dtype(setting)
        try:
            under = results()
        finally:
            torch.set_default_dtype(dtype)
    later = results()
    for table in (normal_scores, ensemble, _tabulated):
        table.cache_clear()
    for first, second, fresh in zip(under, later, results(), strict=True):
        assert torch.equal(first, fresh)
        assert torch.equal(second, fresh)


@every_estimator
def test_progress_adds_up(estimator):
    x, y = some(size=3), some(size=2)
    query = (x[:4], y[:4])
    told: list[int] = []
    estimator.mi(x, y, progress=told.append)
    assert sum(told) == 20 * 3 * 2
    for of, each in ((estimator.pmi, 6), (estimator.joint, 2)):
        for asked, points in ((None, 20), (query, 4)):
            told.clear()
            of(x, y, asked, progress=told.append)
            assert sum(told) == points * each


@every_estimator
def test_empty_sets_of_variables_and_queries_have_empty_results(estimator):
    x, none = some(), some(size=0)
    assert estimator.mi(x, none).shape == (2, 0)
    assert estimator.pmi(none, x).shape == (20, 0, 2)
    assert estimator.pmi(x, x, query=(x[:0], x[:0])).shape == (0, 2, 2)
    assert estimator.pmi(x, none, query=(x[:1], none[:1])).shape == (1, 2, 0)
    assert estimator.joint(x, none).shape == (20, 0)
    assert estimator.joint(x, x, query=(x[:0], x[:0])).shape == (0, 2)
    with pytest.raises(ValueError, match="at least one"):
        estimator.joint(none, x)


@every_estimator
def test_as_few_samples_as_it_says(estimator):
    least, name = estimator.min_samples, type(estimator).__name__
    x, query = some(least), (some(least)[:1], some(least)[:1])
    assert estimator.mi(x, x).isfinite().all()
    assert estimator.pmi(x[1:], x[1:], query).isfinite().all()
    with pytest.raises(ValueError, match=f"{name} .* at least {least} .* {least - 1};"):
        estimator.mi(x[1:], x[1:])
    for of in (estimator.pmi, estimator.joint):
        with pytest.raises(ValueError, match=f"at least {least}"):
            of(x[2:], x[2:], query)


@every_estimator
@pytest.mark.parametrize(("bad", "error", "message"), BAD_SAMPLES)
def test_bad_samples(estimator, bad, error, message):
    good = some()
    with pytest.raises(error, match=f"(?s)^x .*{message}"):
        estimator.prepare(bad)
    with pytest.raises(error, match=f"(?s)^y .*{message}"):
        estimator.mi(good, bad)
    with pytest.raises(error, match=f"(?s)^query's x .*{message}"):
        estimator.pmi(good, good, query=(bad, good))
    with pytest.raises(error, match=f"(?s)^query's y .*{message}"):
        estimator.joint(good, good, query=(good, bad))


@every_estimator
def test_samples_that_do_not_belong_together(estimator):
    x, name = some(), type(estimator).__name__
    with pytest.raises(ValueError, match="x has 20 samples and y has 19"):
        estimator.mi(x, x[1:])
    with pytest.raises(TypeError, match=f"come from {name}.prepare, not builtins.str"):
        estimator.mi("x", x)
    other = GaussianCopula("standard" if estimator != ESTIMATORS[-1] else "normal")
    with pytest.raises(ValueError, match=r"was prepared for .* marginals"):
        estimator.pmi(x, other.prepare(x))
    with pytest.raises(TypeError, match="tuple of two tensors"):
        estimator.pmi(x, x, query=[x, x])
    with pytest.raises(ValueError, match="3 rows for x and 4 for y"):
        estimator.pmi(x, x, query=(x[:3], x[:4]))
    with pytest.raises(ValueError, match="query's y has 1 variables"):
        estimator.joint(x, x, query=(x, x[:, :1]))
