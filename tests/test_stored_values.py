"""Numbers are the same, to the last bit, as when they were stored.

Networks and data are multiples of powers of 2, so that what a network computes is exact
on every machine. Where the processor or a library differs from those of the stored
numbers, sums may round otherwise, and the last digits are not compared.

To store the numbers of a version that is known to be right:

    python -m tests.test_stored_values
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from captum_nif import (
    EDGE,
    MINE,
    GaussianCopula,
    MixedKSG,
    NIFAttribution,
    betweenness_centrality,
    communities,
    flow_shares,
    link_pvalues,
)

STORED = Path(__file__).parent / "data" / "stored_values.safetensors"
ESTIMATORS = {
    "MixedKSG": MixedKSG(),
    "MixedKSG, k = 10": MixedKSG(k=10),
    "MixedKSG, paper": MixedKSG(formula="paper"),
    "MixedKSG, standard": MixedKSG(k=3, marginals="standard"),
    "EDGE": EDGE(),
    "GaussianCopula": GaussianCopula(),
    "GaussianCopula, standard": GaussianCopula("standard"),
    "MINE": MINE(),
}
CORRELATION: dict[str, Any] = {
    "estimator": GaussianCopula("standard"),
    "scale": "correlation",
    "nodes": "neuron",
    "sampling": "independent",
    "draws": 300,
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("mlp", {}),
    "paper": ("mlp", {"preset": "paper"}),
    "correlation": ("mlp", CORRELATION),
    "EDGE, joint": ("mlp", {"estimator": EDGE(), "relevance": "joint"}),
    "beta": ("mlp", {"beta": 0.05}),
    "channels": ("cnn", {"estimator": GaussianCopula()}),
    "neurons": ("cnn", CORRELATION),
    "skips": ("skips", {}),
    "skips, by layer": ("skips", {"normalize": "layer"}),
}


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.b(h).relu() + h)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)
        ),
        (5,),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
        ),
        (1, 4, 4),
    ),
    "skips": (Skips, (5,)),
}


def numbers(*shape: int, seed: int, units: int = 8) -> Tensor:
    """Whole multiples of a power of 2 about 0, the same on every machine."""
    drawn = np.random.default_rng(seed).integers(-units, units + 1, shape)
    return torch.from_numpy(drawn).double() / units


def network(name: str) -> nn.Module:
    model = NETWORKS[name][0]().double().eval()
    for n, parameter in enumerate(model.parameters()):
        parameter.data = numbers(*parameter.shape, seed=n, units=4)
    return model


@cache
def fitted(method: str) -> tuple[NIFAttribution, Tensor]:
    name, options = METHODS[method]
    shape = NETWORKS[name][1]
    background = numbers(80, *shape, seed=100, units=64)
    nif = NIFAttribution(network(name), **options).fit(background)
    return nif, numbers(4, *shape, seed=101, units=64)


def pair() -> tuple[Tensor, Tensor]:
    x, noise = numbers(60, 3, seed=1, units=64), numbers(60, 2, seed=2, units=64)
    return x, (x[:, :2] + noise).clamp(min=0)  # half of it ties


def joined(by_layer: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.double() for x in by_layer.values()])


def cases() -> dict[str, Callable[[], Tensor]]:
    """What is stored, by name."""
    x, y = pair()
    query = x[:5] + 1 / 128, y[:5] + 1 / 128
    found: dict[str, Callable[[], Tensor]] = {}
    for name, estimator in ESTIMATORS.items():
        found[f"{name}: mi"] = lambda e=estimator: e.mi(x, y)
        found[f"{name}: pmi"] = lambda e=estimator: e.pmi(x, y)
        found[f"{name}: query"] = lambda e=estimator: e.pmi(x, y, query)
        found[f"{name}: joint"] = lambda e=estimator: e.joint(x, y)
    found["p-values"] = lambda: link_pvalues(MixedKSG(), x, y)
    for name in METHODS:

        def of(get: Callable[..., Tensor], name: str = name) -> Callable[[], Tensor]:
            return lambda: get(*fitted(name))

        found[f"{name}: maps"] = of(lambda nif, x: nif.attribute(x, target=1))
        found[f"{name}: matrix"] = of(lambda nif, x: nif.attribution_matrix())
        found[f"{name}: graph"] = of(
            lambda nif, x: torch.cat(
                [link.weight.to_dense().flatten() for link in nif.flow().links]
            )
        )
        found[f"{name}: sample"] = of(
            lambda nif, x: nif.flow(x)[2].links[0].weight.to_dense()
        )
        found[f"{name}: errors"] = of(
            lambda nif, x: nif.standard_error(x[:2], target=0)
        )
    for name in ("default", "skips"):
        for analysis in (betweenness_centrality, communities, flow_shares):
            found[f"{name}: {analysis.__name__}"] = lambda n=name, f=analysis: joined(
                f(fitted(n)[0].flow())
            )
    return found


def machine() -> dict[str, str]:
    """What the last bits of sums may depend on."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def stored() -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(STORED, framework="pt") as file:
        return load_file(STORED), json.loads(file.metadata()["machine"])


@pytest.mark.parametrize("name", cases())
def test_numbers_are_those_that_were_stored(name):
    expected, made_on = stored()
    found = cases()[name]()
    if made_on == machine():
        assert torch.equal(found, expected[name])
    else:
        # MINE trains networks, in which roundings grow.
        tolerance = 1e-3 if name.startswith("MINE") else 1e-9
        torch.testing.assert_close(
            found, expected[name], rtol=tolerance, atol=tolerance
        )


def test_nothing_else_is_stored():
    assert set(stored()[0]) == set(cases())


if __name__ == "__main__":
    torch.set_num_threads(1)
    STORED.parent.mkdir(exist_ok=True)
    save_file(
        {name: make().contiguous() for name, make in cases().items()},
        STORED,
        metadata={"machine": json.dumps(machine())},
    )
