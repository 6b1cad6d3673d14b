from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, ndtri
from scipy.stats import rankdata
from test_mixed_ksg import samples
from torch import Tensor

from captum_nif.estimators.cells import ensemble
from captum_nif.estimators.edge import EDGE


def corners(a: float, b: float) -> list[tuple[float, float]]:
    """A position of cells and its mirror images."""
    return [(s, t) for s in (a, 1 - a) for t in (b, 1 - b)]


POSITIONS = {
    1: [(1 / 2, 1 / 2)],
    2: [(1 / 4, 1 / 4), (3 / 4, 3 / 4)],
    3: [(1 / 6, 1 / 6), (3 / 6, 3 / 6), (5 / 6, 5 / 6)],
    4: corners(1 / 4, 1 / 4),
    8: [*corners(1 / 8, 1 / 8), *corners(3 / 8, 3 / 8)],
    12: [
        *corners(1 / 12, 1 / 12),
        *corners(3 / 12, 3 / 12),
        *corners(5 / 12, 5 / 12),
    ],
    32: [
        pair
        for s, t in enumerate([0, 3, 6, 1, 4, 7, 2, 5])
        for pair in corners((2 * s + 1) / 32, (2 * t + 1) / 32)
    ],
}
"""Shifts of cells along x and y, in units of their width."""


def cells(values: np.ndarray, width: float, shift: float) -> list[int]:
    """The cell of each of some values of one variable, ranked together."""
    n = len(values)
    scores = ndtri((rankdata(values) - 0.5) / n)
    limit = -ndtri(n**-0.5)
    return [
        math.floor(min(max(round(s * 2**26) / 2**26, -limit), limit) / width + shift)
        for s in scores
    ]


def estimate(x: np.ndarray, y: np.ndarray, edge: EDGE) -> list[float]:
    """PMI of all samples of a vector x, [N, a], and a variable y, [N], by counting."""
    n, a = x.shape
    pmi = [0.0] * n
    for multiple, weight in ((1, 4 / 3), (2, -1 / 3)):
        width = multiple * edge.width * n ** (-1 / (2 * (a + 1)))
        for s, t in POSITIONS[edge.shifts]:
            boxes = [cells(v, width, s) for v in x.T]
            of_x = list(zip(*boxes, strict=True))
            of_y = cells(y, width, t)
            of_both = list(zip(of_x, of_y, strict=True))
            for i in range(n):
                n_x, n_y = of_x.count(of_x[i]), of_y.count(of_y[i])
                n_xy = of_both.count(of_both[i])
                value = digamma(n_xy) + digamma(n) - digamma(n_x) - digamma(n_y)
                pmi[i] += weight / edge.shifts * value
    return pmi


def expected(x: Tensor, y: Tensor, edge: EDGE) -> Tensor:
    """PMI of all pairs, [N, a, b]."""
    pairs = [
        [estimate(one[:, None], other, edge) for other in y.numpy().T]
        for one in x.numpy().T
    ]
    return torch.tensor(pairs, dtype=torch.float64).permute(2, 0, 1)


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-9)


edges = st.builds(
    EDGE, width=st.floats(0.3, 4), shifts=st.sampled_from(sorted(POSITIONS))
)


@given(samples(least=5, sizes=(2, 1)), edges)
def test_pmi_is_the_definition_on_every_tie_pattern(xy, edge):
    x, y = xy
    wanted = expected(x, y, edge)
    close(edge.pmi(x, y), wanted)
    close(edge.mi(x, y), wanted.mean(0))


@given(samples(least=6), edges)
def test_a_query_is_one_more_sample(xy, edge):
    x, y = xy
    pmi = edge.pmi(x[:-1], y[:-1], query=(x[-1:], y[-1:]))
    close(pmi[0], expected(x, y, edge)[-1])


@given(samples(least=5, sizes=(3, 1)), edges)
def test_joint_is_the_definition_for_vectors(xy, edge):
    x, y = xy
    wanted = estimate(x.numpy(), y[:, 0].numpy(), edge)
    close(edge.joint(x, y)[:, 0], torch.tensor(wanted, dtype=torch.float64))


@given(samples(least=6), st.sampled_from([4, 8, 12]), st.floats(0.3, 4))
def test_monotone_maps_change_nothing(xy, shifts, width):
    x, y = (v.double() for v in xy)
    edge = EDGE(width, shifts)
    query = x[:2], y[:2]
    value, asked = edge.pmi(x, y), edge.pmi(x[2:], y[2:], query)
    for of in (lambda v: 1000 * v, torch.exp, lambda v: -v, lambda v: -(v**3) - v):
        assert torch.equal(edge.pmi(of(x), y), value)
        assert torch.equal(edge.pmi(of(x[2:]), y[2:], (of(query[0]), query[1])), asked)


