"""Bad input is refused with the right type and words that help; doubtful, warned of."""

import math
import re
import warnings

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.datasets import load_banknote, load_digits, load_iris
from captum_nif import MixedKSG, NIFAttribution
from captum_nif._messages import counted, warn
from captum_nif.flow import near_copies
from captum_nif.flow.checks import (
    check_own_population,
    check_reached,
    check_same,
    check_scale,
)
from captum_nif.flow.population import run_population
from captum_nif.tracing.tracer import Structure, trace


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def net() -> nn.Sequential:
    return mlp()


@pytest.fixture
def fitted(net) -> NIFAttribution:
    return NIFAttribution(net).fit(torch.randn(60, 4))


def raises(error: type[Exception], *words: str):
    return pytest.raises(error, match=".*".join(map(re.escape, words)))


def spoiled(x: Tensor, value: float, *at: int) -> Tensor:
    x = x.clone()
    x[at] = value
    return x


# --- populations ---------------------------------------------------------------------


def test_too_few_samples(net):
    with raises(ValueError, "3 samples", "MixedKSG(k=None", "at least 4", "options"):
        NIFAttribution(net).fit(torch.randn(3, 4))
    NIFAttribution(net).fit(torch.randn(4, 4))
    with raises(ValueError, "10 samples", "MixedKSG", "at least 11", "options"):
        NIFAttribution(net, preset="paper").fit(torch.randn(10, 4))
    with raises(ValueError, "Nothing is fitted", "31 samples", "32", "fit(background)"):
        NIFAttribution(net).attribute(torch.randn(31, 4), 0)
    with raises(ValueError, "1 sample is too few"):
        NIFAttribution(net).flow(torch.randn(1, 4))
    with raises(ValueError, "k is the number of neighbors", "at least 1"):
        NIFAttribution(net, estimator=MixedKSG(k=0))


