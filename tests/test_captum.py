"""The contract of a Captum method, with Captum's own tools on the results."""

import copy
import io
import pickle
import warnings

import captum.metrics
import captum.testing.helpers.basic_models as captum_models
import matplotlib.pyplot as plt
import pytest
import torch
from captum.attr import (
    Attribution,
    GradientAttribution,
    NoiseTunnel,
    PerturbationAttribution,
    visualization,
)
from torch import Tensor, nn

from captum_nif import MixedKSG, NIFAttribution

KSG = MixedKSG(k=3)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def fitted() -> NIFAttribution:
    return NIFAttribution(mlp(), estimator=KSG).fit(torch.randn(60, 4))


# --- what kind of method it says it is -----------------------------------------------


def test_declarations():
    nif = NIFAttribution(mlp())
    assert isinstance(nif, Attribution)
    assert not isinstance(nif, (GradientAttribution, PerturbationAttribution))
    assert nif.has_convergence_delta() is False
    assert nif.multiplies_by_inputs is False
    assert nif.get_name() == NIFAttribution.get_name() == "Neural Information Flow"


def test_attribute_is_wrapped_as_captum_expects(fitted):
    x = torch.randn(3, 4)
    unlogged = NIFAttribution.attribute.__wrapped__
    assert torch.equal(unlogged(fitted, x, 1), fitted.attribute(x, 1))


def test_there_is_no_future(fitted):
    with pytest.raises(NotImplementedError):
        fitted.attribute_future(torch.randn(3, 4), target=0)


# --- NoiseTunnel, metrics, visualization ---------------------------------------------


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("target", [1, [0, 1, 2], torch.tensor([0, 1, 2])], ids=str)
def test_noise_tunnel(fitted, nt_type, target):
    x, stdev, n = torch.randn(3, 4), 0.2, 5
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = NoiseTunnel(fitted).attribute(
            x, target=target, nt_type=nt_type, nt_samples=n, stdevs=stdev
        )
    torch.manual_seed(3)
    noisy = torch.normal(x.repeat_interleave(n, 0), stdev)
    targets = torch.as_tensor(target).expand(3).repeat_interleave(n).tolist()
    each = fitted.attribute(noisy, target=targets).view(3, n, 4)
    moments = {
        "smoothgrad": each.mean(1),
        "smoothgrad_sq": (each**2).mean(1),
        "vargrad": (each**2).mean(1) - each.mean(1) ** 2,
    }
    torch.testing.assert_close(found, moments[nt_type], rtol=1e-4, atol=1e-5)


def test_noise_tunnel_passes_masks_layers_and_backgrounds_through(fitted):
    x, background = torch.randn(2, 4), torch.randn(50, 4)
    found = NoiseTunnel(fitted).attribute(
        x,
        target=1,
        nt_samples=4,
        stdevs=0.1,
        background=background,
        layer="0",
        feature_mask=torch.tensor([[0, 0, 1, 2]]),
    )
    assert found.shape == x.shape
    assert torch.equal(found[:, 0], found[:, 1])


def test_infidelity(fitted):
    x, noise = torch.randn(3, 4), torch.randn(6, 4)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return noise, inputs - noise

    attributions = fitted.attribute(x, target=1)
    model = fitted.forward_func
    found = captum.metrics.infidelity(
        model, perturb, x, attributions, target=1, n_perturb_samples=2
    )
    repeated = x.repeat_interleave(2, 0)
    dropped = (model(repeated) - model(repeated - noise))[:, 1]
    predicted = (noise * attributions.repeat_interleave(2, 0)).sum(1)
    expected = ((predicted - dropped) ** 2).view(3, 2).mean(1)
    torch.testing.assert_close(found, expected.detach())


def test_sensitivity_max(fitted):
    x, shift = torch.randn(3, 4), torch.tensor([0.01, -0.02, 0.03, -0.04])
    shifts = torch.arange(1.0, 3.0).repeat(3).unsqueeze(1) * shift

    def perturb(inputs: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        return (x + shifts,)

    found = captum.metrics.sensitivity_max(
        fitted.attribute, x, perturb, target=2, n_perturb_samples=2
    )
    before = fitted.attribute(x, target=2).repeat_interleave(2, 0)
    after = fitted.attribute(x.repeat_interleave(2, 0) + shifts, target=2)
    relative = (after - before).norm(dim=1) / before.norm(dim=1)
    torch.testing.assert_close(found, relative.view(3, 2).amax(1))


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
def test_visualize_image_attr(sign):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    images = torch.rand(60, 1, 8, 8)
    nif = NIFAttribution(net.eval(), estimator=KSG).fit(images)
    heat = nif.attribute(images[:1], target=0)[0].permute(1, 2, 0).numpy()
    original = images[0].permute(1, 2, 0).numpy()
    figure, axes = visualization.visualize_image_attr(
        heat, original, sign=sign, method="heat_map", use_pyplot=False
    )
    assert axes.images
    figure.savefig(io.BytesIO())
    figure, axes = visualization.visualize_image_attr_multiple(
        heat,
        original,
        ["original_image", "heat_map", "blended_heat_map"],
        ["all", sign, sign],
        titles=["digit", nif.get_name(), "blended"],
        use_pyplot=False,
    )
    assert [ax.get_title() for ax in axes] == ["digit", nif.get_name(), "blended"]
    figure.savefig(io.BytesIO())
    plt.close("all")


# --- copies and files ----------------------------------------------------------------


def by_pickle(nif: NIFAttribution) -> NIFAttribution:
    return pickle.loads(pickle.dumps(nif))


def by_torch(nif: NIFAttribution) -> NIFAttribution:
    file = io.BytesIO()
    torch.save(nif, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, by_pickle, by_torch])
