"""How fast is the mixed-KSG estimator, and how accurate, beside what people use now?

Time per link on one thread, in processor time, methods taking turns; the median of
several rounds counts. Bias and spread of mutual information on pairs whose true
value is known, and the error of single samples' pointwise values.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import Report, Row, argument_parser
from captum_nif.estimators import MixedKSG

Pair = NDArray[np.float64]
"""Samples of x and y, [2, N]."""

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


def by_sklearn(x: Tensor, y: Tensor, k: int) -> None:
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


def population_row(kind: str, n: int, k: int, seed: int, rounds: int) -> Row:
    """Microseconds per link for mutual information of all N samples."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 48, generator=generator, dtype=torch.float64)
    values = COLUMNS[kind](z)
    x, y = values[:, :32], values[:, 32:]
    ksg = MixedKSG(k)
    prepared = ksg.prepare(x), ksg.prepare(y)
    ksg.mi(*prepared)  # compiles
    few = x[:, :2], y[:, :2]
    found = seconds(
        {
            "MixedKSG": lambda: ksg.mi(*prepared),
            "scikit-learn": lambda: by_sklearn(*few, k),
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
        "N": n,
        "k": k,
        "MixedKSG (us)": own,
        **{
            f"{name} (ratio)": micro[name] / own if name in micro else ""
            for name in ("scikit-learn", "k-d tree", "torch")
        },
    }


def instance_row(n: int, k: int, queries: int, seed: int, rounds: int) -> Row:
    """Nanoseconds per link and query for PMI against N prepared samples."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n + queries, 1088, generator=generator)
    x, y = z[queries:, :1024], z[queries:, 1024:]
    query = z[:queries, :1024], z[:queries, 1024:]
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
    own = 1e9 * found["MixedKSG"] / (1024 * 64 * queries)
    peer = 1e9 * found["torch"] / (16 * 64)
    return {
        "N": n,
        "k": k,
        "queries": queries,
        "MixedKSG (ns)": own,
        "torch (ratio)": peer / own,
    }


# -------------------------------------------------------------------------- accuracy


def gaussian(generator: np.random.Generator, n: int, rho: float) -> Pair:
    """A Gaussian pair of correlation rho."""
    z = generator.standard_normal((2, n))
    return np.stack([z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]])


def discrete_and_uniform(generator: np.random.Generator, n: int) -> Pair:
    """One of five values, and a uniform on the next two units."""
    x = generator.integers(0, 5, n)
    return np.stack([x, x + 2 * generator.random(n)])


def mixture(generator: np.random.Generator, n: int) -> Pair:
    """Half a Gaussian pair, half signs that agree 9 times in 10 (Gao et al. 2017)."""
    sign = generator.choice([-1.0, 1.0], n)
    other = np.where(generator.random(n) < 0.9, sign, -sign)
    signs = np.stack([sign, other])
    return np.where(generator.random(n) < 0.5, gaussian(generator, n, 0.9), signs)


def constant(generator: np.random.Generator, n: int) -> Pair:
    """The same value always, and a Gaussian."""
    return np.stack([np.ones(n), generator.standard_normal(n)])


TASKS: dict[str, tuple[Callable[[np.random.Generator, int], Pair], float]] = {
    "independent": (lambda g, n: gaussian(g, n, 0), 0.0),
    "Gaussian 0.6": (lambda g, n: gaussian(g, n, 0.6), -math.log(1 - 0.36) / 2),
    "discrete + uniform": (
        discrete_and_uniform,
        math.log(5) - 4 / 5 * math.log(2),
    ),
    "Gao mixture": (mixture, 1.292),
    "ReLU, independent": (lambda g, n: gaussian(g, n, 0).clip(0), 0.0),
    "ReLU 0.9": (lambda g, n: gaussian(g, n, 0.9).clip(0), 0.554),
    "rounded to 0.1": (lambda g, n: gaussian(g, n, 0.6).round(1), 0.223),
    "heavy tail 0.6": (
        lambda g, n: np.sinh(2 * gaussian(g, n, 0.6)),
        -math.log(1 - 0.36) / 2,
    ),
    "constant": (constant, 0.0),
}


def accuracy_rows(n: int, k: int, seeds: int, seed: int) -> list[Row]:
    """Bias and standard deviation over seeds, in thousandths of a nat."""
    methods: dict[str, Callable[[Tensor, Tensor], float]] = {
        "corrected": lambda x, y: MixedKSG(k).mi(x, y).item(),
        "paper": lambda x, y: MixedKSG(k, "paper").mi(x, y).item(),
        "scikit-learn": lambda x, y: float(
            mutual_info_regression(
                x.numpy(),
                y[:, 0].numpy(),
                discrete_features=False,
                n_neighbors=k,
                random_state=0,
            )[0]
        ),
    }
    rows: list[Row] = []
    for task, (draw, truth) in TASKS.items():
        errors: dict[str, list[float]] = {name: [] for name in methods}
        for i in range(seeds):
            pair = torch.from_numpy(draw(np.random.default_rng((seed, i)), n))
            for name, estimate in methods.items():
                errors[name].append(1000 * (estimate(*pair[:, :, None]) - truth))
        row: dict[str, object] = {"task": task, "N": n, "k": k, "true": truth}
        for name, values in errors.items():
            row[f"{name} bias"] = float(np.mean(values))
            row[f"{name} sd"] = float(np.std(values, ddof=1))
        rows.append(row)
    return rows


def single_sample_rows(n: int, seeds: int, seed: int, rho: float = 0.6) -> list[Row]:
    """How well the PMI of one sample is known: a Gaussian pair, its density known."""
    neighbours = (3, 5, 10, 20, 50)
    found: dict[int, list[tuple[float, float]]] = {k: [] for k in neighbours}
    for i in range(seeds):
        pair = gaussian(np.random.default_rng((seed, i)), n, rho)
        square, product = (pair**2).sum(0), pair[0] * pair[1]
        truth = -math.log(1 - rho**2) / 2 + (rho * product - rho**2 * square / 2) / (
            1 - rho**2
        )
        x, y = torch.from_numpy(pair)[:, :, None]
        for k in neighbours:
            pmi = MixedKSG(k).pmi(x, y)[:, 0, 0].numpy()
            error = float(np.sqrt(np.mean((pmi - truth) ** 2)))
            found[k].append((float(np.corrcoef(pmi, truth)[0, 1]), error))
    rows: list[Row] = []
    for k, pairs in found.items():
        correlations, errors = zip(*pairs, strict=True)
        rows.append(
            {
                "N": n,
                "k": k,
                "correlation with true PMI": float(np.mean(correlations)),
                "sd": float(np.std(correlations, ddof=1)),
                "RMS error, nats": float(np.mean(errors)),
            }
        )
    return rows


def main() -> None:
    """Run it."""
    parser = argument_parser("bench_estimators", __doc__.splitlines()[0], ["synthetic"])
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    parser.add_argument("--seeds", type=int, default=20, help="of each accuracy")
    options = parser.parse_args()
    torch.set_num_threads(1)

    populations = [(kind, 1000, 3) for kind in COLUMNS]
    populations += [("Gaussian", 1000, 10), ("Gaussian", 1000, 25)]
    populations += [("Gaussian", 10_000, 3)]
    instances = [(1000, 3, 1), (1000, 3, 16), (1000, 10, 16), (1000, 25, 16)]
    sizes = (100, 500, 2000)
    bar = tqdm(total=len(populations) + len(instances) + len(sizes))

    report = Report("bench_estimators", "Estimators: time and accuracy", options.seed)
    times: list[Row] = []
    for kind, n, k in populations:
        times.append(population_row(kind, n, k, options.seed, options.rounds))
        bar.update()
    report.table(
        times,
        "population",
        "Mutual information of all pairs: processor time per pair on one thread, and "
        "how many times longer others take.",
    )
    times = []
    for n, k, queries in instances:
        times.append(instance_row(n, k, queries, options.seed, options.rounds))
        bar.update()
    report.table(
        times,
        "instance",
        "PMI of queries for 1024 x 64 pairs, samples prepared: processor time per pair "
        "and query on one thread, and how many times longer plain torch takes.",
    )
    rows: list[Row] = []
    for n in sizes:
        rows += accuracy_rows(n, 5, options.seeds, options.seed)
        bar.update()
    report.table(
        rows,
        "accuracy",
        f"Mutual information, {options.seeds} seeds: bias and standard deviation in "
        "thousandths of a nat.",
    )
    report.table(
        single_sample_rows(1000, options.seeds, options.seed),
        "single",
        f"PMI of single samples of a Gaussian pair, rho = 0.6, {options.seeds} seeds.",
    )
    bar.close()
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