def test_more_neighbors_than_samples(net):
    x = torch.randn(40, 4)
    many = NIFAttribution(net, estimator=MixedKSG(k=40))
    for call, what in ((many.fit, "background"), (many.attribute, "batch")):
        with raises(ValueError, f"The {what} has 40 samples", "at least 41"):
            call(x)
    NIFAttribution(net, estimator=MixedKSG(k=39)).attribute(x, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(net, fitted, bad):
    x = torch.randn(60, 4)
    where = "Input 0 of ", "NaN or infinity", "(7, 2)"
    with raises(ValueError, "the background", "NaN or infinity", "(7, 2)"):
        NIFAttribution(net).fit(spoiled(x, bad, 7, 2))
    with raises(ValueError, *where):
        NIFAttribution(net).attribute(spoiled(x, bad, 7, 2), 0)
    with raises(ValueError, *where):
        fitted.attribute(spoiled(x, bad, 7, 2), 0)
    with raises(ValueError, "the background", "NaN or infinity"):
        fitted.attribute(x, 0, background=spoiled(x, bad, 7, 2))


def test_activations_that_are_not_finite_name_the_layer(net):
    net[2].weight.data[1] = float("inf")
    with raises(ValueError, "layer '2'", "NaN or infinity", "node 1"):
        NIFAttribution(net).fit(torch.randn(60, 4))


def test_shapes_and_dtypes_that_differ(net, fitted):
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = NIFAttribution(conv.eval()).fit(torch.randn(40, 1, 6, 6))
    with raises(ValueError, "input 0", "(1, 8, 8)", "(1, 6, 6)"):
        images.attribute(torch.randn(2, 1, 8, 8), 0)
    with raises(ValueError, "(1, 8, 8)", "expected [(1, 6, 6)]", "one shape"):
        images.fit([torch.randn(40, 1, 6, 6), torch.randn(40, 1, 8, 8)])
    with raises(ValueError, "[(4,), (4,)]", "expected [(4,)]"):
        run_population(net, [((torch.ones(2, 4),) * n, ()) for n in (1, 2)])
    with raises(ValueError, "Got 2 inputs", "background has 1"):
        fitted.attribute((torch.randn(2, 4), torch.randn(2, 4)), 0)
    with raises(ValueError, "torch.float64", "model is torch.float32", ".to(dtype)"):
        NIFAttribution(net).fit(torch.randn(60, 4).double())
    with raises(ValueError, "torch.float64", "background was torch.float32"):
        fitted.attribute(torch.randn(2, 4).double(), 0)
    with raises(TypeError, "complex"):
        NIFAttribution(net).attribute(torch.randn(40, 4) + 0j, 0)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(scale * (x + z))


def test_sizes_that_differ():
    x = torch.randn(40, 3)
    nif = NIFAttribution(Sum().eval())
    for call in (nif.fit, nif.attribute):
        with raises(ValueError, "[(40, 3), (39, 3)]", "same, positive number"):
            call((x, x[:39]))
    with raises(ValueError, "(0, 3)", "positive number"):
        nif.fit((x, x)).attribute((x[:0], x[:0]), 0)
    with raises(ValueError, "[()", "axis 0"):
        nif.attribute((torch.tensor(1.0), torch.tensor(1.0)))


def test_devices_that_differ():
    x = torch.randn(40, 4)
    nif = NIFAttribution(nn.Sequential(nn.Linear(4, 2, device="meta")))
    with raises(ValueError, "on cpu", "model on meta", ".to(device)"):
        nif.attribute(x, 0)
    with raises(ValueError, "Input 0 of the background", "meta", "if the model is"):
        nif.fit(x)


def test_inputs_without_values(net, fitted):
    x = torch.empty(40, 4, device="meta")
    nif = NIFAttribution(net)
    for call in (lambda: nif.attribute(x, 0), lambda: fitted.attribute(x, 0)):
        with raises(ValueError, "Input 0 of the", "meta device", "no values"):
            call()
    for background in (x, (x,), [x]):
        with raises(ValueError, "Input 0 of the background", "meta", "no values"):
            nif.fit(background)


@pytest.mark.parametrize(
    "empty",
    [torch.randn(0, 4), [], iter(()), DataLoader(TensorDataset(torch.randn(0, 4)))],
    ids=["tensor", "list", "iterator", "loader"],
)
def test_empty_backgrounds(net, empty):
    with pytest.raises(ValueError, match=r"background (is empty|have shapes)"):
        NIFAttribution(net).fit(empty)


@pytest.mark.parametrize(
    ("background", "words"),
    [
        (None, ["background", "DataLoader", "NoneType"]),
        (3.0, ["background", "float"]),
        ("data", ["background", "str"]),
        ({"x": torch.randn(60, 4)}, ["background", "dict"]),
        ([{"x": torch.randn(60, 4)}], ["batch", "dict", "for batch in loader"]),
        (torch.randn(60, 4).numpy(), ["got ndarray", "torch.from_numpy"]),
        ([torch.randn(60, 4).numpy()], ["batch", "ndarray", "torch.from_numpy"]),
        (TensorDataset(torch.randn(60, 4)), ["DataLoader(dataset, batch_size=64)"]),
        ([["x", torch.randn(60, 4)]], ["batch", "begin with", "'str'"]),
        ([[]], ["holds 0 tensors", "takes 1 input:"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_backgrounds_of_other_types(net, background, words):
    error = ValueError if "takes 1 input:" in words else TypeError
    with raises(error, *words):
        NIFAttribution(net).fit(background)


def test_labels_in_a_tuple_and_in_a_loader(net):
    x, y = torch.randn(60, 4), torch.zeros(60)
    with raises(ValueError, "tuple of 2 tensors means 2 inputs", "takes 1", "labels"):
        NIFAttribution(net).fit((x, y))
    NIFAttribution(net).fit([(x, y)])


def test_further_arguments_of_a_stream():
    model, x = Sum().eval(), torch.randn(40, 3)
    nif = NIFAttribution(model)
    with raises(ValueError, "additional_forward_args", "tuple of tensors"):
        nif.fit([x], additional_forward_args=x)
    with raises(ValueError, "3 tensors", "first 1 to 2 may be inputs", "tuple"):
        nif.fit([(x, x, x)], additional_forward_args=2.0)
    with raises(ValueError, "(39, 3)", "40 samples"):
        nif.fit(x, additional_forward_args=x[:39])
    with raises(ValueError, "1 tensor,", "takes 2 inputs", "pass a tuple"):
        nif.fit([x, x])
    with raises(ValueError, "follows the samples", "fit(background, additional"):
        nif.attribute(x, 0, additional_forward_args=x, background=x)


def test_labels_beside_the_background(net):
    x, y = torch.randn(60, 4), torch.zeros(60)
    with pytest.raises(TypeError, match=r"no labels.*additional_forward_args"):
        NIFAttribution(net).fit(x, y)


def test_nothing_fitted(net):
    nif = NIFAttribution(net)
    for call in (nif.flow, nif.attribution_matrix):
        with raises(RuntimeError, "no population", "fit(background)"):
            call()


# --- the model ------------------------------------------------------------------------


def in_place(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].bias.add_(1e-7)


def through_data(net: nn.Sequential) -> None:
    net[0].weight.data[0, 0] = 0.0


def loaded(net: nn.Sequential) -> None:
    net.load_state_dict(mlp().state_dict())


def permuted(net: nn.Sequential) -> None:
    net[0].weight.data = net[0].weight.data.flip(0)


def buffered(net: nn.Sequential) -> None:
    net.register_buffer("extra", torch.zeros(1))


def replaced(net: nn.Sequential) -> None:
    net[2] = nn.Linear(6, 3, bias=False)


@pytest.mark.parametrize(
    "change",
    [in_place, through_data, loaded, permuted, buffered, replaced, nn.Module.double],
)
def test_a_model_changed_since_fit(net, fitted, change):
    change(net)
    for call in (
        lambda: fitted.attribute(torch.randn(2, 4), 0),
        lambda: fitted.flow(torch.randn(2, 4)),
        fitted.flow,
        fitted.attribution_matrix,
    ):
        with raises(RuntimeError, "changed since `fit`", "again"):
            call()
    fitted.fit(torch.randn(60, 4).to(net[0].weight.dtype)).attribution_matrix()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a if x.mean() > 0 else self.b)(x))


def test_another_control_flow():
    model, x = Branching().eval(), torch.rand(40, 4)
    with raises(ValueError, "other layers", "the background", "a, b", "one control"):
        NIFAttribution(model).fit([x, -x])
    with raises(ValueError, "other layers", "the samples", "a, b"):
        NIFAttribution(model).fit(x).attribute(-x, 0)


def test_structures_that_differ_in_links_alone():
    found = trace(mlp(), (torch.randn(2, 4),)).structure
    other = Structure(found.layers, (("input", "2"), *found.links))
    check_same(found, found, "it")
    with raises(ValueError, "it", "input -> 2"):
        check_same(found, other, "it")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (nn.Dropout(), "Dropout"),
        (nn.AlphaDropout(), "AlphaDropout"),
        (nn.RReLU(), "RReLU"),
    ],
)
def test_training_mode_warns_where_it_matters(module, words):
    model = nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 2)).train()
    x = torch.randn(60, 4)
    nif = NIFAttribution(model)
    for call in (lambda: nif.attribute(x, 0), lambda: nif.fit(x)):
        with pytest.warns(UserWarning, match=f"training mode.*{words}.*eval") as caught:
            call()
        assert [w.filename for w in caught] == [__file__]
    with pytest.warns(UserWarning, match="training mode") as caught:
        nif.attribute(x[:2], 0)
    assert len(caught) == 1
    model.eval()
    nif.fit(x).attribute(x[:2], 0)
    mlp_in_training = NIFAttribution(mlp().train())
    mlp_in_training.fit(x).attribute(x[:2], 0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_training_mode_of_recurrent_layers(dropout):
    model = nn.Sequential()
    model.rnn = nn.GRU(4, 3, num_layers=2, dropout=dropout, batch_first=True)
    model.forward = lambda x: model.rnn(x)[0].mean(1)
    x = torch.randn(40, 5, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NIFAttribution(model).fit(x)
    assert ["GRU" in str(w.message) for w in caught] == [True] * (dropout > 0)


# --- options, layers, targets, masks -------------------------------------------------


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (ValueError, {"normalize": "nodes"}, ["normalize", "'auto'", "'nodes'"]),
        (ValueError, {"preset": "papers"}, ["preset", "paper", "'papers'"]),
        (ValueError, {"relevance": "both"}, ["relevance", "pairwise", "'both'"]),
        (ValueError, {"beta": -0.1}, ["beta", "-0.1"]),
        (ValueError, {"beta": float("nan")}, ["beta", "nan"]),
        (TypeError, {"beta": "0.1"}, ["beta", "'0.1'"]),
        (TypeError, {"estimator": "KSG"}, ["estimator", "MixedKSG()", "'KSG'"]),
        (TypeError, {"estimator": MixedKSG}, ["estimator", "MixedKSG()", "class"]),
        (ValueError, {"layers": ["0", "9"]}, ["'9'", "0, 1, 2"]),
        (ValueError, {"layers": [nn.Linear(4, 6)]}, ["Linear", "not part"]),
        (ValueError, {"layers": []}, ["layers", "empty"]),
        (TypeError, {"layers": "0"}, ["layers", "list", "'0'"]),
        (TypeError, {"layers": [0]}, ["name", "int"]),
    ],
    ids=str,
)
def test_options(net, error, options, words):
    with raises(error, *words):
        NIFAttribution(net, **options)


