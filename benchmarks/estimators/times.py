"""How long estimates of mutual information take, beside what people use now.

Processor time on one thread, as the median of several rounds in which the methods take
turns; wall time only where it is about threads.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from benchmarks.estimators.accuracy import Method
from benchmarks.report import Row
from captum_nif.estimators import MixedKSG, PMIEstimator
from captum_nif.estimators.marginals import Marginals

QUERIES = 16
"""Queries whose PMI is timed together."""

COLUMNS: dict[str, Callable[[Tensor], Tensor]] = {
    "Gaussian": lambda z: z,
    "50 % zeros": torch.relu,
    "90 % zeros": lambda z: torch.where(z > 1.2816, z, 0.0),
    "rounded to 0.1": lambda z: (z * 10).round() / 10,
    "binary": lambda z: (z > 0).double(),
    "constant": torch.zeros_like,
    "heavy tail": lambda z: z * z * z.sinh(),
    "scale mismatch": lambda z: z * torch.logspace(-3, 3, z.shape[1]).double(),
}


# ----------------------------------------------------------------------------- peers


def all_by_sklearn(x: Tensor, y: Tensor, k: int) -> None:
    """scikit-learn, one variable of y at a time, as it is meant to be used."""
    for column in y.t().numpy():
        mutual_info_regression(
            x.numpy(), column, discrete_features=False, n_neighbors=k, random_state=0
        )


def by_tree(x: Tensor, y: Tensor, k: int) -> None:
    """KSG-1 with SciPy's k-d tree, as in many scripts."""
    n = len(x)
    for a in x.t().numpy():
        for b in y.t().numpy():
            points = np.stack([a, b], axis=1)
            rho = cKDTree(points).query(points, k + 1, p=np.inf)[0][:, -1]
            inside = np.nextafter(rho, 0)
            counts = [
                cKDTree(v[:, None]).query_ball_point(
                    v[:, None], inside, p=np.inf, return_length=True
                )
                for v in (a, b)
            ]
            psi = sum(digamma(count).mean() for count in counts)
            _ = digamma(k) + digamma(n) - psi


def by_torch(x: Tensor, y: Tensor, k: int) -> None:
    """All distances at once with torch, one variable of x at a time."""
    distance_y = (y.t()[:, :, None] - y.t()[:, None]).abs()
    for column in x.t():
        distance_x = (column[:, None] - column).abs()
        plane = torch.maximum(distance_x, distance_y)
        rho = plane.topk(k + 1, largest=False).values[..., -1:]
        counts = (distance_x < rho).sum(-1), (distance_y < rho).sum(-1)
        _ = sum(torch.digamma(count.double()).mean(-1) for count in counts)


def queries_by_torch(
    x: Tensor, y: Tensor, query: tuple[Tensor, Tensor], k: int
) -> None:
    """PMI of queries against samples, by contiguous torch operations."""
    for point_x, point_y in zip(*query, strict=True):
        distance_y = (y - point_y).abs().t().contiguous()
        for column, value in zip(x.t(), point_x, strict=True):
            distance_x = (column - value).abs()
            plane = torch.maximum(distance_x, distance_y)
            rho = plane.topk(k, largest=False).values[..., -1:]
            counts = (distance_x < rho).sum(-1), (distance_y < rho).sum(-1)
            _ = sum(torch.digamma(count + 1.0) for count in counts)


# ------------------------------------------------------------------------------ time


def seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor time of each, taking turns so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def population_row(
    kind: str, n: int, k: int, marginals: Marginals, seed: int, rounds: int
) -> Row:
    """Microseconds per link for mutual information of all N samples."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 48, generator=generator, dtype=torch.float64)
    values = COLUMNS[kind](z)
    x, y = values[:, :32], values[:, 32:]
    ksg = MixedKSG(k, marginals=marginals)
    prepared = ksg.prepare(x), ksg.prepare(y)
    ksg.mi(*prepared)  # compiles
    few = x[:, :2], y[:, :2]
    found = seconds(
        {
            "MixedKSG": lambda: ksg.mi(*prepared),
            "scikit-learn": lambda: all_by_sklearn(*few, k),
            "k-d tree": lambda: by_tree(*few, k),
            **({"torch": lambda: by_torch(*few, k)} if n <= 2000 else {}),
        },
        rounds,
    )
    links = {"MixedKSG": 32 * 16}
    micro = {name: 1e6 * s / links.get(name, 4) for name, s in found.items()}
    own = micro["MixedKSG"]
    return {
        "columns": kind,
        "marginals": marginals,
        "N": n,
        "k": k,
        "MixedKSG (us)": own,
        **{
            f"{name} (ratio)": micro[name] / own if name in micro else ""
            for name in ("scikit-learn", "k-d tree", "torch")
        },
    }


def instance_row(
    n: int, k: int, queries: int, sources: int, seed: int, rounds: int
) -> Row:
    """Nanoseconds per link and query for PMI against N prepared samples."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n + queries, sources + 64, generator=generator)
    x, y = z[queries:, :sources], z[queries:, sources:]
    query = z[:queries, :sources], z[:queries, sources:]
    ksg = MixedKSG(k)
    prepared = ksg.prepare(x), ksg.prepare(y)
    ksg.pmi(*prepared, query)  # compiles
    few = x[:, :16], y, (query[0][:1, :16], query[1][:1])
    found = seconds(
        {
            "MixedKSG": lambda: ksg.pmi(*prepared, query),
            "torch": lambda: queries_by_torch(*few, k),
        },
        rounds,
    )
    own = 1e9 * found["MixedKSG"] / (sources * 64 * queries)
    peer = 1e9 * found["torch"] / (16 * 64)
    return {
        "N": n,
        "k": k,
        "queries": queries,
        "pairs": sources * 64,
        "MixedKSG (ns)": own,
        "torch (ratio)": peer / own,
    }


def scaling_row(method: Method, n: int, seed: int, rounds: int) -> Row:
    """Microseconds per pair: mutual information, and PMI of a query if there is one."""
    a, b = (1, 1) if method.peer else (4, 4) if method.costly else (32, 16)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n + QUERIES, a + b, generator=generator, dtype=torch.float64)
    x, y = z[:, :a], z[:, a:]
    query = x[n:], y[n:]
    x, y = x[:n], y[:n]
    work: dict[str, Callable[[], object]] = {}
    if isinstance(method.of, PMIEstimator):
        estimator = method.of
        prepared = estimator.prepare(x), estimator.prepare(y)
        estimator.pmi(*prepared, query)  # compiles, or trains
        work["MI"] = lambda: estimator.mi(x, y)
        work["query"] = lambda: estimator.pmi(*prepared, query)
    else:
        work["MI"] = lambda: method.estimate(x, y)
    found = seconds(work, 1 if method.costly else rounds)
    micro = {name: 1e6 * taken / (a * b) for name, taken in found.items()}
    return {
        "N": n,
        "method": method.name,
        "us per pair": micro["MI"],
        "us per pair and query": micro["query"] / QUERIES if "query" in micro else "",
    }


FIRST_CALLS = """
import time
import torch
from captum_nif import MixedKSG
x, ksg = torch.randn(100, 8), MixedKSG(k=3)
query = x[:1], x[:1]
works = lambda: ksg.prepare(x), lambda: ksg.mi(x, x), lambda: ksg.pmi(x, x, query)
for work in works:
    start = time.process_time()
    work()
    print(time.process_time() - start)
"""


def first_call_rows() -> list[Row]:
    """Seconds that the first calls of a process take, the second process from cache."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        for kernels in ("compiled", "found"):
            told = subprocess.run(
                [sys.executable, "-c", FIRST_CALLS],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            names = ("prepare, s", "mi, s", "pmi of a query, s")
            rows.append(
                {"kernels": kernels, **dict(zip(names, map(float, told), strict=True))}
            )
    return rows


def thread_rows(seed: int, rounds: int) -> list[Row]:
    """Wall time in one thread and in two, which take turns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 20_000, generator=generator)
    y = torch.randn(1000, 64, generator=generator)
    ksg = MixedKSG(k=3)
    few, many, targets = (ksg.prepare(values) for values in (x[:, :200], x, y))
    query = x[:1], y[:1]
    rows: list[Row] = []
    for work, run in (
        ("prepare 20,000 variables", lambda: ksg.prepare(x)),
        ("MI of 12,800 pairs", lambda: ksg.mi(few, targets)),
        ("PMI of a query, 1.28 million pairs", lambda: ksg.pmi(many, targets, query)),
    ):
        walls: dict[int, list[float]] = {1: [], 2: []}
        for threads in (1, 2) * (rounds + 1):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            run()
            walls[threads].append(time.perf_counter() - start)
        # the first of each warms up
        one, two = (statistics.median(taken[1:]) for taken in walls.values())
        rows.append({"work": work, "one thread, s": one, "faster in two": one / two})
    torch.set_num_threads(1)
    return rows
