"""The ablation: its variants are what they say, and a small run writes its report."""

import torch

from benchmarks import ablation
from benchmarks.ablation import FAITHFUL, VARIANTS, main
from benchmarks.data.models import mlp
from captum_nif import NIFAttribution
from captum_nif.flow.options import chosen


def test_the_preset_taken_apart_is_the_preset():
    assert chosen(None, FAITHFUL) == chosen("gradient_free", {})


def test_without_gains_is_matrix_times_deviation():
    model = mlp(5, 3, (6, 4)).eval()
    generator = torch.Generator().manual_seed(0)
    background = torch.randn(300, 5, generator=generator) * 2 + 1
    x, targets = background[:4], torch.tensor([0, 1, 2, 1])
    found = VARIANTS["  without gains"](model, background, 0)(x, targets)
    nif = NIFAttribution(model, preset="gradient_free").fit(background)
    matrix = nif.attribution_matrix()
    for row, sample, target in zip(found, x, targets, strict=True):
        for i, value in enumerate(row):
            column = background[:, i]
            spread = ((column - column.mean()) ** 2).mean().sqrt()
            slow = matrix[i, target] * (sample[i] - column.mean()) / spread
            assert abs(value - slow) < 1e-5


def test_a_single_link_leads_to_the_class_without_hidden_nodes():
    model = mlp(5, 3, (6, 4)).eval()
    background = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    options = FAITHFUL | {"layers": ["fc3"]}
    nif = NIFAttribution(model, **options).fit(background)
    assert [link.ends for link in nif.flow().links] == [("input", "output")] or [
        link.ends for link in nif.flow().links
    ] == [("input", "fc3")]
    x, targets = background[:4], torch.tensor([0, 1, 2, 1])
    found = VARIANTS["single link"](model, background, 0)(x, targets)
    torch.testing.assert_close(found, nif.attribute(x, targets))


def test_beta_is_chosen_on_the_other_trainings():
    gaps = {  # of trainings 0, 1, 2
        ablation.BETAS[0]: [0.5, 0.1, 0.2],
        ablation.BETAS[1]: [0.1, 0.4, 0.3],
        ablation.BETAS[2]: [0.2, 0.3, 0.3],
        ablation.BETAS[3]: [0.0, 0.0, 0.0],
    }
    rows = [
        {"dataset": "d", "network": "n", "training": t, "method": beta, "gap": gap}
        for beta, found in gaps.items()
        for t, gap in enumerate(found)
    ]
    # the sums over the others: .3 .7 .6 without 0, .7 .4 .5 without 1, .6 .5 .5
    expected = [gaps[ablation.BETAS[1]][0], gaps[ablation.BETAS[0]][1], 0.2]
    found = ablation.cross_validated(rows)
    assert [row["gap"] for row in found] == expected
    assert {row["method"] for row in found} == {ablation.CROSS_VALIDATED}


def test_a_small_run_writes_its_report(tmp_path, monkeypatch):
    few = [*ablation.BETAS, "gradient free", "single link", ablation.REFERENCE]
    monkeypatch.setattr(ablation, "VARIANTS", {name: VARIANTS[name] for name in few})
    arguments = ["--dataset", "iris", "--trainings", "2", "--samples", "8"]
    main([*arguments, "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "ablation.json",
        "ablation.md",
        "ablation.png",
        "ablation_iris_MLP.csv",
    }
    page = (tmp_path / "ablation.md").read_text()
    assert "| IG, mean | 1.000 ± 0.000 |" in page