def test_models_that_are_no_modules(net):
    with raises(TypeError, "torch.nn.Module", "function", "Wrap"):
        NIFAttribution(lambda x: x)
    with pytest.warns(DeprecationWarning, match=r"torch.jit"):
        scripted = torch.jit.script(net)
    with raises(NotImplementedError, "scripted"):
        NIFAttribution(scripted)


@pytest.mark.parametrize(
    ("error", "layer", "words"),
    [
        (ValueError, "1", ["'1'", "input, 0, 2"]),
        (ValueError, "input", ["'input'", "hidden layer or the output"]),
        (ValueError, nn.ReLU(), ["ReLU", "outside the model"]),
        (TypeError, 0, ["layer", "int"]),
    ],
    ids=str,
)
def test_layers_to_explain(fitted, error, layer, words):
    x = torch.randn(2, 4)
    for call in (
        lambda: fitted.attribute(x, 0, layer=layer),
        lambda: fitted.flow(x, layer=layer),
        lambda: fitted.flow(layer=layer),
        lambda: fitted.attribution_matrix(layer=layer),
    ):
        with raises(error, *words):
            call()


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (IndexError, {"target": 3}, ["3", "out of range", "'2'", "(3,)"]),
        (ValueError, {"target": None}, ["3 nodes", "target"]),
        (ValueError, {"target": [0, 1, 2]}, ["3 entries", "2 samples"]),
        (TypeError, {"target": 1.0}, ["1.0", "expected"]),
        (IndexError, {"target": 6, "layer": "0"}, ["6", "'0'"]),
        (ValueError, {"target": 0, "feature_mask": torch.zeros(5).int()}, ["(5,)"]),
        (TypeError, {"target": 0, "feature_mask": torch.zeros(4)}, ["float32"]),
        (ValueError, {"target": 0, "internal_batch_size": 0}, ["at least 1", "0"]),
        (TypeError, {"target": 0, "internal_batch_size": 2.0}, ["int", "2.0"]),
    ],
    ids=str,
)
def test_arguments_of_attribute(fitted, error, options, words):
    with raises(error, *words):
        fitted.attribute(torch.randn(2, 4), **options)


