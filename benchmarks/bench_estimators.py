"""How accurate and how fast are the estimators, beside what people use now?

Bias, spread and error of mutual information on pairs whose true value is known, the
correlation of single samples' pointwise values with the truth, and time per pair on
one thread, in processor time: methods take turns, the median of several rounds counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor
from tqdm import tqdm

from benchmarks.estimator_accuracy import (
    PEERS,
    Found,
    Method,
    draw_bias,
    draw_summary,
    measure,
    methods,
    summary_rows,
    task_rows,
    verdict,
)
from benchmarks.known_pairs import tasks
from benchmarks.report import Report, Row, argument_parser
from captum_nif.estimators import MixedKSG, PMIEstimator

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


# ---------------------------------------------------------------------------- report


def tell_times(report: Report, seed: int, rounds: int) -> None:
    """Time of the mixed-KSG engine beside what people use."""
    populations = [(kind, 1000, 3) for kind in COLUMNS]
    populations += [("Gaussian", 1000, 10), ("Gaussian", 1000, 25)]
    populations += [("Gaussian", 10_000, 3)]
    report.table(
        [population_row(*case, seed, rounds) for case in tqdm(populations, "times")],
        "population",
        "MixedKSG, mutual information of all pairs: processor time per pair on one "
        "thread, and how many times longer others take.",
    )
    # k, queries and variables of x: what a call costs besides shows in small layers
    instances = [(3, 1, 1024), (3, 1, 16_384), (3, 16, 1024)]
    instances += [(10, 1, 16_384), (10, 16, 1024), (25, 16, 1024)]
    report.table(
        [instance_row(1000, *c, seed, rounds) for c in tqdm(instances, "queries")],
        "instance",
        "MixedKSG, PMI of queries, samples prepared: processor time per pair and query "
        "on one thread, and how many times longer plain torch takes.",
    )
    report.table(
        thread_rows(seed, rounds),
        "threads",
        "MixedKSG, N = 1000, k = 3: wall time, which tells of threads only where "
        "nothing else runs.",
    )


def tell_accuracy(
    report: Report, sizes: Sequence[int], seeds: int, seed: int, rounds: int
) -> None:
    """Accuracy of all methods, with their time per pair."""
    kinds, tried = tasks(), methods()
    found: Found = {}
    times: list[Row] = []
    for n, method in tqdm(list(product(sizes, tried)), "accuracy"):
        found[n, method.name] = measure(method, kinds, n, seeds, seed)
        times.append(scaling_row(method, n, seed, rounds))
    missing = [name for name, *_ in PEERS if name not in {m.name for m in tried}]
    report.text(
        f"{len(kinds)} kinds of pairs whose mutual information is known. Peers run "
        f"with their defaults; not installed: {', '.join(missing) or 'none'}."
    )
    report.text(verdict(found, tried, sizes))
    report.figure(
        draw_summary(found, times, tried),
        "summary",
        "Means over all kinds of pairs, with 95 % intervals, and time, against N.",
    )
    report.table(
        summary_rows(found),
        "summary",
        "Means over all kinds of pairs, in nats, with the 95 % interval of the mean "
        "RMSE. PMI is that of single samples.",
    )
    middle = sorted(sizes)[len(sizes) // 2]
    report.figure(
        draw_bias(found, tried, kinds, middle),
        "bias",
        f"Bias in thousandths of a nat at N = {middle}; in brackets, the truth.",
    )
    report.table(
        times,
        "scaling",
        "Processor time on one thread, Gaussian pairs: mutual information from raw "
        "samples; and PMI of a query, samples prepared (MINE: trained).",
    )
    report.table(
        task_rows(found, kinds),
        "accuracy",
        "All of it, in nats; the bias with its 95 % interval.",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argument_parser("bench_estimators", __doc__.splitlines()[0], ["synthetic"])
    parser.add_argument("--rounds", type=int, default=5, help="of each time")
    parser.add_argument("--seeds", type=int, default=20, help="of each accuracy")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500, 2000], help="samples N"
    )
    parser.add_argument("--only", choices=["accuracy", "time"], help="one half of it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = Report("bench_estimators", "Estimators: accuracy and time", options.seed)
    if options.only != "time":
        tell_accuracy(
            report, options.sizes, options.seeds, options.seed, options.rounds
        )
    if options.only != "accuracy":
        tell_times(report, options.seed, options.rounds)
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
