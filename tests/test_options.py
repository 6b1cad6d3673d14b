"""Options: what was given, else what the preset says, else the default."""

import copy
import pickle
from dataclasses import fields, replace

import pytest
import torch
from toy_models import mlp

from captum_nif import EDGE, GaussianCopula, MixedKSG, NIFAttribution
from captum_nif.flow.options import NOT_GIVEN, PRESETS, Options, chosen


def test_nothing_given_is_the_default():
    assert chosen(None, {}) == Options()
    assert chosen(None, {"estimator": None, "beta": NOT_GIVEN}) == Options()


def test_presets_differ_from_the_defaults_in_what_they_say():
    assert chosen("paper", {}) == replace(
        Options(), estimator=MixedKSG(formula="paper"), beta=5e-4, normalize=None
    )
    assert chosen("faithful", {}) == Options(sampling="hybrid", normalize=None)
    assert chosen("gradient_free", {}) == Options(
        estimator=GaussianCopula(marginals="standard"),
        normalize=None,
        scale="correlation",
        nodes="neuron",
        sampling="independent",
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_given_overrides_a_preset_also_where_it_equals_the_default(preset):
    for name in PRESETS[preset]:
        default = getattr(Options(), name)
        found = chosen(preset, {name: default})
        adds_up = found.scale == "correlation" or found.sampling == "hybrid"
        expected = None if adds_up else default
        assert getattr(found, name) == (expected if name == "normalize" else default)


@pytest.mark.parametrize("normalize", ["auto", None])
def test_correlations_are_multiplied_as_they_are(normalize):
    given = {"normalize": normalize}
    assert chosen(None, {"scale": "correlation", **given}).normalize is None
    assert chosen(None, given).normalize == normalize


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, r"`preset`.*'paper', 'faithful'.*'best'"),
        ({"scale": "bits"}, r"`scale`.*'nats', 'correlation'; got 'bits'"),
        ({"nodes": "pixel"}, r"`nodes`.*'channel', 'neuron'; got 'pixel'"),
        ({"sampling": "shuffled"}, r"`sampling`.*'observed', 'independent', 'hyb"),
        ({"normalize": "column"}, r"`normalize`.*'auto'.*'node'; got 'column'"),
        ({"nodes": ["neuron"]}, r"`nodes`.*got \['neuron'\]"),
        ({"scale": "correlation", "beta": 0.1}, r"`beta` = 0.1.*scale='nats'"),
        ({"scale": "correlation", "relevance": "joint"}, r"'joint'.*scale='nats'"),
        ({"scale": "correlation", "normalize": "node"}, r"'node'.*scale='nats'"),
        ({"preset": "gradient_free", "beta": 0.1}, r"`beta` = 0.1.*scale='nats'"),
        ({"preset": "faithful", "beta": 0.1}, r"`beta` = 0.1.*slopes.*another preset"),
        ({"preset": "faithful", "estimator": EDGE()}, r"`estimator` = EDGE"),
    ],
)
def test_what_is_unknown_or_excluded_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NIFAttribution(mlp(), **options)


def test_the_method_holds_what_was_chosen():
    nif = NIFAttribution(mlp(), preset="gradient_free", estimator=EDGE())
    assert nif.options == chosen("gradient_free", {"estimator": EDGE()})
    for field in fields(Options):
        assert getattr(nif, field.name) == getattr(nif.options, field.name)


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_options_are_fixed_and_the_message_says_what_to_do(name):
    nif = NIFAttribution(mlp())
    with pytest.raises(AttributeError, match=rf"`{name}`.*with_options\({name}="):
        setattr(nif, name, None)
    assert nif.options == Options()


def test_with_options_keeps_what_was_given_and_is_not_fitted():
    nif = NIFAttribution(mlp(), preset="paper", seed=3).fit(torch.randn(40, 4))
    other = nif.with_options(beta=0.0)
    assert other.options == replace(nif.options, beta=0.0)
    assert (other.seed, other.is_fitted, nif.beta) == (3, False, 5e-4)
    assert nif.with_options(preset=None).options == Options(seed=3)
    with pytest.raises(TypeError, match="gamma"):
        nif.with_options(gamma=1.0)


def pickled(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_copies_explain_as_the_original_does(copied, preset):
    model, x = mlp(), torch.randn(60, 4)
    nif = NIFAttribution(model, preset=preset, draws=300)
    assert copied(nif).options == nif.options
    other = copied(nif.fit(x))
    assert other.is_fitted
    assert other.forward_func is not model
    assert torch.equal(other.attribute(x[:4], 1), nif.attribute(x[:4], 1))
    graph = nif.flow()
    for link, same in zip(graph.links, other.flow().links, strict=True):
        assert torch.equal(link.weight, same.weight)