def test_inputs_of_other_types(fitted):
    for bad in ([[1.0, 2.0]], torch.randn(2, 4).numpy(), (torch.randn(2, 4), 1)):
        with raises(TypeError, "`inputs` must be a tensor", "tuple of tensors"):
            fitted.attribute(bad, 0)
    with raises(TypeError, "batch_size", "int"):
        fitted.fit(torch.randn(60, 4), batch_size="8")


def test_redundancy_of_many_features_asks_for_groups():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1025, 2)).eval()
    x = torch.randn(40, 1025)
    nif = NIFAttribution(model, beta=0.1).fit(x)
    message = "beta = 0.1", "1025 nodes", "'input'", "524,800 pairs", "feature_mask"
    for call in (lambda: nif.attribute(x[:2], 0), nif.flow, nif.attribution_matrix):
        with raises(ValueError, *message):
            call()
    mask = torch.arange(1025).div(410, rounding_mode="floor")
    assert nif.attribute(x[:2], 0, feature_mask=mask).shape == (2, 1025)


@pytest.mark.parametrize("largest", [float("inf"), float("nan"), 1e39, -1e39])
def test_sums_over_paths_that_overflow_are_refused(largest):
    sums = [torch.zeros(2), torch.tensor([[1.0, largest]], dtype=torch.float64)]
    with raises(ValueError, "overflow", "up to 41 links", 'normalize="node"'):
        check_scale(sums, links=41)


