"""The comparison with raw mutual information: its measures, forms and report."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.data.datasets import load_iris
from benchmarks.ks_comparison.__main__ import Settings, main, make_case
from benchmarks.ks_comparison.distance import (
    asymptotic_p,
    ks_distance,
    permutation_p,
    raw_mi,
    raw_mi_by_sklearn,
    top_agreement,
    unit_sum,
)
from benchmarks.ks_comparison.figures import widest_gap
from benchmarks.ks_comparison.forms import FORMS, LABELS, LOGITS, Case, Scores
from benchmarks.ks_comparison.tables import (
    advantage,
    compare,
    compare_all,
    head_to_head,
    table_1,
    verdict,
)
from captum_nif import MixedKSG, NIFAttribution

# Few different values, so that many are equal.
values = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9).map(np.array)


def slow_distance(a, b):
    """The definition: both functions counted at every value."""
    return max(
        abs(sum(v <= t for v in a) / len(a) - sum(v <= t for v in b) / len(b))
        for t in [*a, *b]
    )


@given(values, values)
def test_the_distance_is_its_definition_and_scipys(a, b):
    assert ks_distance(a, b) == pytest.approx(slow_distance(a, b), abs=1e-12)
    by_scipy = stats.ks_2samp(a, b, method="asymp").statistic
    assert ks_distance(a, b) == pytest.approx(by_scipy, abs=1e-12)


def test_the_distance_takes_many_samples_along_any_axis():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, (6, 3, 7)), generator.integers(0, 5, (6, 4, 7))
    together = ks_distance(a.astype(float), b.astype(float), axis=1)
    for i, j in itertools.product(range(6), range(7)):
        one = ks_distance(a[i, :, j].astype(float), b[i, :, j].astype(float))
        assert together[i, j] == one


@pytest.mark.parametrize(
    ("distance", "p"), [(1.0, 0.0111), (0.75, 0.1075), (0.25, 0.9969)]
)
def test_the_papers_p_values_are_asymptotic_ones_of_four_values(distance, p):
    e = math.sqrt(4 * 4 / (4 + 4))
    formula = stats.kstwobign.sf((e + 0.12 + 0.11 / e) * distance)
    assert asymptotic_p(distance, 4, 4) == pytest.approx(formula, rel=1e-12)
    assert round(asymptotic_p(distance, 4, 4), 4) == p


def test_no_other_number_of_features_gives_the_papers_p_values():
    printed = [(1.0, "0.011"), (0.75, "0.107"), (0.25, "0.996")]

    def fits(n):
        return all(str(asymptotic_p(d, n, n))[:5] == p for d, p in printed)

    assert [n for n in range(1, 1000) if fits(n)] == [4]


few_values = st.lists(st.integers(0, 3).map(float), min_size=2, max_size=4)


@settings(max_examples=30)
@given(few_values.map(np.array), few_values.map(np.array), st.integers(0, 3))
def test_small_permutation_tests_count_every_split(a, b, seed):
    pooled = np.concatenate([a, b])
    observed, count, splits = ks_distance(a, b), 0, 0
    for chosen in itertools.combinations(range(len(pooled)), len(a)):
        rest = [i for i in range(len(pooled)) if i not in chosen]
        count += ks_distance(pooled[list(chosen)], pooled[rest]) >= observed - 1e-12
        splits += 1
    assert permutation_p(a, b, seed) == pytest.approx(count / splits)


@pytest.mark.parametrize("moved", [1, 2, 3, 4])
def test_without_ties_permutation_is_the_exact_test(moved):
    a, b = np.arange(4.0), np.arange(4.0) + moved - 0.5
    exact = stats.ks_2samp(a, b, method="exact").pvalue
    assert permutation_p(a, b, seed=0) == pytest.approx(exact)


def test_large_permutation_tests_find_what_differs_and_draw_from_their_seed(
    rng_untouched,
):
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=60), generator.normal(size=60)
    with rng_untouched():
        same = permutation_p(a, b, seed=1)
        assert permutation_p(a, b + 1, seed=1) < 0.01
        assert same == permutation_p(a, b, seed=1)
    exact = stats.ks_2samp(a, b, method="exact").pvalue
    assert same == pytest.approx(exact, abs=0.06)  # 4 standard errors of 999 draws


# Tenths are rounded, so sums depend on the order; none is so small that shares vanish.
tenths = st.integers(-9999, 9999).map(lambda v: v / 10)


@given(st.lists(tenths, min_size=2, max_size=30), st.randoms())
def test_shares_have_no_scale_and_no_order(scores, random):
    a = np.array(scores)
    shuffled = scores.copy()
    random.shuffle(shuffled)
    # To the last bit: a test of distributions must not see the order.
    assert ks_distance(unit_sum(a), unit_sum(np.array(shuffled))) == 0
    assert (unit_sum(4 * a) == unit_sum(a)).all()
    if np.abs(a).sum() > 1e-9:
        assert np.abs(unit_sum(a)).sum() == pytest.approx(1)
        assert (np.sign(unit_sum(a)) == np.sign(a)).all()


def test_a_map_of_zeros_stays_one():
    assert unit_sum(np.zeros(3)).tolist() == [0, 0, 0]


@given(st.integers(1, 12), st.randoms())
def test_the_agreement_of_the_highest_is_counted(n, random):
    a, b = ([float(random.randrange(6)) for _ in range(n)] for _ in range(2))
    highest = math.ceil(n / 4)

    def named(scores):
        return {i for _, i in sorted((-s, i) for i, s in enumerate(scores))[:highest]}

    shared = len(named(a) & named(b)) / highest
    assert top_agreement(np.array(a), np.array(b)) == shared


def test_raw_information_is_the_entropy_of_a_class_that_a_feature_decides():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=generator)
    noise = torch.randn(900, generator=generator)
    found = raw_mi(torch.stack([y + 0.01 * noise, noise], dim=1), y, 3)
    for c in range(3):
        p = (y == c).double().mean().item()
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        assert found[c, 0].item() == pytest.approx(entropy, abs=0.03)
        assert found[c, 1].item() == pytest.approx(0, abs=0.05)


def test_raw_information_is_about_that_of_scikit_learn(rng_untouched):
    iris = load_iris()
    with rng_untouched():
        other = raw_mi_by_sklearn(iris.x_train, iris.y_train, 3, seed=0)
    own = raw_mi(iris.x_train, iris.y_train, 3)
    assert own.shape == other.shape == (3, 4)
    assert (own - other).abs().max() < 0.1


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case("iris", "MLP", 1, None, Settings(background=60, per_class=4))


def test_a_case_explains_test_samples_of_each_class(case):
    iris = load_iris(1)
    assert case.test_accuracy > 0.8
    assert [len(x) for x in case.explained] == [4, 4, 4]
    for c, samples in enumerate(case.explained):
        of_class = iris.x_test[iris.y_test == c]
        assert all((row == of_class).all(dim=1).any() for row in samples)
    assert torch.equal(case.background, case.x[:60])
    rows = {(*x, c) for x, c in zip(case.x.tolist(), case.y.tolist(), strict=True)}
    train = zip(iris.x_train.tolist(), iris.y_train.tolist(), strict=True)
    assert rows == {(*x, c) for x, c in train}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_scores_each_class_and_feature(name, case, rng_untouched):
    with rng_untouched():
        scores = FORMS[name](case)
    assert scores.shape == (3, 4)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    assert torch.equal(scores, FORMS[name](case))


def test_single_samples_enter_by_their_mean_absolute_attribution(case):
    baseline = case.background.mean(dim=0, keepdim=True)
    gradients = IntegratedGradients(case.model)
    for c, samples in enumerate(case.explained):
        total = torch.zeros(4)
        for x in samples:
            total += gradients.attribute(x[None], baseline, target=c)[0].detach().abs()
        found = FORMS["IG"](case)[c]
        torch.testing.assert_close(found.float(), total / 4, rtol=1e-4, atol=1e-5)


def test_the_matrix_keeps_its_signs(case):
    fitted = NIFAttribution(case.model).fit(case.background)
    assert torch.equal(FORMS["NIF, matrix"](case).T, fitted.attribution_matrix())
    paper = NIFAttribution(case.model, preset="paper").fit(case.background)
    assert torch.equal(FORMS["NIF paper, matrix"](case).T, paper.attribution_matrix())


def test_slow_forms_make_do_with_a_small_background(case, monkeypatch):
    monkeypatch.setattr("benchmarks.ks_comparison.forms.SLOW_BACKGROUND", 30)
    fitted = NIFAttribution(case.model, preset="paper").fit(case.background[:30])
    assert torch.equal(FORMS["NIF paper, matrix"](case).T, fitted.attribution_matrix())


def test_class_averages_stand_on_the_background_and_its_labels(case):
    product = {c: torch.eye(4, dtype=torch.float64) for c in range(3)}
    values = [case.background]
    for layer in case.model[1:]:
        values.append(layer(values[-1]).detach())
    nodes = [values[0], values[2], values[4], values[5]]  # the input, after ReLUs, end
    for source, target in itertools.pairwise(nodes):
        pmi = MixedKSG().pmi(source, target)
        for c in range(3):
            product[c] = product[c] @ pmi[case.y[:60] == c].mean(dim=0)
    found = FORMS["NIF, class averages"](case)
    for c in range(3):
        torch.testing.assert_close(found[c], product[c][:, c])


def test_signed_correlations_enter_by_their_size(case):
    fitted = NIFAttribution(case.model, preset="faithful").fit(case.background)
    expected = fitted.attribution_matrix().T
    assert (expected < 0).any()
    assert torch.equal(FORMS["NIF faithful, matrix"](case), expected.abs())


def test_the_yardsticks(case):
    logits = case.model(case.x).detach()
    for c in range(3):
        is_class = (case.y == c).float()[:, None]
        labels = MixedKSG().mi(case.x, is_class)[:, 0]
        torch.testing.assert_close(FORMS[LABELS](case)[c], labels)
        single_link = MixedKSG().mi(case.x, logits[:, c : c + 1])[:, 0]
        torch.testing.assert_close(FORMS[LOGITS](case)[c], single_link)
    shuffled = FORMS["raw MI, shuffled"](case)
    assert torch.equal(shuffled.sort().values, FORMS[LABELS](case).sort().values)


def scores(form, rows, training=0, network="MLP"):
    found = torch.tensor(rows, dtype=torch.float64)
    return Scores("iris", network, training, form, found, 1.0)


def test_a_form_is_compared_class_by_class():
    yardstick = scores(LABELS, [[1, 2, 3, 4], [4, 3, 2, 1]])
    first, second = compare(scores("IG", [[10, 20, 30, 40]] * 2), yardstick)
    assert (first.label, second.label) == (0, 1)
    # As raw values they do not even touch; as shares they are the same.
    assert (first.raw_distance, round(first.raw_p, 4)) == (1.0, 0.0111)
    assert (first.distance, first.p) == (0.0, 1.0)
    assert first.correlation == pytest.approx(1)
    assert second.correlation == pytest.approx(-1)
    assert second.distance == 0.0  # which feature has which value it does not see
    assert (first.top, second.top) == (1.0, 0.0)


def fabricated():
    """Three trainings: NIF's matrix as raw MI, IG reversed, everything else between."""
    found = []
    for training in range(3):
        yardstick = [1.0, 2.0, 3.0, 5.0 + training]
        found.append(scores(LABELS, [yardstick], training))
        for name, form in FORMS.items():
            if form.kind in ("NIF", "rival"):
                made = {
                    "NIF, matrix": [10 * v for v in yardstick],
                    "IG": [9.0, 3.0, 2.0, 1.0],
                }.get(name, [1.0, 1.0, 1.5 + training, 2.0])
                found.append(scores(name, [made], training))
    return found


