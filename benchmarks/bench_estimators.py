"""How accurate and how fast are the estimators, beside what people use now?

Bias, spread and error of mutual information on pairs whose true value is known, the
correlation of single samples' pointwise values with the truth, and time per pair on
one thread, in processor time: methods take turns, the median of several rounds counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from tqdm import tqdm

from benchmarks.estimators.accuracy import (
    PEERS,
    Found,
    draw_bias,
    draw_summary,
    measure,
    methods,
    summary_rows,
    task_rows,
    verdict,
)
from benchmarks.estimators.known_pairs import tasks
from benchmarks.estimators.times import (
    COLUMNS,
    first_call_rows,
    instance_row,
    population_row,
    scaling_row,
    thread_rows,
)
from benchmarks.report import Report, Row, argument_parser
from captum_nif.estimators.marginals import Marginals


def tell_times(report: Report, seed: int, rounds: int) -> None:
    """Time of the mixed-KSG engine beside what people use."""
    populations: list[tuple[str, int, int, Marginals]] = [
        *((kind, 1000, 3, "normal") for kind in COLUMNS),
        ("Gaussian", 1000, 10, "normal"),
        ("Gaussian", 1000, 25, "normal"),
        ("Gaussian", 10_000, 3, "normal"),
        ("Gaussian", 1000, 3, "raw"),
    ]
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
        first_call_rows(),
        "first_calls",
        "MixedKSG: processor time of the first calls of a process, on 100 samples of "
        "8 nodes, where numba has yet to compile kernels, and where it finds them.",
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
