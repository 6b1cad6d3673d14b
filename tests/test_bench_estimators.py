import csv

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, ttest_1samp

from benchmarks import bench_estimators
from benchmarks.estimators import times as estimator_times
from benchmarks.estimators.accuracy import (
    DEFAULT,
    Method,
    measure,
    methods,
    summary_rows,
    task_rows,
    verdict,
)
from benchmarks.estimators.known_pairs import tasks
from captum_nif.estimators import MixedKSG

KINDS = [task for task in tasks() if task.name in ("independent", "Gaussian 0.9")]
KSG = Method("MixedKSG", MixedKSG(3), {})


def test_errors_are_estimates_less_the_truth():
    errors = measure(KSG, KINDS, n=80, seeds=4, seed=7)
    for i, task in enumerate(KINDS):
        for j in range(4):
            known = task.draw(np.random.default_rng((7, i, j)), 80)
            x, y = torch.from_numpy(known.pair)[:, :, None]
            pmi = MixedKSG(3).pmi(x, y)[:, 0, 0].numpy()
            error = pmi.mean() - task.information
            assert errors.information[i, j] == pytest.approx(error)
            apart = np.sqrt(((pmi - known.pmi) ** 2).mean())
            assert errors.pointwise[i, j] == pytest.approx(apart)
            if task.information == 0:  # the truth does not vary
                assert np.isnan(errors.correlation[i, j])
            else:
                both = np.corrcoef(pmi, known.pmi)[0, 1]
                assert errors.correlation[i, j] == pytest.approx(both)


def test_bias_spread_and_error_with_intervals():
    found = {(60, "MixedKSG"): measure(KSG, KINDS, n=60, seeds=12, seed=0)}
    (errors,) = found.values()
    for row, values in zip(task_rows(found, KINDS), errors.information, strict=True):
        interval = ttest_1samp(values, 0).confidence_interval()
        assert row["bias"] - row["+-"] == pytest.approx(interval.low)
        assert row["bias"] + row["+-"] == pytest.approx(interval.high)
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        assert row["RMSE"] == pytest.approx(np.sqrt(np.mean(values**2)))
    (row,) = summary_rows(found)
    assert row["mean RMSE"] == pytest.approx(errors.rmse.mean())
    assert row["mean abs. bias"] == pytest.approx(np.abs(errors.bias).mean())
    wanted = bootstrap(
        tuple(errors.information),
        lambda *tasks, axis: np.mean(
            [np.sqrt(np.mean(task**2, axis=axis)) for task in tasks], axis=0
        ),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
        vectorized=True,
    ).confidence_interval
    assert row["from"] == pytest.approx(wanted.low, rel=0.1)
    assert row["to"] == pytest.approx(wanted.high, rel=0.1)


def test_methods_without_single_samples_have_no_correlation():
    always = Method("always one nat", lambda x, y: 1.0, {}, peer=True)
    errors = measure(always, KINDS, n=20, seeds=2, seed=0)
    assert errors.bias.tolist() == [1.0, 1 - KINDS[1].information]
    (row,) = summary_rows({(20, "always one nat"): errors})
    assert row["PMI correlation"] == row["PMI RMSE"] == ""
    nothing = Method("nothing", MixedKSG(19), {})
    assert np.isfinite(measure(nothing, KINDS, 20, 2, 0).correlation[1]).all()


def test_costly_methods_get_fewer_seeds():
    costly = KSG._replace(costly=True)
    assert measure(costly, KINDS, 20, 20, 0).information.shape == (2, 10)
    assert measure(costly, KINDS, 20, 3, 0).information.shape == (2, 2)


def test_the_verdict_names_the_better():
    tried = methods()
    values = {method.name: 0.2 for method in tried}
    values |= {"MixedKSG k=3": 0.1, DEFAULT: 0.3}
    found = {
        (50, method.name): measure(
            method._replace(of=lambda x, y, v=values[method.name]: v, costly=False),
            KINDS[:1],
            50,
            2,
            0,
        )
        for method in tried
    }
    told = verdict(found, tried, [50])
    assert "MixedKSG k=3, 0.100 (50% less)" in told
    assert f"{DEFAULT}, 0.300 (50% more)" in told
    assert "0.200." in told


def test_the_whole_report_of_few_small_tasks(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_estimators, "tasks", lambda: KINDS)
    arguments = "--only accuracy --sizes 40 --seeds 2 --rounds 1 --out".split()
    bench_estimators.main([*arguments, str(tmp_path)])
    torch.set_num_threads(threads)
    names = {method.name for method in methods()}
    assert {DEFAULT, "EDGE", "MINE", "GaussianCopula", "sklearn"} <= names
    for part, rows in (("summary", 1), ("accuracy", len(KINDS)), ("scaling", 1)):
        with (tmp_path / f"bench_estimators_{part}.csv").open() as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(names) * rows
        assert {row["method"] for row in found} == names
    assert all(float(row["us per pair"]) > 0 for row in found)
    page = (tmp_path / "bench_estimators.md").read_text()
    for part in ("summary", "bias"):
        assert (tmp_path / f"bench_estimators_{part}.png").stat().st_size > 10_000
        assert f"bench_estimators_{part}.png" in page
    assert "best peer" in page
    assert str(tmp_path / "bench_estimators.md") in capsys.readouterr().out


@pytest.mark.parametrize("marginals", ["normal", "raw"])
def test_rows_of_times_compare_the_engine_with_its_peers(marginals):
    row = estimator_times.population_row("binary", 50, 3, marginals, seed=0, rounds=1)
    assert row["MixedKSG (us)"] > 0
    assert min(row[f"{peer} (ratio)"] for peer in ("scikit-learn", "k-d tree")) > 0


def test_rows_of_times_count_every_query():
    row = estimator_times.instance_row(50, 3, queries=2, sources=20, seed=0, rounds=1)
    assert row["pairs"] == 20 * 64
    assert row["torch (ratio)"] > 0