def test_leads_are_paired_by_training():
    cells = compare_all(fabricated(), LABELS)
    (gap,) = advantage(cells, "NIF, matrix", "IG", "correlation").values()
    assert gap.mean == pytest.approx(2)
    assert gap.half == pytest.approx(0, abs=1e-9)
    by_hand = [
        slow_distance(unit_sum(np.array([1.0, 2, 3, 5 + t])), unit_sum(made))
        for t in range(3)
        for made in [np.array([9.0, 3, 2, 1])]
    ]
    (gap,) = advantage(cells, "NIF, matrix", "IG", "distance").values()
    assert gap.mean == pytest.approx(-np.mean(by_hand))


def test_a_training_without_a_rival_is_left_out_of_the_pairs():
    cells = compare_all(fabricated(), LABELS)
    fewer = [c for c in cells if not (c.form == "NIF, matrix" and c.training > 0)]
    (gap,) = advantage(fewer, "NIF, matrix", "IG", "correlation").values()
    assert gap.mean == pytest.approx(2)
    assert math.isnan(gap.half)


def test_the_verdict_counts_networks():
    cells = compare_all(fabricated(), LABELS)
    matrix = next(row for row in verdict(cells) if row["form"] == "NIF, matrix")
    assert matrix["ranks: than IG"] == "closer on 1 (1), farther on 0 (0) of 1"
    rows = head_to_head(cells, "correlation")
    assert rows[0]["difference"] == "NIF, matrix less IG"
    assert rows[0]["iris, MLP"] == "+2.000 ± 0.000*"


