"""How far can p-values of links and standard errors of attributions be trusted?

    python -m benchmarks.uncertainty

Three questions, each with its answer's own uncertainty. How often are independent links
taken for dependent ones, beside how often p-values say so? What share of the links kept
at a false discovery rate does not exist, and how many that exist are found? And are
standard errors of attributions their scatter over fresh backgrounds?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from tqdm import tqdm

from benchmarks.report import argument_parser
from benchmarks.uncertainty.errors import (
    CASES,
    PRESETS,
    SLOW,
    compare,
    explain,
    make_case,
)
from benchmarks.uncertainty.links import KINDS, LAYERS, discoveries, false_positives
from benchmarks.uncertainty.report import build_report
from benchmarks.uncertainty.tables import Errors, Graphs, Rates
from captum_nif.estimators import EDGE, GaussianCopula, MixedKSG, PMIEstimator

DEFAULT = "MixedKSG()"
ESTIMATORS: dict[str, PMIEstimator] = {
    DEFAULT: MixedKSG(),
    "EDGE()": EDGE(),
    "GaussianCopula()": GaussianCopula(),
}
"""MINE would do as well, but trains a network for every value of a table."""

CORRELATIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
MORE_WITHOUT = 5
"""How many times more graphs there are that hold no link at all."""


def cells(sizes: Sequence[int], *others: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The default at every size, the other estimators at the middle one."""
    middle = sizes[len(sizes) // 2]
    return [
        cell
        for cell in product(ESTIMATORS, sizes, *others)
        if cell[0] == DEFAULT or cell[1] == middle
    ]


def measure_rates(sizes: Sequence[int], repeats: int, seed: int) -> Rates:
    """False positives for every kind of links."""
    return {
        (name, n, kind): false_positives(ESTIMATORS[name], kind, n, repeats, seed)
        for name, n, kind in tqdm(cells(sizes, KINDS), desc="false positives")
    }


def measure_graphs(
    sizes: Sequence[int], graphs: int, level: float, seed: int
) -> Graphs:
    """Discoveries for every kind of layers and every correlation."""
    found: Graphs = {}
    for cell in tqdm(cells(sizes, LAYERS, CORRELATIONS), desc="discoveries"):
        name, n, layers, correlation = cell
        count = graphs if correlation else MORE_WITHOUT * graphs
        found[cell] = discoveries(
            ESTIMATORS[name], layers, n, correlation, count, level, seed
        )
    return found


def measure_errors(
    cases: Sequence[str], trainings: Sequence[int], backgrounds: int, size: int
) -> Errors:
    """Standard errors beside the scatter there is, for each training of a network."""
    found: Errors = {}
    with tqdm(list(product(cases, trainings)), desc="standard errors") as bar:
        for name, training in bar:
            case = make_case(name, training, backgrounds, size)
            for label, preset in PRESETS.items():
                matrix = (name, label) not in SLOW
                for of, repeated in explain(case, preset, matrix).items():
                    told = found.setdefault((name, label, of), [])
                    told.append(compare(repeated))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the report."""
    parser = argument_parser("uncertainty", __doc__ or "", list(CASES), several=True)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500, 1000], help="samples N"
    )
    parser.add_argument(
        "--repeats", type=int, default=20, help="of 1024 independent links"
    )
    parser.add_argument("--graphs", type=int, default=6, help="of each correlation")
    parser.add_argument(
        "--level", type=float, default=0.05, help="false discovery rate"
    )
    parser.add_argument("--trainings", type=int, default=3, help="of each network")
    parser.add_argument(
        "--backgrounds", type=int, default=7, help="fresh ones for each training"
    )
    parser.add_argument(
        "--background", type=int, default=250, help="samples of each of them"
    )
    options = parser.parse_args(arguments)
    trainings = range(options.seed, options.seed + options.trainings)
    report = build_report(
        measure_rates(options.sizes, options.repeats, options.seed),
        measure_graphs(options.sizes, options.graphs, options.level, options.seed),
        measure_errors(
            options.dataset, trainings, options.backgrounds, options.background
        ),
        shown=DEFAULT,
        settings=vars(options),
    )
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
