"""What :mod:`benchmarks.ks_comparison` found, as a page with tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.ks_comparison.distance import Values
from benchmarks.ks_comparison.figures import (
    draw_closeness,
    draw_distributions,
    draw_ranked,
)
from benchmarks.ks_comparison.forms import (
    FORMS,
    LABELS,
    LOGITS,
    SLOW_BACKGROUND,
    Scores,
)
from benchmarks.ks_comparison.tables import (
    LEVEL,
    compare_all,
    four_features,
    grouped,
    head_to_head,
    mean_of,
    networks,
    over_trainings,
    pivot,
    table_1,
    verdict,
    with_rejections,
)
from benchmarks.report import Report, Row

INTRODUCTION = """
Davis et al. (2020, Table 1) ask of an attribution whether its scores could come from
the same distribution as *raw mutual information*, the information that each feature has
about a class, and answer it by a two-sample Kolmogorov-Smirnov (KS) test. Its statistic
D is the largest gap between the two empirical distribution functions: 0 if both sides
hold the same values, 1 if all of one side lie below all of the other. **A small D is a
close match.** Here each form below gives one score for each class and feature, and
enters the same tests against raw MI, class by class.
""".strip()

ABOUT_VERDICT = f"""
Is NIF's form closer to raw MI of the labels than its rival? On how many networks, by
the mean over trainings of scaled D (lower is closer) and of rank correlation (higher is
closer); in brackets on how many the paired {1 - LEVEL:.0%} interval leaves out 0:
""".strip()

ABOUT_TABLE_1 = """
The printed p-values are those of the asymptotic formula
`kstwobign.sf((e + 0.12 + 0.11 / e) * D)`, e = sqrt(nm / (n + m)), which SciPy used up
to version 1.2, at n = m = 4, cut off after three digits. So each side had four values:
most likely the four features of Iris or Banknote, and not the 784 pixels of MNIST,
which the text names. And they say the opposite of the text, which takes NIF's row to
mean that NIF "is likely drawn from the same distribution as the raw mutual
information": D = 1 is the largest there is, and p = 0.011 *rejects* a common
distribution; D = 0.25 with p = 0.996 is the closest match. **As printed, Integrated
Gradients is closest to raw MI and NIF farthest.** With four values against four no D
but 1 can be rejected at 5 %, by either formula.
""".strip()

ABOUT_FOUR_FEATURES = """
Where the data has four features, as the paper did it: D of raw values (asymptotic p),
for each class of the first training.
""".strip()

ABOUT_RAW = f"""
All data, all features: mean D of raw values over classes, with the 95 % interval over
trainings (and the share of asymptotic tests that reject at {LEVEL:.0%}). Raw values
have different units: raw MI is in nats, NIF's matrix a product of such numbers, IG and
KernelShap shares of a logit. This D mostly tells how large scores are.
""".strip()

ABOUT_SCALED = f"""
Each side divided by the sum of its absolute values, so that it holds shares: mean D
over classes, with the 95 % interval over trainings (and the share of permutation tests,
over all splits or 999 random ones, that reject at {LEVEL:.0%}). Permutation takes
scores as exchangeable, which those of the same features are not: read D, and p as its
scale. **D sees values, not features**: raw MI with its features shuffled has D = 0. And
with four features D is 0.25, 0.5 or 0.75, hardly a measure.
""".strip()

ABOUT_RANKS = """
Does a form rank features as raw MI does? Spearman's correlation, mean over classes,
with the 95 % interval over trainings:
""".strip()

ABOUT_TOP = """
Does it name the same features? The share of the quarter of features with most raw MI
that is in the form's highest quarter; chance is 0.25:
""".strip()

ABOUT_LOGITS = """
The second yardstick, the information between a feature and the class's *logit*: what
the network made of the data, and no training of it can change what a feature tells
about the label. Scaled D:
""".strip()

ABOUT_CHECKS = """
Raw MI in nats by this package's estimator and by scikit-learn's
(`mutual_info_classif`, the same number of neighbors), on the same samples of the first
training. scikit-learn breaks ties by noise and cuts off below 0; rank correlation
suffers where many features tell nothing.
""".strip()


SHOWN = (
    "NIF, matrix",
    "NIF, class averages",
    "NIF, instances",
    "NIF paper, matrix",
    "NIF faithful, instances",
    "IG",
    "KernelShap",
)
"""What figures of single networks show beside the yardstick."""


def panels(scores: Sequence[Scores]) -> dict[str, dict[str, Values]]:
    """The scores that figures show: of the first class in the first training."""
    first = min(found.training for found in scores)
    shown: dict[str, dict[str, Values]] = {}
    for found in scores:
        if found.training == first and found.form in (LABELS, *SHOWN):
            place = shown.setdefault(f"{found.dataset}, {found.network}", {})
            place[found.form] = found.values[0].numpy()
    return shown


def build_report(
    scores: Sequence[Scores],
    checks: Sequence[Row],
    settings: Mapping[str, int],
    seed: int,
) -> Report:
    r"""
    The whole page.

    Args:

        scores (Sequence[Scores]): Every form of every network and training.
        checks (Sequence[Row]): The yardstick beside scikit-learn's.
        settings (Mapping[str, int]): ``background`` and ``per_class``.
        seed (int): The first training's.

    Returns:

        Report: Tables, figures and what they mean.
    """
    cells = compare_all(scores, LABELS)
    by_logits = [
        cell
        for cell in compare_all(scores, LOGITS)
        if FORMS[cell.form].kind != "baseline"
    ]
    shown = panels(scores)
    report = Report("ks_comparison", "Whose scores are like raw MI?", seed)
    report.text(INTRODUCTION)
    report.text(
        "\n".join(f"- **{name}**: {form.described}." for name, form in FORMS.items())
    )
    report.table(
        networks(scores),
        "networks",
        f"Methods get a background of {settings['background']} training samples at "
        f"most, those that run on a slow engine (*NIF paper*) {SLOW_BACKGROUND}; "
        f"{settings['per_class']} test samples of each class are explained. Each "
        "training has weights, order, background and (but for MNIST, which has its "
        "own) split of its own. MNIST is the first 6000 training and 1000 test images, "
        "halved to 14 x 14 pixels, and *NIF paper* explains its first training only.",
    )
    report.text("## What beats what, in short")
    report.table(verdict(cells), "verdict", ABOUT_VERDICT)
    report.text("## The paper's Table 1, as it is printed")
    report.table(table_1(), "table_1")
    report.text(ABOUT_TABLE_1)
    report.text("## The paper's protocol")
    small = four_features(cells)
    if small:
        report.table(small, "four_features", ABOUT_FOUR_FEATURES)
    report.table(
        pivot(cells, with_rejections("raw_distance", "raw_p")), "raw", ABOUT_RAW
    )
    report.figure(
        draw_distributions(shown, scaled=False),
        "raw",
        "Raw scores of the first class, first training: mostly the test sees units.",
    )
    report.text("## Sound")
    report.table(pivot(cells, with_rejections("distance", "p")), "scaled", ABOUT_SCALED)
    report.figure(
        draw_distributions(shown, scaled=True),
        "scaled",
        "The same, each side divided by the sum of its absolute values.",
    )
    report.table(pivot(cells, mean_of("correlation")), "correlation", ABOUT_RANKS)
    report.table(pivot(cells, mean_of("top")), "top", ABOUT_TOP)
    report.figure(
        draw_ranked(shown),
        "ranked",
        "Which feature gets what: first class, first training.",
    )
    report.figure(
        draw_closeness(
            {
                name: {
                    key: over_trainings(group, measure)
                    for key, group in grouped(cells).items()
                }
                for name, measure in (
                    ("scaled D (low: alike)", "distance"),
                    ("rank correlation (high: alike)", "correlation"),
                )
            }
        ),
        "closeness",
        "Means over trainings with 95 % intervals; blue is NIF, orange its rivals, "
        "gray what they are measured by.",
    )
    report.text("## NIF less its rivals, paired by training")
    report.table(
        head_to_head(cells, "distance"),
        "gaps_distance",
        "Differences of scaled D with 95 % intervals: **below 0 NIF is closer**. A "
        "star: the interval leaves out 0; so many are tested that some will by chance.",
    )
    report.table(
        head_to_head(cells, "correlation"),
        "gaps_correlation",
        "Differences of rank correlation: **above 0 NIF is closer**.",
    )
    report.text("## Against the logits")
    report.table(pivot(by_logits, mean_of("distance")), "logits_distance", ABOUT_LOGITS)
    report.table(
        pivot(by_logits, mean_of("correlation")),
        "logits_correlation",
        "Rank correlation with it:",
    )
    report.text("## Is the yardstick right?")
    report.table(checks, "sklearn", ABOUT_CHECKS)
    return report
