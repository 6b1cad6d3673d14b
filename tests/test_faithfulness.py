"""The benchmark end to end on a small scale, and its arithmetic."""

import csv
import math

import pytest
import torch
from torch import nn

from benchmarks.data.models import residual_cnn
from benchmarks.data.trained import NETWORKS, make_task
from benchmarks.faithfulness import __main__ as faithfulness
from benchmarks.faithfulness.__main__ import Settings, main, measure
from benchmarks.faithfulness.methods import METHODS
from benchmarks.faithfulness.perturbation import perturbation_curves
from benchmarks.faithfulness.report import build_report
from benchmarks.faithfulness.sanity import rank_correlation
from benchmarks.faithfulness.summary import (
    by_network,
    cascades,
    summary,
    verdict,
    with_shares,
)
from captum_nif import NIFAttribution

SMALL = ["--dataset", "iris", "--trainings", "2", "--samples", "5", "--few", "1"]
SETTINGS = Settings(samples=6, few=3, background=60, cascade=False)


@pytest.fixture(scope="module")
def table_task():
    return make_task("table", "MLP", 0, None, samples=6, background=60)


@pytest.fixture(scope="module")
def measured(table_task):
    return measure(table_task, METHODS["IG, mean"], SETTINGS)


def test_the_command_writes_everything_and_goes_on_where_it_stopped(
    tmp_path, monkeypatch
):
    out = ["--out", str(tmp_path)]
    main([*SMALL, *out, "--cascade"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"faithfulness{end}"
        for end in (".md", ".csv", ".json", "_curves.png", "_costs.png")
    }
    with (tmp_path / "faithfulness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(METHODS)
    shares = {row["method"]: float(row["share"]) for row in rows}
    assert shares["IG, mean"] == 1
    page = (tmp_path / "faithfulness.md").read_text()
    assert "randomized from the top" in page
    for name, method in METHODS.items():
        assert f"- {name}: {method.described}" in page

    def refuse(*_):
        raise AssertionError("measured or trained again")

    monkeypatch.setattr(faithfulness, "measure", refuse)
    monkeypatch.setattr(faithfulness, "make_task", refuse)
    main([*SMALL, *out, "--cascade"])
    with (tmp_path / "faithfulness.csv").open() as file:
        assert list(csv.DictReader(file)) == rows
    with pytest.raises(AssertionError, match="trained again"):
        main([*SMALL, *out])  # other settings


def test_measures_are_those_of_the_maps(table_task, measured):
    task = table_task
    method = METHODS["IG, mean"]
    maps = method(task.model, task.background)(task.inputs, task.targets)
    curves = perturbation_curves(
        task.model, task.inputs, task.targets, maps, task.donors
    )
    assert measured["deletion"] == pytest.approx(curves.deletion_area.mean().item())
    assert measured["insertion"] == pytest.approx(curves.insertion_area.mean().item())
    assert measured["gap"] == pytest.approx(
        measured["insertion"] - measured["deletion"]
    )
    inside = maps.abs()[:, :3].sum(dim=1) / maps.abs().sum(dim=1)
    assert measured["relevant mass"] == pytest.approx(inside.mean().item(), rel=1e-5)
    assert 0 < measured["infidelity"] < 1
    assert measured["explanation, s"] > 0
    assert len(measured["shares"]) == 13
    assert len(measured["cascade"]) == 1


def test_weights_are_forgotten_from_the_top_and_in_the_end_wholly(table_task, measured):
    deep = measure(
        table_task, METHODS["IG, mean"], Settings(**{**vars(SETTINGS), "cascade": True})
    )
    assert len(deep["cascade"]) == 3
    assert deep["cascade"][-1] == deep["randomized"] == measured["randomized"]
    assert deep["cascade |a|"][-1] == measured["randomized |a|"]
    # a map that looks at the data alone does not forget
    data_only = METHODS["NIF"]._replace(make=lambda model, b, s: lambda x, t: x)
    blind = measure(table_task, data_only, SETTINGS)
    assert blind["randomized"] == pytest.approx(1)
    assert abs(measure(table_task, METHODS["random"], SETTINGS)["randomized"]) < 0.9


def test_the_random_weights_are_not_those_that_training_began_with(table_task):
    # or maps that follow the first weights would seem to ignore what was learned
    began = NETWORKS["MLP"]((12,), 3, 0).fc1.weight.detach()
    same, other = (
        faithfulness.randomized(table_task.model, seed=seed).fc1.weight.detach()
        for seed in (0, faithfulness.OTHER_WEIGHTS)
    )
    assert torch.equal(same, began)
    pair = began.reshape(1, -1), other.reshape(1, -1)
    assert rank_correlation(*pair).abs().item() < 0.4  # standard deviation 0.09


def rows_of(gaps, training=0, **more):
    names = {"dataset": "iris", "network": "MLP", "training": training}
    return [{**names, "method": m, "gap": gap, **more} for m, gap in gaps.items()]


def test_shares_are_of_the_same_training():
    rows = rows_of({"NIF": 0.2, "IG, mean": 0.4}) + rows_of(
        {"IG, mean": 0.1, "NIF": 0.2, "random": -0.1}, training=1
    )
    assert [row["share"] for row in with_shares(rows)] == [0.5, 1, 1, 2, -1]
    assert math.isnan(with_shares(rows_of({"NIF": 0.1, "IG, mean": -0.1}))[0]["share"])


def test_words_and_tables_say_what_was_measured():
    rows = rows_of({"NIF": 0.2, "IG, mean": 0.4, "random": 0.0}, deletion=0.5)
    rows += rows_of({"NIF": 0.3, "IG, mean": 0.4, "random": 0.1}, 1, deletion=0.25)
    networks = by_network(with_shares(rows))
    assert list(verdict(networks, "NIF")) == [
        "- iris, MLP: share 0.625 ± 1.588; ahead of random | behind IG, mean"
    ]
    (methods,) = networks.values()
    table = summary(methods, ("deletion", "share"))
    assert table[0] == {
        "method": "NIF",
        "deletion": "0.375 ± 1.588",
        "share": "0.625 ± 1.588",
    }


def test_the_page_leaves_out_what_is_unknown(measured):
    rows = [
        {"dataset": "iris", "network": "MLP", "training": 0, "method": m, **measured}
        | {"relevant mass": math.nan, "relevant AUC": math.nan}
        for m in METHODS
    ]
    page = build_report(rows, vars(SETTINGS), 0)._page
    tables = [part for part in page if part.startswith("## iris")]
    assert len(tables) == 1
    assert "randomized" in tables[0]
    assert "relevant" not in tables[0]


def test_cascades_are_means_over_trainings():
    results = [
        {"cascade": [1.0, 0.5], "cascade |a|": [0.9, 0.7]},
        {"cascade": [0.8, 0.0], "cascade |a|": [0.9, 0.5]},
    ]
    assert list(cascades({"NIF": results})) == [
        {"method": "NIF", "of": "a", "1": "0.90", "2": "0.25"},
        {"method": "NIF", "of": "|a|", "1": "0.90", "2": "0.60"},
    ]


def test_the_residual_network_has_skips_and_norms_and_can_be_explained():
    model = residual_cnn((3, 9, 12), 5, channels=4, blocks=3).eval()
    assert model(torch.rand(2, 3, 9, 12)).shape == (2, 5)
    names = [name for name, _ in model.named_children()]
    assert names == "conv1 bn1 relu1 block1 block2 block3 pool flatten fc".split()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * 2 + 1
    nif = NIFAttribution(model).fit(torch.rand(50, 3, 9, 12))
    assert not nif._fitted[0].flow.is_chain
    maps = nif.attribute(torch.rand(2, 3, 9, 12), target=1)
    assert maps.isfinite().all()
    assert maps.abs().sum() > 0