def test_copies_give_equal_results(duplicate):
    net, x = mlp(), torch.randn(3, 4)
    nif = NIFAttribution(net, layers=[net[0], "2"], estimator=KSG, beta=0.1)
    fresh = duplicate(nif)
    assert not fresh.is_fitted
    nif.fit(torch.randn(60, 4))
    twin = duplicate(nif)
    expected = nif.attribute(x, target=1)
    assert torch.equal(twin.attribute(x, target=1), expected)
    assert twin.flow() == nif.flow()
    twin.fit(torch.randn(70, 4))
    assert torch.equal(nif.attribute(x, target=1), expected)


# --- Captum's own test models --------------------------------------------------------


FIRST, SECOND, THIRD = "input0", "input1", "input2"
CNN = [("input", "conv1"), ("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]
MLP = [("linear0", "linear1"), ("linear1", "linear2")]
MODELS = {
    "BasicModel_ConvNet": ([(1, 10, 10)], (), CNN),
    "BasicModel_ConvNet_MaxPool1d": ([(1, 10)], (), CNN),
    "BasicModel_ConvNet_MaxPool3d": ([(1, 10, 10, 10)], (), CNN),
    "BasicModel_ConvNet_One_Conv": (
        [(1, 4, 4)],
        (),
        [("input", "conv1"), ("conv1", "fc1")],
    ),
    "BasicModel_ConvNetWithPaddingDilation": (
        [(1, 5, 5)],
        (),
        [("input", "conv1"), ("conv1", "fc1"), ("fc1", "output")],
    ),
    "BasicModel_MultiLayer": ([(3,)], (), [("input", "linear0"), *MLP]),
    "BasicModelWithReusedModules": ([(3,)], (), [("input", "lin1"), ("lin1", "lin2")]),
    "BasicModelWithReusedLinear": ([(3,)], (), [("input", "lin1"), ("lin1", "lin1:1")]),
    "ReLULinearModel": (
        [(3,), (3,)],
        (2,),
        [(FIRST, "l1"), (SECOND, "l2"), ("l1", "l3"), ("l2", "l3")],
    ),
    "BasicModel_MultiLayer_MultiInput": (
        [(3,), (3,), (3,)],
        (4,),
        [
            *((each, "model.linear0") for each in (FIRST, SECOND, THIRD)),
            *(tuple(f"model.{end}" for end in ends) for ends in MLP),
        ],
    ),
    "BasicLinearModel": ([(3,), (4,)], (), [(FIRST, "linear"), (SECOND, "linear")]),
    "LinearMaxPoolLinearModel": ([(4,)], (), [("input", "lin1"), ("lin1", "lin2")]),
    "TanhDeepLiftModel": ([(3,), (3,)], (), [(FIRST, "output"), (SECOND, "output")]),
    "BasicModel": ([(3,)], (), [("input", "output")]),
    "BasicModel_MaxPool_ReLU": ([(6,)], (), [("input", "output")]),
}


@pytest.mark.parametrize("name", MODELS)
def test_captums_test_models(name):
    shapes, extra, links = MODELS[name]
    model = getattr(captum_models, name)().eval()
    background = tuple(3 * torch.randn(40, *shape) for shape in shapes)
    x = tuple(3 * torch.randn(2, *shape) for shape in shapes)
    nif = NIFAttribution(model, estimator=KSG).fit(
        background, additional_forward_args=extra
    )
    graphs = nif.flow(x, additional_forward_args=extra)
    assert [link.ends for link in graphs[0].links] == links
    chain = len(graphs[0].links) == len(graphs[0].layers) - 1 and len(shapes) == 1
    target = 0 if graphs[0].layers[-1].size > 1 else None
    found = nif.attribute(x, target=target, additional_forward_args=extra)
    for s, graph in enumerate(graphs):
        sums = (graph if chain else graph.normalized("node")).path_sums(0)
        single = torch.cat([each[s].flatten() for each in found])
        torch.testing.assert_close(single, sums.float(), rtol=1e-5, atol=1e-7)
    assert all(a.shape == b.shape for a, b in zip(found, x, strict=True))