@given(samples(least=6), st.sampled_from([1, 2, 3]))
def test_increasing_maps_change_nothing_whatever_the_shifts(xy, shifts):
    x, y = (v.double() for v in xy)
    edge = EDGE(shifts=shifts)
    for stretched in (1000 * x, x.exp(), x**3 + x):
        assert torch.equal(edge.pmi(stretched, y), edge.pmi(x, y))


@given(st.integers(1, 40), st.integers(5, 60), st.floats(0.1, 4))
def test_cells_are_spread_evenly_and_alike_along_both_axes(shifts, points, width):
    binnings = ensemble(points, math.pi * width, shifts)  # no score is on a boundary
    assert len(binnings) == 2 * shifts
    for few in (binnings[:shifts], binnings[shifts:]):
        pairs = [(tuple(b.x[2:].tolist()), tuple(b.y[2:].tolist())) for b in few]
        assert sorted(pairs) == sorted((y, x) for x, y in pairs)
        cuts = {x for x, _ in pairs}
        assert cuts == {mirror(cut) for cut in cuts}
        if shifts % 4 == 0:  # along either axis by itself
            assert sorted(pairs) == sorted((mirror(x), y) for x, y in pairs)


def mirror(cut: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(cut[-1] - cell for cell in reversed(cut))


def test_outermost_cells_hold_the_root_of_all_samples():
    for points in (9, 100, 1000):
        for grid in ensemble(points, 0.2, 8):
            cell = grid.x[2::2].tolist()  # of samples without ties
            for outermost in (cell[0], cell[-1]):
                assert cell.count(outermost) >= math.isqrt(points)


def gaussian(generator: np.random.Generator, rho: float, n: int) -> np.ndarray:
    z = generator.standard_normal((2, n))
    return np.stack([z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]])


@pytest.mark.parametrize("marginal", ["gauss", "relu", "sparse", "levels"])
def test_independent_variables_average_zero(marginal):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, 40, generator=generator)
    keep = torch.rand(2, 1000, 40, generator=generator) < 0.1
    x, y = {
        "gauss": (x, y),
        "relu": (x.relu(), y.relu()),
        "sparse": (x * keep[0], y * keep[1]),
        "levels": (x.round(), y.round()),
    }[marginal]
    mi = EDGE().mi(x, y)
    assert abs(mi.mean()) < 0.006
    assert mi.min() < 0


@pytest.mark.parametrize(("rho", "within"), [(0.3, 0.02), (0.6, 0.02), (0.9, 0.06)])
def test_gaussian_truths(rho, within):
    errors = []
    for seed in range(10):
        x, y = torch.tensor(gaussian(np.random.default_rng(seed), rho, 1000))
        mi = EDGE().mi(x[:, None], y[:, None]).item()
        errors.append(mi + math.log(1 - rho**2) / 2)
    assert abs(np.mean(errors)) < within


def test_discrete_truths():
    generator = np.random.default_rng(0)
    sign = generator.choice([-1.0, 1.0], 1000)
    other = np.where(generator.random(1000) < 0.9, sign, -sign)
    x, y = torch.tensor(sign)[:, None], torch.tensor(other)[:, None]
    agree = torch.tensor(np.mean(sign == other))
    truth = math.log(2) + agree * agree.log() + (1 - agree) * (1 - agree).log()
    assert abs(EDGE().mi(x, y).item() - truth) < 0.005
    # what does not fit is as negative as it should be: cells are not clipped
    odd_one = torch.tensor([[1.0]]), torch.tensor([[-1.0]])
    assert abs(EDGE().pmi(x, y, odd_one).item() - (2 * (1 - agree)).log()) < 0.1


def test_single_samples_follow_the_true_pmi():
    rho = 0.8
    x, y = gaussian(np.random.default_rng(0), rho, 1000)
    exponent = (x**2 - 2 * rho * x * y + y**2) / (1 - rho**2) - x**2 - y**2
    truth = -exponent / 2 - math.log(1 - rho**2) / 2
    pmi = EDGE().pmi(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    assert np.corrcoef(pmi.flatten().numpy(), truth)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": "2"}, TypeError, "must be a number, but is '2'"),
        ({"width": True}, TypeError, "must be a number, but is True"),
        ({"width": 0}, ValueError, "positive and finite, not 0"),
        ({"width": math.nan}, ValueError, "positive and finite, not nan"),
        ({"width": math.inf}, ValueError, "positive and finite, not inf"),
        ({"shifts": 2.0}, TypeError, "must be an int, but is 2.0"),
        ({"shifts": 0}, ValueError, "at least 1, not 0"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        EDGE(**arguments)


def test_cells_of_any_width_fit_into_memory():
    x = torch.randn(50, 2)
    for width in (1e-300, 1e-3, 1e300):
        assert EDGE(width=width).mi(x, x).isfinite().all()
        assert EDGE(width=width).pmi(x, x, query=(x[:1], x[:1])).isfinite().all()