def test_table_1_says_that_gradients_are_closest_and_nif_is_rejected():
    rows = {row["method"]: row for row in table_1()}
    assert rows["NIF"]["as printed, at 5 %"] == "rejected"
    assert rows["IG"]["closest to raw MI"] == "yes"
    exact = [row["p, exact, n = m = 4"] for row in rows.values()]
    assert exact == pytest.approx([2 / 70, 16 / 70, 1])
    for row in rows.values():
        # Cut off after three digits, as they are printed.
        assert str(row["p, asymptotic, n = m = 4"])[:5] == str(row["p, printed"])


@given(values, values)
def test_figures_mark_the_gap_that_is_tested(a, b):
    at, low, high = widest_gap(a, b)
    assert high - low == pytest.approx(ks_distance(a, b))
    heights = [float((s <= at).mean()) for s in (a, b)]
    assert sorted(heights) == [low, high]


def test_one_command_writes_the_report_and_goes_on_where_it_stopped(
    tmp_path, capsys, monkeypatch
):
    options = ["--dataset", "iris", "--trainings", "1", "--background", "40"]
    options += ["--per-class", "2", "--out", str(tmp_path)]
    main(options)
    page = (tmp_path / "ks_comparison.md").read_text()
    for named in ("0.01107", "0.1075", "0.9969", *FORMS, "(feature; 1[y = class])"):
        assert named in page
    for figure in ("raw", "scaled", "ranked", "closeness"):
        assert (tmp_path / f"ks_comparison_{figure}.png").stat().st_size > 10_000
    # Nothing is trained again, and the numbers are those that were kept.
    monkeypatch.delattr("benchmarks.ks_comparison.__main__.trained")
    main(options)
    again = (tmp_path / "ks_comparison.md").read_text()
    assert [line for line in again.splitlines() if "| date |" not in line] == [
        line for line in page.splitlines() if "| date |" not in line
    ]
    assert "ks_comparison.md" in capsys.readouterr().out