def test_sums_over_short_paths_may_have_any_scale():
    for largest in (1e-9, 1.0, 1e9, 0.0):
        check_scale([torch.full((2,), largest), torch.empty(0)], links=7)
    check_scale([torch.zeros(3)], links=40)  # no information is none


def test_token_ids_among_inputs_that_flow():
    ids, x = torch.zeros(2, 5, dtype=torch.int64), torch.randn(2, 4)
    found = trace(mlp(), (x,)).structure
    check_reached(found, (x,))
    check_reached(found, (x.int(),))
    unread = Structure(found.layers, found.links[1:])
    with raises(ValueError, "input: token ids"):
        check_reached(unread, (ids,))
    check_reached(unread, (x,))  # a float input that is not read: 0, silently


# --- near-copies ---------------------------------------------------------------------


def is_warned(*batch: Tensor) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_own_population(batch)
    assert all("near-copies" in str(w.message) for w in caught)
    return bool(caught)


def real(name: str) -> Tensor:
    return {"iris": load_iris, "digits": load_digits}[name]().x_train


def gaps_by_loops(distances: list[float]) -> list[bool]:
    found = []
    for j in range(1, len(distances)):
        far, near = distances[j], distances[j - 1]
        logs = [math.log(near / distances[i]) for i in range(j - 1)]
        clear = j > 2 and j * math.log(far / near) > 20 * sum(logs) / (j - 1)
        found.append(far > 5 * near or (far > 2.1 * near and clear))
    return found


