"""Options: what was given, else what the preset says, else the default."""

import pytest
from toy_models import mlp

from captum_nif import EDGE, GaussianCopula, MixedKSG, NIFAttribution
from captum_nif.flow.options import DEFAULTS, PRESETS, chosen


def test_nothing_given_is_the_default():
    assert chosen(None) == DEFAULTS
    assert chosen(None, **{**DEFAULTS, "estimator": None}) == DEFAULTS


def test_presets_differ_from_the_defaults_in_what_they_say():
    paper = chosen("paper")
    assert paper == {
        **DEFAULTS,
        "estimator": MixedKSG(formula="paper"),
        "beta": 5e-4,
        "normalize": None,
    }
    faithful = chosen("faithful")
    assert faithful == {
        "estimator": GaussianCopula(marginals="standard"),
        "relevance": "pairwise",
        "beta": 0.0,
        "normalize": None,
        "scale": "correlation",
        "nodes": "neuron",
        "inputs": "independent",
    }


def test_what_is_given_comes_before_the_preset():
    found = chosen("faithful", estimator=EDGE(), normalize="auto")
    assert found == {**chosen("faithful"), "estimator": EDGE()}
    assert chosen("paper", beta=0.1)["beta"] == 0.1


def test_presets_and_defaults_are_not_changed():
    before = dict(DEFAULTS), {name: dict(x) for name, x in PRESETS.items()}
    chosen("faithful", estimator=EDGE())["beta"] = 3.0
    assert before == (DEFAULTS, PRESETS)


@pytest.mark.parametrize("normalize", ["auto", None])
def test_correlations_are_multiplied_as_they_are(normalize):
    assert chosen(None, scale="correlation", normalize=normalize)["normalize"] is None
    assert chosen(None, normalize=normalize)["normalize"] == normalize


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, r"`preset`.*'paper', 'faithful'.*'best'"),
        ({"scale": "bits"}, r"`scale`.*'nats', 'correlation'; got 'bits'"),
        ({"nodes": "pixel"}, r"`nodes`.*'channel', 'neuron'; got 'pixel'"),
        ({"inputs": "shuffled"}, r"`inputs`.*'observed', 'independent'; got 'shuf"),
        ({"normalize": "column"}, r"`normalize`.*'auto'.*'node'; got 'column'"),
        ({"nodes": ["neuron"]}, r"`nodes`.*got \['neuron'\]"),
        ({"scale": "correlation", "beta": 0.1}, r"`beta` = 0.1.*scale='nats'"),
        ({"scale": "correlation", "relevance": "joint"}, r"'joint'.*scale='nats'"),
        ({"scale": "correlation", "normalize": "node"}, r"'node'.*scale='nats'"),
        ({"preset": "faithful", "beta": 0.1}, r"`beta` = 0.1.*scale='nats'"),
    ],
)
def test_what_is_unknown_or_excluded_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NIFAttribution(mlp(), **options)


def test_the_method_holds_what_was_chosen():
    nif = NIFAttribution(mlp(), preset="faithful", estimator=EDGE())
    held = {name: getattr(nif, name) for name in DEFAULTS}
    assert held == chosen("faithful", estimator=EDGE())
