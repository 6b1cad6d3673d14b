from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from torch import Tensor, nn

from captum_nif.estimators import PMIEstimator, Prepared, mine
from captum_nif.estimators.mine import MINE


def gaussian(samples: int, pairs: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    """Independent pairs of variables, each pair with correlation rho."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, samples, pairs, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def gaussian_pmi(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """Its true PMI."""
    exponent = rho * x * y - rho**2 * (x**2 + y**2) / 2
    return -math.log(1 - rho**2) / 2 + exponent / (1 - rho**2)


def some(samples: int = 40, size: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, size, generator=generator)


QUICK = MINE(hidden=8, steps=12, batch=16)


# ----------------------------------------------------------------- a slow, plain MINE


class Network(nn.Module):
    """T(x, y) of one critic, and how Belghazi et al. train it."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([x, y], dim=1))[:, 0]


def draws(components: int, samples: int, estimator: MINE) -> dict[str, object]:
    """All that is random, in the order in which it is drawn from the seed."""
    generator = torch.Generator().manual_seed(estimator.seed)
    hidden = estimator.hidden
    rows = torch.randperm(samples, generator=generator)
    torch.randperm(samples - 1, generator=generator)  # all shifts are used anyway

    def normal(count: int) -> Tensor:
        return torch.randn(count, hidden, generator=generator)

    direction = normal(components)
    direction = direction / direction.square().sum(0).sqrt() * normal(1)
    slopes = torch.cat([direction, normal(1)])
    slopes = slopes / slopes.square().sum(0).sqrt()
    weights = slopes, normal(1)[0], normal(hidden) / math.sqrt(hidden)
    torch.randperm(samples // 2 - 1, generator=generator)
    batches = [
        torch.randint(samples // 2, (2, estimator.batch), generator=generator)
        for _ in range(estimator.steps)
    ]
    return {"rows": rows, "weights": weights, "batches": batches}


def slow_networks(x: Tensor, y: Tensor, estimator: MINE) -> list[Network]:
    """The networks of one pair: the first does not see the second half."""
    components, hidden = x.shape[1], estimator.hidden
    drawn = draws(components, len(x), estimator)
    slopes, biases, second = drawn["weights"]
    half = len(x) // 2
    halves = drawn["rows"][:half], drawn["rows"][half : 2 * half]
    found = []
    for seen, unseen in (halves, halves[::-1]):
        network = Network(components + 1, hidden)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            network.layers[0].weight.copy_(slopes.t())
            network.layers[0].bias.copy_(biases)
            network.layers[2].weight.copy_(second.t())
        optimizer = torch.optim.Adam(network.parameters())
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, estimator.learning_rate, estimator.steps
        )
        best, kept, average = 0.0, copy.deepcopy(network), None
        for step, (joint, other) in enumerate(drawn["batches"], 1):
            i, j = seen[joint], seen[other]
            exponential = network(x[i], y[j]).exp().mean()
            now = exponential.item()
            average = now if average is None else 0.9 * average + 0.1 * now
            optimizer.zero_grad()
            (exponential / average - network(x[i], y[i]).mean()).backward()
            optimizer.step()
            cycle.step()
            if step % math.ceil(estimator.steps / 12) == 0:
                bound = network(x[unseen], y[unseen]).mean().item()
                bound -= slow_constant(network, x, y, unseen.tolist())
                if bound > best:
                    best, kept = bound, copy.deepcopy(network)
        found.append(kept)
    return found


def slow_constant(network: Network, x: Tensor, y: Tensor, rows: list[int]) -> float:
    """log E[e^T] over all pairs of different samples."""
    pairs = list(itertools.permutations(rows, 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    with torch.no_grad():
        return float(network(x[first], y[second]).double().exp().mean().log())


def scores(values: Tensor) -> Tensor:
    """Normal scores of each column."""
    ranks = rankdata(values.numpy(), axis=0)
    return torch.from_numpy(norm.ppf((ranks - 0.5) / len(ranks))).float()


def slow_pmi(x: Tensor, y: Tensor, estimator: MINE, query=None) -> Tensor:
    """PMI of one pair, x perhaps a vector, for samples or queries."""
    everyone = list(range(len(x)))
    known = scores(x), scores(y)
    points = known
    if query is not None:
        rows = [
            [scores(torch.cat([v, point[None]]))[-1] for point in q]
            for v, q in zip((x, y), query, strict=True)
        ]
        points = tuple(torch.stack(row) for row in rows)
    total = torch.zeros(len(points[0]), dtype=torch.float64)
    for network in slow_networks(*known, estimator):
        constant = slow_constant(network, *known, everyone)
        with torch.no_grad():
            total += network(*points).double() - constant
    return total / 2


@pytest.mark.parametrize("samples", [40, 41])
def test_pmi_is_the_definition(samples):
    x = some(samples, 2)
    y = torch.stack([x[:, 0].relu(), (x[:, 1] + some(samples, 1, 1)[:, 0]).round()], 1)
    estimator = MINE(hidden=6, steps=24, batch=32, learning_rate=0.02, seed=3)
    query = some(3, 2, 2), some(3, 2, 3)
    pmi, asked = estimator.pmi(x, y), estimator.pmi(x, y, query)
    assert pmi.abs().max() > 0.1
    for i, j in itertools.product(range(2), range(2)):
        a, b = slice(i, i + 1), slice(j, j + 1)
        wanted = slow_pmi(x[:, a], y[:, b], estimator)
        torch.testing.assert_close(pmi[:, i, j], wanted, rtol=0, atol=1e-3)
        wanted = slow_pmi(x[:, a], y[:, b], estimator, (query[0][:, a], query[1][:, b]))
        torch.testing.assert_close(asked[:, i, j], wanted, rtol=0, atol=1e-3)


def test_joint_is_the_definition():
    x = some(40, 3)
    y = torch.stack([x.sum(1), x[:, 0] * x[:, 1]], dim=1) + 0.3 * some(40, 2, 1)
    estimator = MINE(hidden=6, steps=24, batch=32, learning_rate=0.02)
    query = some(3, 3, 2), some(3, 2, 3)
    joint, asked = estimator.joint(x, y), estimator.joint(x, y, query)
    assert joint.abs().max() > 0.1
    for j in range(2):
        b = slice(j, j + 1)
        wanted = slow_pmi(x, y[:, b], estimator)
        torch.testing.assert_close(joint[:, j], wanted, rtol=0, atol=1e-3)
        wanted = slow_pmi(x, y[:, b], estimator, (query[0], query[1][:, b]))
        torch.testing.assert_close(asked[:, j], wanted, rtol=0, atol=1e-3)


def test_one_component_is_a_pair():
    x, y = some(size=1), some(size=3).relu()
    assert torch.equal(QUICK.joint(x, y), QUICK.pmi(x, y)[:, 0])


def test_mi_is_the_mean_of_pmi():
    x, y = some(size=3), some(size=2)
    both = torch.cat([x, y], dim=1)
    mi, pmi = QUICK.mi(both, y), QUICK.pmi(both, y)
    assert mi.dtype == pmi.dtype == torch.float64
    torch.testing.assert_close(mi, pmi.mean(0), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------- the truth


def test_independent_pairs_have_nothing_in_common():
    x, y = gaussian(300, 4, 0.0, seed=1)
    for a, b in ((x, y), (x.relu(), y.relu())):
        mi = MINE().mi(a, b)
        assert mi.mean().abs() < 0.01
        assert mi.abs().max() < 0.06


@pytest.mark.parametrize("rho", [0.4, 0.8])
def test_gaussian_pairs(rho):
    x, y = gaussian(500, 6, rho, seed=2)
    estimator = MINE()
    errors, samples, queries = [], [], []
    truth = gaussian_pmi(x, y, rho)
    for i in range(6):
        rows = slice(0, 400)
        pair = estimator.prepare(x[rows, i, None]), estimator.prepare(y[rows, i, None])
        pmi = estimator.pmi(*pair)[:, 0, 0]
        query = x[400:, i, None], y[400:, i, None]
        asked = estimator.pmi(*pair, query)[:, 0, 0]
        # what the sample's own true PMI is on average, so that its luck drops out
        errors.append(float(pmi.mean() - truth[rows, i].mean()))
        samples.append(np.corrcoef(pmi, truth[rows, i])[0, 1])
        queries.append(np.corrcoef(asked, truth[400:, i])[0, 1])
    assert abs(np.mean(errors)) < 0.04
    assert np.mean(samples) > 0.9
    assert np.mean(queries) > 0.9


def test_a_vector_tells_what_none_of_its_components_does():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1000, 2, generator=generator)
    y = (x[:, :1] * x[:, 1:]).sign() * torch.rand(1000, 1, generator=generator)
    estimator = MINE()
    assert estimator.mi(x, y).max() < 0.05
    assert 0.5 < estimator.joint(x, y).mean() < math.log(2) + 0.02


def test_increasing_maps_change_nothing():
    x, y = some(), some(seed=1)
    value = QUICK.pmi(x, y)
    assert torch.equal(QUICK.pmi(x.double().exp(), 1e6 * y - 3), value)


@settings(max_examples=25)
@given(st.data())
def test_values_are_finite_and_constants_tell_nothing(data):
    samples = data.draw(st.integers(4, 30))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    gauss = generator.standard_normal(samples)
    columns = [
        np.full(samples, 0.1),
        gauss,
        gauss.clip(0),
        generator.integers(0, 2, samples),
        np.where(generator.random(samples) < 0.9, 0, gauss),
    ]
    x = torch.from_numpy(np.stack(columns, axis=1))
    y = x[:, data.draw(st.permutations(range(5)))]
    pmi = QUICK.pmi(x, y)
    asked = QUICK.pmi(x, y, query=(x[:2] + 0.5, y[:2]))
    for value in (pmi, asked):
        assert value.isfinite().all()
        assert (value[:, 0] == 0).all()
        assert (value[:, :, (y == y[0]).all(0)] == 0).all()
    assert (QUICK.joint(x[:, :1], y) == 0).all()


# ----------------------------------------------------------------- seeds, blocks, mode


def test_a_pair_alone_and_among_many(monkeypatch):
    x, y = gaussian(200, 4, 0.7, seed=3)
    estimator = MINE(steps=40)
    many = estimator.mi(x, y)
    monkeypatch.setattr(mine, "_EFFICIENT", 1)  # one pair at a time
    # to the last bit where this was written; rounding may differ elsewhere
    torch.testing.assert_close(estimator.mi(x, y), many, rtol=0, atol=0.02)


def test_the_seed_is_all_that_is_random(rng_untouched):
    x, y = some(size=2), some(size=3, seed=1)
    x[:, 0] = y[:, 0]
    frozen = x.clone()
    with rng_untouched():
        value = QUICK.pmi(x, y)
    assert torch.equal(QUICK.pmi(x, y), value)
    assert torch.equal(x, frozen)
    other = MINE(hidden=8, steps=12, batch=16, seed=1).pmi(x, y)
    assert not torch.equal(other, value)


def test_the_callers_mode_does_not_matter():
    x, y = some(size=2), some(size=2).relu()
    query = x[:3] + 0.1, y[:3]

    def work() -> tuple[Tensor, Tensor]:
        pair = QUICK.prepare(x), QUICK.prepare(y)
        return QUICK.pmi(*pair), QUICK.pmi(*pair, query)

    value = work()
    for mode in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        with mode:
            again = work()
        for one, other in zip(value, again, strict=True):
            assert torch.equal(one, other)
            assert not other.requires_grad
    torch.set_default_dtype(torch.float64)
    try:
        again = work()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(value[0], again[0])
    followed = x.clone().requires_grad_()
    assert torch.equal(QUICK.pmi(followed, y, query), value[1])


# --------------------------------------------------------------- protocol, and keeping


def test_it_keeps_the_protocol():
    assert isinstance(QUICK, PMIEstimator)
    assert isinstance(QUICK.prepare(some()), Prepared)
    assert pickle.loads(pickle.dumps(QUICK)) == copy.deepcopy(QUICK) == QUICK


def test_prepared_samples_stand_for_tensors():
    x, y = some(size=3), some().relu()
    query = x[:4] + 0.1, y[:4]
    once = QUICK.prepare(x), QUICK.prepare(y)
    again = pickle.loads(pickle.dumps(once)), copy.deepcopy(once)
    for first, second in (once, (x, once[1]), (once[0], y), *again):
        assert torch.equal(QUICK.mi(first, second), QUICK.mi(x, y))
        assert torch.equal(QUICK.pmi(first, second, query), QUICK.pmi(x, y, query))
        assert torch.equal(QUICK.joint(first, second, query), QUICK.joint(x, y, query))


def trained(x: Prepared, y: Prepared) -> list[object]:
    """The networks that are kept for two prepared sets of variables."""
    return list(mine._TRAINED.get(x, {}).get(y, {}).values())


def test_networks_are_trained_once_and_go_with_their_samples():
    x, y = QUICK.prepare(some()), QUICK.prepare(some().relu())
    assert trained(x, y) == []
    QUICK.mi(x, y)
    (networks,) = trained(x, y)
    QUICK.pmi(x, y, query=(some(3), some(3)))
    assert trained(x, y) == [networks]
    QUICK.joint(x, y)
    MINE(hidden=8, steps=12, batch=16, seed=1).mi(x, y)
    assert len(trained(x, y)) == 3
    del y
    assert len(mine._TRAINED[x]) == 0


def test_more_networks_than_may_be_kept(monkeypatch):
    x, y = QUICK.prepare(some()), QUICK.prepare(some().relu())
    value = QUICK.pmi(x, y)
    x, y = copy.deepcopy((x, y))
    monkeypatch.setattr(mine, "_KEPT", 0)
    assert torch.equal(QUICK.pmi(x, y), value)
    assert trained(x, y) == []


def test_progress_counts_every_value(monkeypatch):
    x, y = some(20, 3), some(20, 4)
    x[:, 1] = 7.0
    monkeypatch.setattr(mine, "_EFFICIENT", 1)
    for work, total in (
        (lambda told: QUICK.mi(x, y, progress=told), 20 * 12),
        (lambda told: QUICK.pmi(x, y, (x[:5], y[:5]), progress=told), 5 * 12),
        (lambda told: QUICK.joint(x, y, progress=told), 20 * 4),
    ):
        steps: list[int] = []
        work(steps.append)
        assert sum(steps) == total
        assert len(steps) > 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_precisions(dtype):
    x = some().to(dtype)
    value = QUICK.pmi(x, x)
    assert value.dtype == torch.float64
    assert torch.equal(value, QUICK.pmi(x.double(), x.double()))


def test_empty_sets_of_variables_and_queries_have_empty_results():
    x, none = some(), some(size=0)
    assert QUICK.mi(none, x).shape == (0, 2)
    assert QUICK.pmi(x, none).shape == (40, 2, 0)
    assert QUICK.pmi(x, x, (x[:0], x[:0])).shape == (0, 2, 2)
    assert QUICK.joint(x, none).shape == (40, 0)


def test_the_smallest_sizes():
    x = some(QUICK.min_samples)
    assert MINE(hidden=1, steps=1, batch=1).pmi(x, x, (x, x)).isfinite().all()
    assert QUICK.mi(x, x).isfinite().all()


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": 0}, ValueError, "hidden must be at least 1, not 0"),
        ({"steps": 10.0}, TypeError, "steps must be an int, but is 10.0"),
        ({"batch": True}, TypeError, "batch must be an int, but is True"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), not -1"),
        ({"seed": 1 << 64}, ValueError, "seed must be in"),
        ({"seed": None}, TypeError, "seed must be an int, but is None"),
        ({"learning_rate": "1"}, TypeError, "learning_rate must be a number"),
        ({"learning_rate": 0}, ValueError, "must be positive and finite, not 0"),
        ({"learning_rate": math.nan}, ValueError, "must be positive and finite"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        MINE(**arguments)


def test_bad_samples():
    x = some()
    with pytest.raises(ValueError, match="there are 3 samples in all; give more"):
        QUICK.mi(x[:3], x[:3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        QUICK.mi(x / 0, x)
    with pytest.raises(TypeError, match=r"come from MINE\.prepare, not"):
        QUICK.mi(x.numpy(), x)
    with pytest.raises(ValueError, match="40 samples and y has 20"):
        QUICK.pmi(x, x[:20])
    with pytest.raises(ValueError, match="query's y has 1 variables"):
        QUICK.pmi(x, x, query=(x, x[:, :1]))
    with pytest.raises(ValueError, match="a vector needs at least one"):
        QUICK.joint(some(size=0), x)