def balls(d: float, n: int) -> Tensor:
    """Sorted distances from the centres of n balls to points in them."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(n, 20, dtype=torch.float64, generator=generator)
    return inside.pow(1 / d).sort(1).values


def test_gaps_are_measured_by_the_gaps_before():
    for d in (1, 3, 30, 300):
        for copies, push in ((0, 1.0), (4, 2.5), (10, 2.5), (10, 8.0)):
            x = balls(d, 50)
            x[:, copies:] *= push
            found = near_copies._gaps(x)
            assert found.tolist() == [gaps_by_loops(row) for row in x.tolist()]
            if push > 1 and d >= 30:
                assert bool(found[:, copies - 1].all())
    ties = torch.tensor([[0.0, 0.0, 1.0, 1.0, 9.0]]).double()
    assert near_copies._gaps(ties).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("d", [0.5, 1, 5, 50])
def test_gaps_are_as_rare_in_every_dimension(d, monkeypatch):
    monkeypatch.setattr(near_copies, "_GAP", math.inf)
    monkeypatch.setattr(near_copies, "_CLEAR", 1.0)
    often = near_copies._gaps(balls(d, 20_000)).double().mean(0)[:6]
    expected = [0.0, 0.0, *((1 + 20 / (j - 1)) ** -(j - 1) for j in range(3, 7))]
    # 4 standard errors of the greatest
    torch.testing.assert_close(often.tolist(), expected, atol=2.6e-3, rtol=0)


@pytest.mark.parametrize("n", [32, 64, 500])
def test_real_data_is_no_near_copy(n, data_dir):
    banknote = load_banknote(data_dir, download=False).x_train
    for x in (real("iris"), real("digits"), banknote):
        assert not is_warned(x[:n])


SOUND = {
    "one dimension": lambda n: torch.randn(n, 1),
    "uniform": lambda n: torch.rand(n, 1),
    "grid": lambda n: torch.linspace(0, 1, n)[:, None],
    "circle": lambda n: torch.linspace(0, 6, n)[:, None] + torch.tensor([0, 1.57]),
    "two dimensions": lambda n: torch.randn(n, 2),
    "heavy tails": lambda n: torch.randn(n, 4) / torch.randn(n, 1),
    "log-normal": lambda n: (3 * torch.randn(n, 1)).exp(),
    "high dimensions": lambda n: torch.randn(n, 784),
    "binary": lambda n: torch.randint(0, 2, (n, 4)).float(),
    "levels": lambda n: torch.randint(0, 5, (n, 1)).float(),
    "one-hot": lambda n: torch.eye(10)[torch.randint(0, 10, (n,))],
    "offset": lambda n: 290 + 10 * torch.randn(n, 3),
    "random walk": lambda n: torch.randn(n, 4).cumsum(0),
    "lattice": lambda n: torch.cartesian_prod(*[torch.arange(16.0)] * 2)[:n],
    "categories": lambda n: torch.cat([SOUND["one-hot"](n), torch.rand(n, 2)], 1),
    "classes": lambda n: torch.randn(n, 64) + torch.randn(3, 64).repeat(n, 1)[:n],
}


@pytest.mark.parametrize("n", [32, 256])
@pytest.mark.parametrize("name", SOUND)
def test_ordinary_samples_are_no_near_copies(name, n):
    # 32 numbers on a line may happen to pair off, about once in a hundred times
    assert sum(is_warned(SOUND[name](n)) for _ in range(20)) <= 2


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.01])
@pytest.mark.parametrize(("bases", "copies"), [(1, 64), (4, 10), (16, 50), (32, 2)])
@pytest.mark.parametrize("name", ["digits", "gaussian"])
def test_copies_with_noise_are_near_copies(name, bases, copies, noise):
    x = real("digits") if name == "digits" else torch.randn(40, 4)
    copied = x[:bases].repeat_interleave(copies, 0)
    copied = copied + noise * torch.randn_like(copied)
    assert is_warned(copied)
    assert is_warned(copied[torch.randperm(len(copied))])
    assert is_warned(copied, torch.zeros(len(copied), 2, dtype=torch.int64))


@pytest.mark.parametrize(("bases", "copies"), [(2, 20), (4, 10), (4, 20), (10, 5)])
def test_copies_with_much_noise_are_near_copies(bases, copies):
    def noisy(images: Tensor, noise: float) -> Tensor:
        copied = images[:bases].flatten(1).repeat_interleave(copies, 0)
        return copied + noise * torch.randn_like(copied)

    assert is_warned(noisy(real("digits"), 0.05))
    assert is_warned(noisy(torch.rand(10, 1, 8, 8), 0.05))
    assert is_warned(noisy(torch.rand(10, 1, 8, 8), 0.1))


def test_noise_tunnel_and_sensitivity_max_warn_unless_fitted():
    x = real("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    nif = NIFAttribution(net)

    def tunnel() -> None:
        NoiseTunnel(nif).attribute(x[:4], target=1, nt_samples=10, stdevs=0.02)

    def sensitivity() -> None:
        sensitivity_max(nif.attribute, x[:40], target=1, n_perturb_samples=4)

    for call in (tunnel, sensitivity):
        with pytest.warns(UserWarning, match="near-copies.*fit.background") as caught:
            call()
        assert {w.filename for w in caught} == {__file__}
    nif.fit(x[:200])
    tunnel()
    sensitivity()


def test_counted():
    found = [counted(n, "sample") for n in (0, 1, 2)]
    assert found == ["0 samples", "1 sample", "2 samples"]
    assert counted(2, "index", "indices") == "2 indices"


def test_warnings_point_at_the_line_of_the_user():
    with pytest.warns(UserWarning, match="look here") as caught:
        warn("look here")
    assert caught[0].filename == __file__
